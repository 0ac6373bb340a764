"""Task reward: the gradient against that of every trajectory, and a problem where what is right must not go first."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from problems import Scripted
from test_trainer import arguments, quiet  # noqa: F401 (a fixture)
from torch import Tensor

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.calls import predict
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.configuration import LAWS, OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.answers import AnswerMetrics
from hf_learned_order.tasks.table import TASKS, Source
from hf_learned_order.training.objectives import reward
from hf_learned_order.training.objectives.reward import RewardObjective
from hf_learned_order.training.objectives.updates import Draws, seeds_of
from hf_learned_order.training.trainer import OrderTrainer

EXAMPLES = Path(__file__).parents[2] / "examples"
MASK = Scripted.mask_token_id
OTHER, WRONG, RIGHT, EOS = Scripted.OTHER, Scripted.WRONG, Scripted.RIGHT, Scripted.OTHER
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "denoiser_hidden_size": 0}


def objective_of(script, law: str, *, seed: int = 0, trained: bool = True, **options) -> RewardObjective:
    torch.manual_seed(seed)
    scorer = OrderScorer(OrderScorerConfig(law=law, law_temperature=1.0, pair_weight=1.0, **SMALL))
    if trained:
        for name, parameter in scorer.named_parameters():
            torch.nn.init.normal_(parameter, std=0.7 if "head" in name else 0.4)
    return RewardObjective(Scripted(script), scorer, **options)


def batch_of(rows: int, clean: list[int]) -> dict[str, Tensor]:
    prompt = torch.full((rows, 2), 5)
    return {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "clean": torch.tensor([clean] * rows)}


def needs_the_first(surest):
    """The second token is right only beside the first one; before, `surest` is said of it, and it is wrong."""

    def script(_, canvas):
        known = canvas[0] == RIGHT
        return [(RIGHT, 0.7), (RIGHT, 0.8) if known else (WRONG, surest), (RIGHT, 0.6), (RIGHT, 0.55)]

    return script


def needs_to_agree(_, canvas):
    """Of the first two either word will do, if it stands twice; said at once they are two."""
    first, second = canvas[:2]
    return [
        (RIGHT, 0.7) if second == MASK else (second, 0.9),
        (WRONG, 0.6) if first == MASK else (first, 0.8),
        (RIGHT, 0.65),
    ]


def agree(tokens: Tensor, answers: Tensor) -> Tensor:
    """What is right there: a judge."""
    return (tokens[:, 0] == tokens[:, 1]) & (tokens[:, 2] == answers[:, 0])


class Enumeration:
    """Expected rewards, differentiable, by trying every set at every step. Written from the module's formula."""

    def __init__(self, objective: RewardObjective, is_right, bias: float):
        self.objective, self.is_right, self.bias = objective, is_right, bias

    def value(self, canvas: list[int], steps_left: int, calls: int, explores: set[int]) -> Tensor | float:
        """The mean reward from a state on, where the steps with a number in `explores` draw."""
        if MASK not in canvas:
            return self.is_right(canvas) * (1 - (calls - 1) / len(canvas)) ** self.objective.speed_exponent
        masked = torch.tensor([[token == MASK for token in canvas]])
        prompt = torch.full((1, 2), 5)
        predictions, _ = predict(
            self.objective.denoiser, prompt, torch.ones_like(prompt), torch.tensor([canvas]), hidden_states=False
        )
        step = Step(predictions=predictions, masked=masked, steps_left=steps_left, canvas=torch.tensor([canvas]))
        scorer = self.objective.scorer
        values = scorer(step)
        if steps_left == 1:
            sets = [masked[0]]
            chances = [1.0]
        elif calls + 1 in explores:
            law = scorer.exploring_law(step, values, bias=self.bias, where=torch.ones_like(masked))
            choices = itertools.product(*[(False, True) if m else (False,) for m in masked[0].tolist()])
            sets = [torch.tensor(choice) for choice in choices if any(choice)]
            chances = [law.log_prob(chosen[None]).exp()[0] for chosen in sets]
            assert sum(chances).item() == pytest.approx(1, abs=1e-4)
        else:
            sets = [scorer.law(step, values, bias=self.bias).sample()[0]]
            chances = [1.0]
        total = 0.0
        for chosen, chance in zip(sets, chances, strict=True):
            for share, after in self.outcomes(predictions, canvas, chosen.tolist()):
                total = total + chance * share * self.value(after, steps_left - 1, calls + 1, explores)
        return total

    def outcomes(self, predictions, canvas: list[int], chosen: list[bool]):
        """What the canvas can be after these are unmasked, and how likely that is."""
        if not (temperature := self.objective.temperature):
            said = [[(1.0, token)] for token in predictions.tokens[0].tolist()]
        else:
            powers = (predictions.log_probs[0] / temperature).nan_to_num(-math.inf).softmax(-1)
            said = [[(p, token) for token, p in enumerate(row) if p > 0] for row in powers.tolist()]
        places = [of if c else [(1.0, old)] for of, c, old in zip(said, chosen, canvas, strict=True)]
        for drawn in itertools.product(*places):
            shares, after = zip(*drawn, strict=True)
            yield math.prod(shares), list(after)


