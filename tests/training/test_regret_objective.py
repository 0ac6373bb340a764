"""What a batch teaches the regret law: by hand on scripted denoisers, and problems that confidence gets wrong."""

import math
from collections.abc import Sequence

import pytest
import torch
from problems import ExactPairs, ExactShuffle, Scripted

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.predictions import Predictions
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives import regret
from hf_learned_order.training.objectives.regret import RegretObjective
from hf_learned_order.training.objectives.updates import seeds_of

RIGHT, WRONG = Scripted.RIGHT, Scripted.WRONG
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "denoiser_hidden_size": 0}


def objective_of(script, *, law="regret", max_denoising_steps=3, **options) -> RegretObjective:
    torch.manual_seed(0)
    scorer = OrderScorer(OrderScorerConfig(law=law, **SMALL))
    return RegretObjective(Scripted(script), scorer, max_denoising_steps=max_denoising_steps, **options)


def batch_of(rows: int, length: int) -> dict[str, torch.Tensor]:
    prompt = torch.full((rows, 2), 5)
    return {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "clean": torch.full((rows, length), RIGHT),
    }


def slowly(monkeypatch) -> None:
    """One position a step, as many steps as there may be."""
    monkeypatch.setattr(regret, "BIASES", (-9.0, -9.0))
    monkeypatch.setattr(regret.Draws, "integer", lambda self, low, high: high)


def fixed(*said):
    return lambda _, canvas: list(said)


def entropies(*probabilities: float) -> list[float]:
    return [-math.log(p) for p in probabilities]


def test_each_masked_position_of_each_step_is_observed(monkeypatch):
    slowly(monkeypatch)
    objective = objective_of(fixed((RIGHT, 0.9), (RIGHT, 0.6), (WRONG, 0.8), (RIGHT, 0.7)))
    outputs = objective(**batch_of(2, 4))
    # 0.9 goes first, then the wrong one; the third step is the last and leaves nothing to choose
    expected = [*entropies(0.9, 0.6, 0.2, 0.7), *entropies(0.6, 0.2, 0.7)]
    assert outputs["doubt_loss"].item() == pytest.approx(sum(expected) / 7, rel=1e-4)
    assert outputs["exact"] == 0
    assert outputs["nfe"] == 3
    assert outputs["observed"].item() == pytest.approx(0, abs=1e-6)  # what is said never changes
    assert outputs["loss"].item() == pytest.approx((outputs["doubt_loss"] + outputs["pair_loss"]).item())


def test_nothing_is_learned_behind_a_mistake(monkeypatch):
    slowly(monkeypatch)
    objective = objective_of(fixed((RIGHT, 0.9), (RIGHT, 0.6), (WRONG, 0.95), (RIGHT, 0.7)))
    expected = entropies(0.9, 0.6, 0.05, 0.7)
    assert objective(**batch_of(1, 4))["doubt_loss"].item() == pytest.approx(sum(expected) / 4, rel=1e-4)


def test_rows_that_finish_take_their_responses_along(monkeypatch):
    slowly(monkeypatch)
    objective = objective_of(
        lambda prompt, canvas: [(RIGHT, 0.9), (prompt, 0.8), (RIGHT, 0.7), (RIGHT, 0.6)], max_denoising_steps=4
    )
    objective.eos_token_id = WRONG
    batch = batch_of(2, 4)
    batch["input_ids"][:, -1] = torch.tensor([WRONG, RIGHT])  # the first row ends at its second place
    batch["clean"][0, 1:] = WRONG
    first = [*entropies(0.9, 0.8, 0.3, 0.4), *entropies(0.8, 0.3, 0.4)]
    second = [*entropies(0.9, 0.8, 0.7, 0.6), *entropies(0.8, 0.7, 0.6), *entropies(0.7, 0.6)]
    outputs = objective(**batch)
    assert outputs["doubt_loss"].item() == pytest.approx(sum(first + second) / 16, rel=1e-4)
    assert outputs["nfe"] == 3


def test_what_is_given_is_not_observed(monkeypatch):
    slowly(monkeypatch)
    said = [(RIGHT, 0.9), (RIGHT, 0.6), (WRONG, 0.8)]  # behind the prompt, which infilling has in its canvas
    objective = objective_of(lambda _, canvas: [(RIGHT, 0.5)] * (len(canvas) - 3) + said, max_denoising_steps=2)
    outputs = objective(**batch_of(1, 3), given=torch.tensor([[False, False, True]]))
    assert outputs["doubt_loss"].item() == pytest.approx(sum(entropies(0.9, 0.6)) / 2, rel=1e-4)


def softened(probabilities: Sequence[float]) -> list[float]:
    roots = [p**0.5 for p in probabilities]
    return [root / sum(roots) for root in roots]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.6, 0.4], [0.9, 0.1], 0.0),  # surer of the same token
        ([0.5, 0.5], [0.4, 0.6], math.log(0.6 / 0.4)),  # as good as another one, and nearly so afterwards
        ([0.9, 0.1], [1e-9, 1 - 1e-9], regret.LARGEST_REGRET),  # ruled out
    ],
)
def test_regret_of_what_was_taken(before, after, expected):
    of = [Predictions.from_logits(torch.tensor([[each]]).log()) for each in (before, after)]
    assert regret.regret(*of).item() == pytest.approx(expected, abs=1e-5)


