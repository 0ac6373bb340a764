"""Accuracy, NFE and bound of a data set, tuning to a target, and what becomes of the results."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from files import equation_model, scorer_of, write_rows

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import EntropyBoundSampler, ThresholdSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import DilatedSampler, IIDSampler, LeftToRightSampler, TopProbSampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.attention import heeds_padding
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.evaluation.comparison import compare, knob
from hf_learned_order.evaluation.evaluator import Evaluator, fingerprint
from hf_learned_order.tasks.data import equation_tokenizer, equations
from hf_learned_order.tasks.gsm8k import chains_of, read_rows

CANVAS = 24


@pytest.fixture(scope="module")
def tokenizer():
    return equation_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, 60, 0)
    return equations(chains_of(read_rows(path))[0], tokenizer, canvas_length=CANVAS).select(range(10))


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(equation_model())


@pytest.fixture(scope="module")
def evaluator(denoiser, tokenizer, dataset):
    return Evaluator(denoiser, tokenizer, dataset, canvas_length=CANVAS, batch_size=4)


class Answers:
    """A denoiser that knows the response of each prompt, but for those in `wrong`."""

    def __init__(self, denoiser, tokenizer, rows, *, wrong):
        self.denoiser, self.mask_token_id, self.device = denoiser, denoiser.mask_token_id, denoiser.device
        self.model = denoiser.model
        heeds_padding(denoiser)  # asked of the model itself, once
        self.max_length, self.family, self.vocab_size = denoiser.max_length, denoiser.family, len(tokenizer)
        self.model = denoiser.model
        assert heeds_padding(denoiser)  # known of the model from then on: this one cannot be asked
        self.known = {}
        for number, row in enumerate(rows):
            response = row["response_ids"] if number not in wrong else row["response_ids"][:-1]
            canvas = [*response, *[tokenizer.eos_token_id] * (CANVAS - len(response))]
            self.known[tuple(row["prompt_ids"])] = torch.tensor(canvas)

    def __call__(self, input_ids, attention_mask, start, *, hidden_states=False, at=None):
        prompts = (
            row[mask.bool()][: int(mask.sum()) - CANVAS] for row, mask in zip(input_ids, attention_mask, strict=True)
        )
        canvases = torch.stack([self.known[tuple(prompt.tolist())] for prompt in prompts])
        logits = 20.0 * torch.nn.functional.one_hot(canvases, self.vocab_size).float()
        return logits if at is None else logits[at], None


# ---- measuring ---------------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_length(evaluator, dataset):
    lengths = evaluator.dataset["length"][:]
    assert lengths == sorted(dataset["length"][:])


def test_processes_share_the_batches(denoiser, tokenizer, dataset, evaluator):
    """Each has its own, and what is drawn in a batch is the same in whichever process."""
    for sampler in (TopProbSampler(), IIDSampler()):
        alone = [output.sequences for output, _ in evaluator.outputs(sampler, max_denoising_steps=3, seed=5)]
        shares = []
        for rank in range(2):
            processes = SimpleNamespace(process_index=rank, num_processes=2)
            mine = Evaluator(denoiser, tokenizer, dataset, canvas_length=CANVAS, batch_size=4, processes=processes)
            shares.append([output.sequences for output, _ in mine.outputs(sampler, max_denoising_steps=3, seed=5)])
        assert [len(share) for share in shares] == [2, 1]
        for expected, found in zip(alone, [shares[0][0], shares[1][0], shares[0][1]], strict=True):
            assert torch.equal(found, expected)


def test_columns(evaluator, denoiser, tokenizer, dataset):
    """What stands in others is nobody's business; `length` is one of them."""
    own = dataset.remove_columns("length").add_column("length", ["long"] * len(dataset))
    for rows in (own, dataset.remove_columns("length")):
        same = Evaluator(denoiser, tokenizer, rows, canvas_length=CANVAS)
        assert same.dataset["prompt_ids"][:] == evaluator.dataset["prompt_ids"][:]
    message = "dataset must have the columns prompt_ids, response_ids, answer, but lacks prompt_ids, answer"
    with pytest.raises(ValueError, match=message):
        Evaluator(denoiser, tokenizer, dataset.remove_columns(["prompt_ids", "answer"]), canvas_length=CANVAS)


def test_accuracy_is_of_the_final_answer(denoiser, tokenizer, dataset):
    knowing = Answers(denoiser, tokenizer, dataset.to_list(), wrong=(2, 5, 6))
    result = Evaluator(knowing, tokenizer, dataset, canvas_length=CANVAS).measure(
        TopProbSampler(), name="top_prob", max_denoising_steps=3
    )
    assert result.accuracy == 0.7
    assert (result.sampler, result.budget, result.count, result.runs) == ("top_prob", 3, 10, 1)


