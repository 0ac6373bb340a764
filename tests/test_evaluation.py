"""Accuracy, NFE and bound of a data set, tuning to a target, and what becomes of the results."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch
from files import equation_model, scorer_of, write_rows
from rich.console import Console

from hf_learned_order.data import equation_tokenizer, equations
from hf_learned_order.denoisers import Denoiser
from hf_learned_order.evaluation import (
    RANDOM_SAMPLERS,
    Evaluator,
    Result,
    compare,
    knob,
    lead,
    load_results,
    over_runs,
    save_results,
    table,
)
from hf_learned_order.generation import decode
from hf_learned_order.gsm8k import chains_of, read_rows
from hf_learned_order.samplers import (
    SAMPLERS,
    DilatedSampler,
    EntropyBoundSampler,
    IIDSampler,
    LearnedOrderSampler,
    ThresholdSampler,
    TopProbSampler,
)

CANVAS = 24
RESULT = Result(
    sampler="entropy", target=4.0, budget=4, accuracy=0.25, nfe=3.9, nfe_min=2, nfe_max=4, bound=-9.5, count=8
)


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
        self.max_length, self.family, self.vocab_size = denoiser.max_length, denoiser.family, len(tokenizer)
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
    assert evaluator.mean_nfe(sampler, max_denoising_steps=12) == pytest.approx(result.nfe)
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


# ---- tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, 6.0])
@pytest.mark.parametrize("name", ["threshold", "factor", "entropy_bound", "non_empty", "dependent"])
def test_knob_is_tuned_to_its_target(evaluator, denoiser, name, target):
    laws = ("non_empty", "dependent")
    make = knob("learned_order", scorer_of(denoiser.model, law=name)) if name in laws else knob(name)
    setting = evaluator.tune_knob(make, target)
    nfe = evaluator.mean_nfe(make(setting))
    print(f"{name}: {nfe:.2f} at {setting:.3f}")
    assert 0 < setting < 1
    assert abs(nfe - target) < 0.12 * target  # ten rows: no setting may come nearer


def test_knob_searches_up_to_high(evaluator):
    # every middle is too slow for that, so the search goes up from the first one, high / 2
    assert evaluator.tune_knob(knob("threshold"), 0.01, high=0.25, rounds=4) > 0.125


@pytest.mark.parametrize("target", [1.0, 3.0, 6.4])
def test_budget_is_tuned_to_its_target(evaluator, target):
    budget = evaluator.tune_budget(TopProbSampler(), target)
    nfe = evaluator.mean_nfe(TopProbSampler(), max_denoising_steps=budget)
    assert abs(nfe - target) <= 0.5


def test_budget_is_at_most_the_canvas(evaluator):
    assert evaluator.tune_budget(TopProbSampler(), 3.0 * CANVAS) == CANVAS


def test_a_rule_with_its_own_number_of_steps_is_not_tried_at_every_budget(denoiser, tokenizer, dataset):
    tried = []

    class Counting(Evaluator):
        def mean_nfe(self, sampler, *, max_denoising_steps=None, seed=0):
            tried.append(max_denoising_steps)
            return super().mean_nfe(sampler, max_denoising_steps=max_denoising_steps, seed=seed)

    counting = Counting(denoiser, tokenizer, dataset, canvas_length=CANVAS)
    assert counting.tune_budget(DilatedSampler(), 20.0) == 20
    assert tried == [20, 21]


def test_knob_of_wino(evaluator):
    nfe = [evaluator.mean_nfe(knob("wino")(x)) for x in (0.0, 1.0)]
    assert 1 <= nfe[1] < nfe[0] <= CANVAS


def test_knob_of_klass(evaluator):
    """It unmasks one position a step until a prediction has been stable for two steps, so it is not tuned to few."""
    make = knob("klass")
    assert (make(0.25).threshold, make(0.25).history) == (0.75, 2)
    nfe = [evaluator.mean_nfe(make(x)) for x in (0.0, 1.0)]
    assert 3 <= nfe[1] < nfe[0] <= CANVAS


def test_every_rule_is_measured(denoiser, tokenizer, dataset):
    evaluator = Evaluator(denoiser, tokenizer, dataset.select(range(2)), canvas_length=CANVAS)
    scorer = scorer_of(denoiser.model)
    names = list(SAMPLERS)
    results = list(compare(evaluator, evaluator, samplers=names, targets=[6.0], scorers=[scorer], seeds=2))
    assert [result.sampler for result in results if "capped" not in result.sampler] == names
    assert [name for name in names if knob(name, scorer)] == [
        result.sampler.partition(",")[0] for result in results if "capped" in result.sampler
    ]
    for result in results:
        assert (result.bound is None) == SAMPLERS[result.sampler.partition(",")[0]].remasks
        assert result.runs == (2 if result.sampler in RANDOM_SAMPLERS else 1)


def test_rules_without_a_knob():
    assert knob("iid") is None
    assert knob("top_prob") is None


# ---- comparing ---------------------------------------------------------------------------------------------------


def test_compare(evaluator, denoiser):
    scorers = [scorer_of(denoiser.model, seed=seed) for seed in range(2)]
    names = ["iid", "top_prob", "threshold", "learned_order"]
    results = list(compare(evaluator, evaluator, samplers=names, targets=[3.0], scorers=scorers, seeds=3))
    assert [result.sampler for result in results] == [
        *("iid", "top_prob", "threshold", "threshold, capped", "learned_order", "learned_order, capped")
    ]
    assert [result.runs for result in results] == [3, 1, 1, 1, 2, 2]
    assert [result.budget for result in results] == [3, 3, CANVAS, 5, CANVAS, 5]
    assert [result.setting.partition("=")[0] for result in results] == ["", "", *["threshold"] * 2, *["bias"] * 2]
    for result in results:
        assert result.target == 3.0
        assert (", capped" in result.sampler) == ("T=5" in result.setting)
        assert result.nfe_max <= result.budget
        assert result.nfe_min <= result.nfe <= result.nfe_max
        assert abs(result.nfe - 3.0) < 0.5
        assert result.count == 10
    expected = [evaluator.measure(IIDSampler(), name="iid", max_denoising_steps=3, seed=seed) for seed in range(3)]
    assert results[0].bound == pytest.approx(sum(run.bound for run in expected) / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samplers": ["fast"]}, "sampler must be one of iid, random, .*, got 'fast'"),
        ({"samplers": ["learned_order"]}, 'sampler "learned_order" needs a scorer'),
        ({"samplers": ["iid"], "seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"samplers": ["iid"], "cap": 0.5}, r"cap must be 1 or more, got 0\.5"),
    ],
)
def test_compare_checks(evaluator, options, message):
    with pytest.raises(ValueError, match=message):
        list(compare(evaluator, evaluator, targets=[3.0], **options))


def test_over_runs():
    runs = [replace(RESULT, accuracy=a, nfe=n, nfe_min=m, nfe_max=M, bound=b) for a, n, m, M, b in
            [(0.2, 3.0, 1, 4, -8.0), (0.4, 5.0, 2, 6, -10.0)]]  # fmt: skip
    mean = over_runs(runs)
    assert mean.accuracy == pytest.approx(0.3)
    assert mean.spread == pytest.approx(0.02**0.5)
    assert (mean.nfe, mean.nfe_min, mean.nfe_max, mean.bound, mean.runs) == (4.0, 1, 6, -9.0, 2)
    assert over_runs([RESULT]) == RESULT
    seeds = [replace(RESULT, scores=[1.0, 0.0, 1.0]), replace(RESULT, scores=[1.0, 0.0, 0.0])]
    assert over_runs(seeds).scores == [1.0, 0.0, 0.5]
    assert over_runs([replace(RESULT, bound=None)] * 2).bound is None


def test_lead_is_the_interval_of_the_mean_difference():
    generator = torch.Generator().manual_seed(0)
    ours = (torch.rand(400, generator=generator) < 0.5).float()
    theirs = torch.where(torch.rand(400, generator=generator) < 0.2, 1 - ours, ours)  # paired: they mostly agree
    difference = ours - theirs
    low, high = lead(replace(RESULT, scores=ours.tolist()), replace(RESULT, scores=theirs.tolist()))
    error = difference.std().item() / 20
    assert low == pytest.approx(difference.mean().item() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(difference.mean().item() + 1.96 * error, abs=0.2 * error)


@pytest.mark.parametrize("scores", [[], [1.0, 0.0]])
def test_lead_needs_the_same_sequences(scores):
    with pytest.raises(ValueError, match=r"both results must have scores of the same sequences, got [01] and"):
        lead(replace(RESULT, scores=[1.0] if scores else []), replace(RESULT, scores=scores))


# ---- results -----------------------------------------------------------------------------------------------------


def test_results_round_trip(tmp_path):
    results = [RESULT, replace(RESULT, sampler="learned_order", setting="bias=0.5", spread=0.01, bound=None, runs=3)]
    save_results(results, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert load_results(folder / "results.json") == results
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["sampler"] for row in rows] == ["entropy", "learned_order"]
    assert rows[0].keys() == vars(RESULT).keys() - {"scores"}
    assert (rows[0]["accuracy"], rows[0]["bound"], rows[1]["bound"]) == ("0.25", "-9.5", "")


@pytest.mark.parametrize("text", ["{", "3", '[{"sampler": "iid"}]', '[{"speed": 1}]', json.dumps(["iid"])])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json: must be a results\.json that evaluate wrote"):
        load_results(path)


def test_table():
    results = [
        RESULT,
        replace(RESULT, sampler="iid", accuracy=0.125, spread=0.02, runs=3, bound=None),
        replace(RESULT, sampler="threshold", setting="threshold=0.75", target=8.0, nfe=8.125, nfe_max=11),
        replace(RESULT, sampler="learned_order", accuracy=0.5),
    ]
    file = io.StringIO()
    Console(file=file, width=120, force_terminal=True, color_system="standard").print(table(results))
    lines = [line for line in file.getvalue().splitlines() if any(r.sampler in line for r in results)]
    order = [next(r.sampler for r in results if r.sampler in line) for line in lines]
    assert order == ["learned_order", "entropy", "iid", "threshold"]  # by target, then by accuracy
    assert ["\x1b[1m" in line for line in lines] == [True, False, False, True]
    for text in ("T=4", "3.90", "2-4", "12.5", "2.0 (3)"):
        assert text in lines[2]
    for text in ("threshold=0.75", "8.12", "2-11", "25.0", "-9.50"):
        assert text in lines[3]
    assert "-9.50" not in lines[2]


def test_table_says_how_far_the_learned_order_is_ahead():
    ours, theirs = [1.0, 1.0, 1.0, 0.0] * 100, [1.0, 0.0, 1.0, 0.0] * 100
    results = [
        replace(RESULT, scores=theirs, accuracy=0.5),
        replace(RESULT, sampler="learned_order", scores=ours, accuracy=0.75),
    ]
    file = io.StringIO()
    Console(file=file, width=120).print(table(results))
    low, high = lead(results[1], results[0])
    assert f"{100 * low:+.1f} to {100 * high:+.1f}" in file.getvalue()
    assert file.getvalue().count(" to ") == 1


def test_learned_rule_of_a_knob(denoiser):
    scorer = scorer_of(denoiser.model)
    make = knob("learned_order", scorer)
    assert make(0.5) == LearnedOrderSampler(scorer=scorer, bias=0.0)
    assert make(0.0).bias < 0 < make(1.0).bias