def gradient(value: Tensor, objective: RewardObjective) -> Tensor:
    found = torch.autograd.grad(value, list(objective.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def check_gradient(objective: RewardObjective, is_right, batch: dict[str, Tensor], bias: float, count: int) -> Tensor:
    """The mean of so many estimates is the gradient of the enumerated rewards, which is returned."""
    steps, start = objective.max_denoising_steps, [MASK] * batch["clean"].shape[1]
    enumeration = Enumeration(objective, is_right, bias)
    if not objective.scorer.is_random:
        expected = sum(enumeration.value(start, steps, 0, {number}) for number in range(1, steps))
    else:
        expected = enumeration.value(start, steps, 0, set(range(1, steps)))
    exact = gradient(expected, objective)
    estimates = torch.stack([gradient(-objective(**batch)["loss"], objective) for _ in range(count)])
    directions = torch.randn(20, len(exact), generator=torch.Generator().manual_seed(1))
    assert exact.norm() > 0
    for direction in [exact, *directions]:
        projected = estimates @ direction
        error = projected.std() / math.sqrt(len(estimates))
        assert (projected.mean() - exact @ direction).abs() < 4.5 * error + 1e-5
    error = (estimates @ exact).std() / math.sqrt(len(estimates))
    assert exact @ exact > 4 * error  # enough to tell a missing step or a wrong sign
    return exact


@pytest.mark.parametrize("law", LAWS)
def test_the_mean_of_the_gradient_is_that_of_the_expected_reward(law, monkeypatch):
    """With a law that draws nothing: of the sum, over steps, of the expected reward where that step alone explores."""
    monkeypatch.setattr(reward, "CORRECTNESS", 0.0)
    steps, bias = 3, 1.5 if law == "regret" else 0.0
    clean = [RIGHT] * 4
    objective = objective_of(needs_the_first(0.58), law, num_chains=64, max_denoising_steps=steps, speed_exponent=2.0)
    monkeypatch.setattr(objective, "_budget", lambda draws: (steps, bias))
    count = 120 if law in ("non_empty", "regret") else 40
    check_gradient(objective, lambda canvas: canvas == clean, batch_of(12, clean), bias, count)


@pytest.mark.parametrize("law", ["non_empty", "regret"])
def test_so_it_is_with_a_judge_of_several_right_responses(law, monkeypatch):
    """What the published response earns is something else, and no loss of correctness has a part in it."""
    steps, bias, clean = 3, 0.0 if law != "regret" else 0.5, [RIGHT] * 3
    options = {"num_chains": 32, "max_denoising_steps": steps, "is_right": agree}
    objective = objective_of(needs_to_agree, law, **options)
    monkeypatch.setattr(objective, "_budget", lambda draws: (steps, bias))
    batch = {**batch_of(12, clean), "answer": torch.full((12, 1), RIGHT)}
    found = check_gradient(objective, lambda canvas: canvas[0] == canvas[1], batch, bias, 60)
    of_one = Enumeration(objective, lambda canvas: canvas == clean, bias)
    explores = ({1}, {2}) if law == "regret" else ({1, 2},)
    value = sum(of_one.value([MASK] * 3, steps, 0, numbers) for numbers in explores)
    assert (gradient(value, objective) - found).norm() > 0.2 * found.norm()


@pytest.mark.parametrize("judged", [False, True])
def test_so_it_is_where_tokens_are_drawn(judged, monkeypatch):
    """At the step that explores each of the K draws its own, and each decoding behind it too."""
    monkeypatch.setattr(reward, "CORRECTNESS", 0.0)
    steps, bias, clean = 3, 0.5, [RIGHT] * 3
    options = {"num_chains": 32, "max_denoising_steps": steps, "is_right": agree if judged else None}
    objective = objective_of(needs_to_agree, "regret", temperature=0.7, **options)
    monkeypatch.setattr(objective, "_budget", lambda draws: (steps, bias))
    batch = {**batch_of(12, clean), "answer": torch.full((12, 1), RIGHT)}
    is_right = (lambda c: c[0] == c[1] and c[2] == RIGHT) if judged else (lambda c: c == clean)
    found = check_gradient(objective, is_right, batch, bias, 100)
    objective.temperature = 0.0
    greedy = Enumeration(objective, is_right, bias)
    value = sum(greedy.value([MASK] * 3, steps, 0, numbers) for numbers in ({1}, {2}))
    assert (gradient(value, objective) - found).norm() > 0.2 * found.norm()


@pytest.mark.parametrize(("law", "eos_token_id"), [("regret", None), ("count", None), ("count", EOS)])
def test_a_judge_that_wants_the_published_response_changes_nothing(law, eos_token_id, monkeypatch):
    """But the denoiser calls: every explored response is decoded. Draw for draw the same gradient, reward and NFE."""
    monkeypatch.setattr(reward, "CORRECTNESS", 0.0)
    monkeypatch.setattr(RewardObjective, "_budget", lambda self, draws: (4, 0.5 if law == "regret" else 0.0))
    clean = [RIGHT, RIGHT, EOS, EOS]

    def script(_, canvas):
        known = canvas[0] == RIGHT
        return [(RIGHT, 0.7), (RIGHT, 0.8) if known else (WRONG, 0.58), (EOS, 0.6), (EOS if known else WRONG, 0.55)]

    def published(tokens: Tensor, answers: Tensor) -> Tensor:
        return (tokens == answers).all(-1)

    batch = batch_of(5, clean)
    found, calls = [], []
    for judge in (None, published):
        objective = objective_of(script, law, max_denoising_steps=4, eos_token_id=eos_token_id, is_right=judge)
        objective.denoiser.register_forward_hook(lambda module, inputs, output: calls[-1].append(len(inputs[0])))
        given = {} if judge is None else {"answer": batch["clean"]}
        calls.append([])
        found.append([objective(**batch, **given, seeds=seeds_of(0, n, first=0, rows=5)) for n in range(12)])
        found[-1] = [(gradient(out.pop("loss"), objective), *out.values()) for out in found[-1]]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert sum(step[0].norm() > 0 for step in found[0]) > 3
    assert sum(map(sum, calls[:1])) < sum(map(sum, calls[1:]))


@pytest.mark.parametrize(("law", "temperature"), [("regret", 0.0), ("regret", 1.0), ("non_empty", 0.0), ("count", 0.0)])
def test_a_row_is_the_same_in_whatever_batch(law, temperature, monkeypatch):
    """Rows that need more steps than others take no numbers from them: of two halves the mean is that of the whole."""
    monkeypatch.setattr(reward, "CORRECTNESS", 0.0)
    monkeypatch.setattr(RewardObjective, "_budget", lambda self, draws: (5, 0.5 if law == "regret" else 0.0))

    def script(number, canvas):
        if number == 7:  # one step
            return [(RIGHT, 0.999)] * 4
        return needs_the_first(0.58)(number, canvas)

    objective = objective_of(script, law, temperature=temperature)
    batch = batch_of(6, [RIGHT] * 4)
    batch["input_ids"][:3] = 7
    moved = 0
    for number in range(8):
        seeds, found = seeds_of(0, number, first=0, rows=6), []
        for rows in (slice(None), slice(3), slice(3, None)):
            out = objective(**{name: value[rows] for name, value in batch.items()}, seeds=seeds[rows])
            found.append((gradient(out.pop("loss"), objective), *out.values()))
        for whole, first, second in zip(*found, strict=True):
            torch.testing.assert_close(whole, (first + second) / 2)
        moved += found[0][0].norm() > 0
    assert moved > 2


def test_what_is_judged_has_an_end_and_its_own_answer():
    """No masks, nothing behind the first EOS, what is given as it was, and the answer of the row itself."""
    judgements = []

    def judge(tokens: Tensor, answers: Tensor) -> Tensor:
        judgements.append((tokens.tolist(), answers.tolist()))
        return tokens[:, 0] == answers[:, 0]

    def script(number, canvas):
        """Rows are done at different steps, and say different things."""
        said = RIGHT if number == 5 else OTHER
        return [(said, 0.9), (RIGHT, 0.6 if number == 5 else 0.99), (WRONG, 0.8), (RIGHT, 0.95), (OTHER, 0.97)]

    objective = objective_of(script, "regret", max_denoising_steps=4, eos_token_id=WRONG, is_right=judge)
    prompt = torch.tensor([[1, 7], [1, 5], [1, 7], [1, 5]])
    rights = torch.where(prompt[:, 1:] == 5, RIGHT, OTHER)
    batch = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "clean": torch.full((4, 5), RIGHT)}
    batch["given"] = torch.tensor([[False, True, False, False, False]] * 4)
    batch["clean"][:, 1] = torch.tensor([OTHER, RIGHT, RIGHT, OTHER])
    for number in range(12):
        out = objective(**batch, answer=rights, seeds=seeds_of(0, number, first=0, rows=4))
        assert out["right"] == 1
    expected = [
        [right, second, WRONG, WRONG, WRONG]
        for right, second in zip(rights[:, 0].tolist(), [OTHER, RIGHT, RIGHT, OTHER], strict=True)
    ]
    seen = [row for tokens, _ in judgements for row in tokens]
    assert len(seen) > 4 * 12
    assert all(row in expected for row in seen)
    for tokens, answers in judgements:
        # of two that are said beside the same, the prompt tells them apart
        assert [row[:1] for row in tokens] == answers


def test_what_is_explored_is_judged_by_the_answer_of_its_row_where_others_have_finished(monkeypatch):
    def script(number, canvas):
        """The first row is done in a step, the second one says something else, a word a step."""
        return [(RIGHT, 0.999)] * 3 if number == 7 else [(WRONG, 0.9), (WRONG, 0.8), (WRONG, 0.7)]

    objective = objective_of(
        script, "regret", trained=False, is_right=lambda tokens, answers: tokens[:, 0] == answers[:, 0]
    )
    monkeypatch.setattr(objective, "_budget", lambda draws: (3, 0.0))
    monkeypatch.setattr(Draws, "integer", lambda self, low, high: low)  # the second step explores
    batch = batch_of(2, [RIGHT] * 3)
    batch["input_ids"][0] = 7
    out = objective(**batch, answer=torch.tensor([[RIGHT], [WRONG]]))
    assert out["right"] == 1
    # of two rows one is explored, right with each draw, in two calls or three of three
    assert 1 / 3 <= 2 * out["reward"] <= 2 / 3


@pytest.mark.parametrize("end", [None, 1])
def test_what_a_judged_response_takes(end, monkeypatch):
    """The calls of its own: one for each position up to its end that was not explored. The published one ends later."""
    judged = objective_of(
        lambda _, canvas: [(RIGHT if i == end else WRONG, 0.9 - 0.1 * i) for i in range(3)],
        "regret",
        trained=False,
        eos_token_id=None if end is None else RIGHT,
        is_right=lambda tokens, answers: (tokens[:, :1] == answers).all(-1),
    )
    # the second position would cost 0.6, more than the bound: one is taken; the first step explores
    monkeypatch.setattr(judged, "_budget", lambda draws: (3, 0.0))
    monkeypatch.setattr(Draws, "integer", lambda self, low, high: high)
    sets, law_of = [], judged.scorer.exploring_law

    def exploring(*args, **kwargs):
        law = law_of(*args, **kwargs)
        draw = law.draw
        law.draw = lambda uniform: sets.append(draw(uniform)) or sets[-1]
        return law

    monkeypatch.setattr(judged.scorer, "exploring_law", exploring)
    out = judged(**batch_of(16, [OTHER] * 3), answer=torch.full((16, 1), WRONG))
    length = 3 if end is None else end + 1
    sizes = sets[0].sum(-1).float()
    assert set(sizes.flatten().tolist()) == set(range(1, length + 1))
    assert out["reward"].item() == pytest.approx((1 - (length - sizes) / 3).mean().item())
    assert out["nfe"] == length
    assert out["right"] == 1
    assert "exact" not in out
    judged.speed_exponent = 0.0  # all earn the same, and no other loss has a part
    assert judged(**batch_of(16, [OTHER] * 3), answer=torch.full((16, 1), WRONG))["loss"] == 0


def test_a_judged_response_is_explored_up_to_where_it_ends_as_it_looks(monkeypatch):
    """The published one may end elsewhere. What stands on the canvas counts, and what is most likely for the rest."""

    def script(_, canvas):
        return [(RIGHT, 0.6), (RIGHT, 0.7), (WRONG, 0.99), (WRONG, 0.9), (RIGHT, 0.5)]

    objective = objective_of(
        script,
        "regret",
        max_denoising_steps=3,
        eos_token_id=WRONG,
        trained=False,
        is_right=lambda tokens, answers: tokens[:, 0] == RIGHT,
    )
    monkeypatch.setattr(objective, "_budget", lambda draws: (3, -20.0))
    places, law_of = [], objective.scorer.exploring_law

    def exploring(step, values, *, bias, where):
        places.append((step.masked.tolist(), where.tolist()))
        return law_of(step, values, bias=bias, where=where)

    monkeypatch.setattr(objective.scorer, "exploring_law", exploring)
    for number in range(8):
        seeds = seeds_of(0, number, first=0, rows=1)
        objective(**batch_of(1, [RIGHT] * 5), answer=torch.zeros(1, 1), seeds=seeds)
    masked, where = zip(*places, strict=True)
    assert where == ([[True, True, True, False, False]],) * 8
    assert {tuple(rows[0]) for rows in masked} == {(True,) * 5, (True, True, False, True, True)}


def test_a_task_judges_what_is_trained_on_it(tmp_path, monkeypatch):
    """Puzzles with many solutions: with the step budget of generation and no bias, the share of an evaluation."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(RewardObjective, "_budget", lambda self, draws: (36, 0.0))
    task, tokenizer = TASKS["sudoku"], load_tokenizer(EXAMPLES / "sudoku-denoiser")
    rows = task.load(tokenizer, Source(split="train", count=16, canvas_length=36))
    measured = {}
    for name, is_right in (("task", task.is_right), ("exact", None)):
        torch.manual_seed(0)
        model = load_denoiser(EXAMPLES / "sudoku-denoiser")
        trainer = OrderTrainer(
            model=model,
            scorer=OrderScorer.for_denoiser(
                Denoiser(model, mask_token_id=tokenizer.mask_token_id), law="regret", bound=2.0, hidden_size=8
            ),
            args=arguments(
                tmp_path / name, objective="reward", canvas_length=36, per_device_eval_batch_size=16, max_steps=2
            ),
            processing_class=tokenizer,
            train_dataset=rows,
            eval_dataset=rows,
            compute_metrics=AnswerMetrics(tokenizer, task.is_right),
            is_right=is_right,
        )
        measured[name] = trainer.evaluate()
        trainer.train()
        logged = [log for log in trainer.state.log_history if "reward" in log]
        assert len(logged) == 2
        assert all(("right" if is_right else "exact") in log for log in logged)
    judged, exact = measured["task"], measured["exact"]
    assert 0 < judged["eval_right"] == judged["eval_accuracy"] < 1
    assert judged["eval_nfe"] == judged["eval_generated_nfe"] == exact["eval_nfe"]
    assert exact["eval_exact"] == exact["eval_same"] < exact["eval_accuracy"]
    assert exact["eval_reward"] < judged["eval_reward"]


def test_a_judge_needs_answers():
    objective = objective_of(needs_to_agree, "regret", is_right=agree)
    with pytest.raises(ValueError, match=r"answer must be given where responses are judged .*with_answers=True"):
        objective(**batch_of(2, [RIGHT] * 3))


def test_it_learns_not_to_unmask_at_once_what_is_wrong_together(monkeypatch):
    """Two calls are enough for everyone who leaves the second token for the last; confidence takes it first."""
    monkeypatch.setattr(reward, "BIASES", (0.0, 4.0))
    objective = objective_of(needs_the_first(0.9), "regret", trained=False, max_denoising_steps=2)
    batch = batch_of(8, [RIGHT] * 4)
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-2)

    def exact() -> float:
        return sum(objective(**batch)["exact"].item() for _ in range(20)) / 20

    before = exact()
    for _ in range(60):
        optimizer.zero_grad()
        objective(**batch)["loss"].backward()
        optimizer.step()
    print(before, exact())
    assert before == 0
    assert exact() == 1


def test_a_response_ends_with_its_first_eos():
    """What the denoiser says behind it is of no account, and nothing is explored there."""
    clean = [RIGHT, EOS, EOS, EOS]
    objective = objective_of(
        lambda _, canvas: [(RIGHT, 0.9), (EOS, 0.8), (WRONG, 0.9), (WRONG, 0.99)],
        "regret",
        max_denoising_steps=2,
        eos_token_id=EOS,
    )
    outputs = objective(**batch_of(4, clean))
    assert outputs["exact"] == 1
    assert outputs["reward"] > 0.9


def test_rewards_and_measurements(monkeypatch):
    """Everything right whatever is drawn: the reward is what speed leaves of 1, and the loss that of correctness."""
    objective = objective_of(lambda _, canvas: [(RIGHT, 0.9)] * 3, "regret", max_denoising_steps=2, trained=False)
    monkeypatch.setattr(objective, "_budget", lambda draws: (2, -1.0))
    outputs = objective(**batch_of(2, [RIGHT] * 3))
    # the second position would cost 0.3, more than the bound; the second call takes the rest
    assert outputs["nfe"] == 2
    assert outputs["exact"] == 1
    assert 2 / 3 - 1e-6 <= outputs["reward"] <= 1
    objective.speed_exponent = 0.0
    outputs = objective(**batch_of(2, [RIGHT] * 3))
    assert outputs["reward"] == 1
    assert outputs["loss"].item() == pytest.approx(0.1 * -math.log(0.9), rel=1e-4)


def test_what_is_given_stands_from_the_start():
    """With the first token the second is right, in one call."""
    objective = objective_of(needs_the_first(0.9), "regret", max_denoising_steps=2, trained=False)
    batch = batch_of(3, [RIGHT] * 4)
    assert objective(**batch)["exact"] == 0
    given = torch.tensor([[True, False, False, False]] * 3)
    assert objective(**batch, given=given)["exact"] == 1


def test_evaluating_needs_no_gradient():
    objective = objective_of(needs_the_first(0.9), "regret", max_denoising_steps=3)
    with torch.no_grad():
        outputs = objective(**batch_of(2, [RIGHT] * 4))
    assert not outputs["loss"].requires_grad
    assert outputs["loss"].isfinite()


def test_budgets_are_drawn_from_two_up(monkeypatch):
    objective = objective_of(needs_the_first(0.9), "regret", max_denoising_steps=5)
    torch.manual_seed(0)
    draws = Draws(None, rows=1, device=torch.device("cpu"))
    drawn = [objective._budget(draws) for _ in range(600)]
    counts = [sum(steps == number for steps, _ in drawn) for number in range(2, 6)]
    assert sum(counts) == 600
    assert counts == sorted(counts, reverse=True)  # small ones more often
    assert counts[-1] > 40
    for steps, bias in drawn:
        assert -0.1 * steps <= bias <= 7.0 / steps
    random = objective_of(needs_the_first(0.9), "non_empty", max_denoising_steps=5)
    assert random._budget(draws) == (5, 0.0)


def test_a_draft_is_decoded_as_the_whole_is():
    """From the canvas behind any step on, with the steps that are left."""
    objective = objective_of(needs_the_first(0.9), "regret", max_denoising_steps=3)
    sampler = LearnedOrderSampler(scorer=objective.scorer, bias=-9.0)
    prompt = torch.full((2, 2), 5)
    whole = decode(objective.denoiser, prompt, sampler=sampler, max_new_tokens=4, max_denoising_steps=3)
    assert whole.nfe.tolist() == [3, 3]
    for number in (1, 2):
        draft = whole.sequences[:, 2:].masked_fill(whole.order > number, Scripted.mask_token_id)
        rest = decode(objective.denoiser, prompt, sampler=sampler, draft=draft, max_denoising_steps=3 - number)
        assert rest.sequences.tolist() == whole.sequences.tolist()
        assert rest.nfe.tolist() == [3 - number] * 2
        assert rest.order.tolist() == (whole.order - number).clamp(min=0).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "regret", "max_denoising_steps": 1}, "max_denoising_steps must be 2 or more, got 1"),
        ({"law": "regret", "num_chains": 1}, "num_chains must be 2 or more, got 1"),
        ({"law": "regret", "speed_exponent": -1.0}, r"speed_exponent must be 0 or more, got -1\.0"),
        ({"law": "regret", "temperature": -1.0}, r"temperature must be a finite number, 0 or more, got -1\.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        objective_of(needs_the_first(0.9), trained=False, **options)