@pytest.mark.parametrize("sampler", [TopProbSampler(), ThresholdSampler(threshold=0.3), EntropyBoundSampler(gamma=1.0)])
def test_nfe_is_of_each_sequence(evaluator, denoiser, sampler):
    """The same for any batches, and the same as one row at a time."""
    result = evaluator.measure(sampler, name="rule", max_denoising_steps=12)
    nfe, likelihoods = [], []
    for row in evaluator.dataset:
        batch = evaluator.collator([row])
        for clean in (None, batch["clean"]):
            output = decode(
                denoiser,
                batch["input_ids"],
                sampler=sampler,
                max_new_tokens=CANVAS,
                max_denoising_steps=12,
                eos_token_id=evaluator.tokenizer.eos_token_id,
                clean=clean,
            )
            if clean is None:
                assert output.nfe == output.order.max()
                nfe += output.nfe.tolist()
            else:
                likelihoods += output.log_likelihood.tolist()
    assert result.nfe == sum(nfe) / len(nfe)
    assert (result.nfe_min, result.nfe_max) == (min(nfe), max(nfe))
    assert evaluator.quick(sampler, 12).nfe == pytest.approx(result.nfe)
    # the bound is the likelihood of the published response in the rule's order
    assert result.bound == pytest.approx(sum(likelihoods) / len(likelihoods), rel=1e-5)
    assert result.bound < 0


def test_bound_can_be_left_out(evaluator):
    assert evaluator.measure(TopProbSampler(), name="top_prob", max_denoising_steps=2, with_bound=False).bound is None


def test_seed_decides_a_random_rule(evaluator):
    runs = [evaluator.measure(IIDSampler(), name="iid", max_denoising_steps=4, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].bound != runs[2].bound


def test_budget_is_the_canvas_by_default(evaluator):
    result = evaluator.measure(EntropyBoundSampler(gamma=1.0), name="entropy_bound", with_bound=False)
    assert result.budget == CANVAS


def test_empty_dataset_is_refused(denoiser, tokenizer, dataset):
    with pytest.raises(ValueError, match="dataset must hold at least one row, but it is empty"):
        Evaluator(denoiser, tokenizer, dataset.select([]), canvas_length=CANVAS)


def test_orders_are_of_the_response(denoiser, tokenizer, dataset):
    """What was unmasked behind the first EOS is padding and does not count."""
    knowing = Answers(denoiser, tokenizer, dataset.to_list(), wrong=())
    evaluator = Evaluator(knowing, tokenizer, dataset, canvas_length=CANVAS)
    result = evaluator.measure(LeftToRightSampler(), name="left_to_right", with_bound=False)
    lengths = [len(row["response_ids"]) + 1 for row in dataset]
    assert (result.kendall_tau, result.local_ar_ness, result.global_ar_ness, result.nfe) == (
        *(1, 1, 1),
        sum(lengths) / len(lengths),
    )
    assert result.tokens_per_forward == 1
    ((output, _),) = evaluator.outputs(TopProbSampler(), max_denoising_steps=1)
    assert sorted((evaluator.order_of(output) > 0).sum(-1).tolist()) == sorted(lengths)
    result = evaluator.measure(TopProbSampler(), name="top_prob", max_denoising_steps=1, with_bound=False)
    assert result.tokens_per_forward == sum(lengths) / len(lengths)
    assert result.kendall_tau is None


def test_fingerprints(denoiser, tokenizer, dataset, evaluator):
    assert fingerprint(denoiser.model) == fingerprint(equation_model())
    changed = equation_model()
    with torch.no_grad():
        next(iter(changed.parameters())).view(-1)[0] += 1e-9
    scorers = [scorer_of(denoiser.model, law="regret", bound=bound) for bound in (1.0, 2.0)]
    models = [denoiser.model, changed, equation_model().bfloat16(), *scorers]
    assert len({fingerprint(model) for model in models}) == len(models)
    again = Evaluator(denoiser, tokenizer, dataset, canvas_length=CANVAS)
    fewer = Evaluator(denoiser, tokenizer, dataset.select(range(9)), canvas_length=CANVAS)
    assert again.fingerprint() == evaluator.fingerprint() != fewer.fingerprint()


# ---- tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, 6.0])
@pytest.mark.parametrize("name", ["threshold", "factor", "entropy_bound", "non_empty", "regret", "pairs"])
def test_knob_is_tuned_to_its_target(evaluator, denoiser, name, target):
    laws = {"non_empty": {}, "regret": {"law": "regret"}, "pairs": {"law": "regret", "pair_weight": 1.0}}
    make = knob("learned_order", scorer_of(denoiser.model, **laws[name])) if name in laws else knob(name)
    setting = evaluator.tune_knob(make, target)
    nfe = evaluator.quick(make(setting)).nfe
    print(f"{name}: {nfe:.2f} at {setting:.3f}")
    assert 0 < setting < 1
    assert abs(nfe - target) < 0.12 * target  # ten rows: no setting may come nearer


def test_knob_searches_up_to_high(evaluator):
    # every middle is too slow for that, so the search goes up from the first one, high / 2
    assert evaluator.tune_knob(knob("threshold"), 0.01, high=0.25, rounds=4) > 0.125


def test_the_nearest_setting_is_kept_not_the_last(denoiser, tokenizer, dataset):
    """10 (1 - setting) calls: of 0.5, 0.25, 0.375 and 0.4375, which are tried for 5.3, the first is nearest."""

    class Line(Evaluator):
        def quick(self, sampler, max_denoising_steps=None):
            result = super().quick(TopProbSampler(), 1)
            return replace(result, nfe=10 * sampler.threshold)

    line = Line(denoiser, tokenizer, dataset.select(range(1)), canvas_length=CANVAS)
    assert line.tune_knob(knob("threshold"), 5.3, rounds=4) == 0.5


@pytest.mark.parametrize("target", [1.0, 3.0, 6.4])
def test_budget_is_tuned_to_its_target(evaluator, target):
    budget = evaluator.tune_budget(TopProbSampler(), target)
    nfe = evaluator.quick(TopProbSampler(), budget).nfe
    assert abs(nfe - target) <= 0.5


class Invented(Evaluator):
    """Measures what a formula says: the accuracy is highest at 0.3 with budget 4; slower settings take more calls."""

    tried: list

    def quick(self, sampler, max_denoising_steps=None):
        setting = 1 - sampler.threshold
        self.tried.append((setting, max_denoising_steps))
        accuracy = 1 - abs(setting - 0.3) - abs(max_denoising_steps - 4) / 10
        result = super().measure(TopProbSampler(), name="", max_denoising_steps=1, with_bound=False)
        return replace(result, accuracy=accuracy, nfe=1 + (max_denoising_steps - 1) * (1 - setting))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (5.0, (0.3125, 4)),  # the best of all that are tried
        (2.5, (0.5, 4)),  # 2.5 calls; 0.4375 would take more than 2 % above
        (0.5, (1.0, 2)),  # nothing is fast enough
    ],
)
def test_knob_and_budget_are_tuned_together(denoiser, tokenizer, dataset, target, expected):
    invented = Invented(denoiser, tokenizer, dataset.select(range(1)), canvas_length=CANVAS)
    invented.tried = []
    found = invented.tune_both(knob("threshold"), target, budgets=[2, 4, 5])
    print(found, invented.tried)
    assert found == expected