BEFORE, AFTER = (0.5, 0.4, 0.1), (0.3, 0.6, 0.1)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.0, math.log(0.6 / 0.3)),
        (0.005, math.log(0.6 / 0.3)),  # the limit
        (1.0, 0.5 * math.log(0.5 / 0.3)),  # the second token has gained, the third is as likely as before
        (2.0, 2 * sum(p * max(0.0, math.log(p / q)) for p, q in zip(softened(BEFORE), softened(AFTER), strict=True))),
    ],
)
def test_regret_of_what_is_drawn(temperature, expected):
    """The second position was not asked about, nor is the last token ever drawn: it is the mask token."""
    where = {"at": (torch.tensor([0]), torch.tensor([0])), "shape": (1, 2)}
    before, after = (
        Predictions.from_logits(torch.tensor([[*p, 5.0]]).log(), mask_token_id=3, **where) for p in (BEFORE, AFTER)
    )
    found = regret.regret(before, after, temperature)
    assert found[0, 0].item() == pytest.approx(expected, abs=1e-4)
    assert found[0, 1].isnan()


@pytest.mark.parametrize(
    ("denoiser", "temperature", "expected"),
    [
        (ExactShuffle(2), 0.0, regret.LARGEST_REGRET),  # both places would take the same word, and it is there once
        (ExactPairs(1), 0.0, 0.0),  # both places would take the same bit, and it is there twice
        (
            ExactPairs(1),
            1.0,
            regret.LARGEST_REGRET / 2,
        ),  # each would draw a bit of its own: the wrong one half the time
    ],
)
def test_pairs_are_fitted_to_their_regret(denoiser, temperature, expected):
    torch.manual_seed(0)
    sizes = {"denoiser_hidden_size": denoiser.hidden_size, "vocab_size": denoiser.vocab_size}
    objective = RegretObjective(
        denoiser,
        OrderScorer(OrderScorerConfig(law="regret", **{**SMALL, **sizes})),
        max_denoising_steps=2,
        temperature=temperature,
    )
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(0)
    for update in range(100):
        prompt, clean = denoiser.examples(16, generator)
        outputs = objective(prompt, torch.ones_like(prompt), clean, seeds=seeds_of(0, update, first=0, rows=16))
        optimizer.zero_grad()
        outputs["pair_loss"].backward()
        optimizer.step()
    assert outputs["observed"].item() == pytest.approx(expected, abs=0.01)
    assert outputs["predicted"].item() == pytest.approx(expected, abs=0.5)


def test_learns_to_wait_where_confidence_does_not():
    """The second token is said with 0.95 and wrong until the first, said with 0.9, is there."""

    def script(_, canvas):
        return [(RIGHT, 0.9), (RIGHT if canvas[0] == RIGHT else WRONG, 0.95)]

    objective = objective_of(script, max_denoising_steps=2)
    optimizer = torch.optim.AdamW(objective.scorer.parameters(), lr=1e-2)
    before, losses = exact(objective), []
    for _ in range(300):
        outputs = objective(**batch_of(4, 2))
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        losses.append(outputs["doubt_loss"].item())
    assert before == 0.0
    assert exact(objective) == 1.0
    assert losses[-1] < 0.1 * losses[0]


def exact(objective: RegretObjective) -> float:
    batch = batch_of(4, 2)
    sampler = LearnedOrderSampler(scorer=objective.scorer)
    output = decode(objective.denoiser, batch["input_ids"], sampler=sampler, max_new_tokens=2)
    return (output.sequences[:, 2:] == batch["clean"]).all(-1).float().mean().item()


def test_another_law_is_refused():
    with pytest.raises(ValueError, match=r"law must be \"regret\", got 'non_empty'"):
        objective_of(fixed((RIGHT, 0.9)), law="non_empty")


def test_one_step_is_refused():
    with pytest.raises(ValueError, match=r"^max_denoising_steps must be 2 or more, got 1: one step leaves nothing"):
        objective_of(fixed((RIGHT, 0.9)), max_denoising_steps=1)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match=f"^temperature must be a finite number, 0 or more, got {temperature}"):
        objective_of(fixed((RIGHT, 0.9)), temperature=temperature)


@pytest.mark.parametrize("least", [1, 4])
def test_smallest_budget(least):
    with pytest.raises(ValueError, match=rf"min_denoising_steps must be 2 or more and at most .*, got {least} and 3"):
        objective_of(fixed((RIGHT, 0.9)), max_denoising_steps=3, min_denoising_steps=least)


def test_a_canvas_of_one_position_is_refused():
    with pytest.raises(ValueError, match="clean must have 2 or more positions, got 1: one leaves nothing to choose"):
        objective_of(fixed((RIGHT, 0.9)))(**batch_of(2, 1))