def test_budget_is_at_most_the_canvas(evaluator):
    assert evaluator.tune_budget(TopProbSampler(), 3.0 * CANVAS) == CANVAS


def test_a_rule_with_its_own_number_of_steps_is_not_tried_at_every_budget(denoiser, tokenizer, dataset):
    tried = []

    class Counting(Evaluator):
        def quick(self, sampler, max_denoising_steps=None):
            tried.append(max_denoising_steps)
            return super().quick(sampler, max_denoising_steps)

    counting = Counting(denoiser, tokenizer, dataset, canvas_length=CANVAS)
    assert counting.tune_budget(DilatedSampler(), 20.0) == 20
    assert tried == [20, 21]


def test_knob_of_wino(evaluator):
    nfe = [evaluator.quick(knob("wino")(x)).nfe for x in (0.0, 1.0)]
    assert 1 <= nfe[1] < nfe[0] <= CANVAS


def test_knob_of_klass(evaluator):
    """It unmasks one position a step until a prediction has been stable for two steps, so it is not tuned to few."""
    make = knob("klass")
    assert (make(0.25).threshold, make(0.25).history) == (0.75, 2)
    nfe = [evaluator.quick(make(x)).nfe for x in (0.0, 1.0)]
    assert 3 <= nfe[1] < nfe[0] <= CANVAS


def test_every_rule_is_measured(tokenizer, dataset):
    model = equation_model()
    model.set_attn_implementation("eager")
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
    evaluator = Evaluator(denoiser, tokenizer, dataset.select(range(2)), canvas_length=CANVAS)
    scorer = scorer_of(denoiser.model)
    names = list(SAMPLERS)
    random = {name: make_sampler(name, scorer=scorer).is_random for name in names}
    results = list(compare(evaluator, evaluator, samplers=names, targets=[2.0], scorers=[scorer], seeds=2))
    assert [result.sampler for result in results if "tuned" not in result.sampler] == names
    assert [name for name in names if knob(name, scorer)] == [
        result.sampler.partition(",")[0] for result in results if "tuned" in result.sampler
    ]
    for result in results:
        assert (result.bound is None) == SAMPLERS[result.sampler.partition(",")[0]].remasks
        assert result.runs == (2 if random[result.sampler.partition(",")[0]] else 1)


def test_rules_without_a_knob():
    assert knob("iid") is None
    assert knob("top_prob") is None


# ---- comparing ---------------------------------------------------------------------------------------------------


def test_compare(evaluator, denoiser):
    scorers = [scorer_of(denoiser.model, seed=seed) for seed in range(2)]
    names = ["iid", "top_prob", "threshold", "learned_order"]
    results = list(compare(evaluator, evaluator, samplers=names, targets=[3.0], scorers=scorers, seeds=3))
    assert [result.sampler for result in results] == [
        *("iid", "top_prob", "threshold", "threshold, tuned", "learned_order", "learned_order, tuned")
    ]
    assert [result.runs for result in results] == [3, 1, 1, 1, 6, 6]  # these scorers draw: with each of three seeds
    assert [result.budget for result in results if "tuned" not in result.sampler] == [3, 3, CANVAS, CANVAS]
    assert all(result.budget in (3, 4, 5) for result in results if "tuned" in result.sampler)
    assert [result.setting.partition("=")[0] for result in results] == ["", "", *["threshold"] * 2, *["bias"] * 2]
    for result in results:
        assert result.target == 3.0
        assert (", tuned" in result.sampler) == ("T=" in result.setting)
        assert result.nfe_max <= result.budget
        assert result.nfe_min <= result.nfe <= result.nfe_max
        assert result.nfe <= 3.0 * 1.02 if "tuned" in result.sampler else abs(result.nfe - 3.0) < 0.5
        assert result.count == 10
    expected = [evaluator.measure(IIDSampler(), name="iid", max_denoising_steps=3, seed=seed) for seed in range(3)]
    assert results[0].bound == pytest.approx(sum(run.bound for run in expected) / 3)


def test_a_greedy_order_needs_one_run(evaluator, denoiser):
    scorers = [scorer_of(denoiser.model, seed=seed) for seed in range(2)]
    options = {"samplers": ["learned_order"], "targets": [3.0], "budget_shares": (), "with_bound": False}
    (result,) = compare(evaluator, evaluator, scorers=scorers, greedy=True, **options)
    assert result.runs == 2
    assert abs(result.nfe - 3.0) < 0.5
    assert re.fullmatch(r"bias=\S+ greedy", result.setting)
    (drawn,) = compare(evaluator, evaluator, scorers=scorers, seeds=1, **options)
    assert re.fullmatch(r"bias=\S+", drawn.setting)


def test_finished_rows_are_not_measured_again(evaluator):
    options = {"samplers": ["top_prob", "entropy_bound"], "targets": [3.0, 6.0], "task": "equations"}
    results = list(compare(evaluator, evaluator, **options))
    assert len(results) == 6
    # changed, so that a row that is measured again would be another one
    finished = [replace(result, accuracy=-1.0) for result in results[:1] + results[3:5]]
    again = list(compare(evaluator, evaluator, **options, finished=finished))
    assert again == [finished[0], *results[1:3], *finished[1:], results[5]]
    assert list(compare(evaluator, evaluator, **options | {"task": "words"}, finished=finished)) == [
        replace(result, task="words") for result in results
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samplers": ["fast"]}, "sampler must be one of iid, random, .*, got 'fast'"),
        ({"samplers": ["learned_order"]}, 'sampler "learned_order" needs a scorer'),
        ({"samplers": ["iid"], "seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"samplers": ["iid"], "budget_shares": [1, 0.5]}, r"budget_shares must be 1 or more each, got 0\.5"),
    ],
)
def test_compare_checks(evaluator, options, message):
    with pytest.raises(ValueError, match=message):
        list(compare(evaluator, evaluator, targets=[3.0], **options))


def test_learned_rule_of_a_knob(denoiser):
    scorer = scorer_of(denoiser.model)
    make = knob("learned_order", scorer)
    assert make(0.5) == LearnedOrderSampler(scorer=scorer, bias=0.0)
    assert make(0.0).bias < 0 < make(1.0).bias
    assert knob("learned_order", scorer, greedy=True)(0.5) == LearnedOrderSampler(scorer=scorer, greedy=True)
