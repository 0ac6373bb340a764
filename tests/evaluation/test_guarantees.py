"""A risk that is kept: the statistics against sums by hand and simulations, and calibration of a real rule."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_learned_order.evaluation.guarantees import Guarantee, check_prompts, kept, prompts_needed
from hf_learned_order.orders.guarantees import read_guarantees, write_guarantees

FOUND = Guarantee(
    sampler="learned_order",
    options={"bias": -1.5},
    max_denoising_steps=10,
    task="equations",
    risk=0.02,
    confidence=0.9,
    method="learn_then_test",
    against="top_prob",
    prompts=400,
    bad=3,
    nfe=5.25,
    canvas_length=64,
)


def losses(*counts: int, prompts: int) -> torch.Tensor:
    """bool [settings, prompts], so many bad responses at each setting, the first prompts'."""
    return torch.arange(prompts) < torch.tensor(counts)[:, None]


def tail(bad: int, prompts: int, risk: float) -> float:
    """P(Bin(prompts, risk) <= bad)."""
    return math.fsum(math.comb(prompts, k) * risk**k * (1 - risk) ** (prompts - k) for k in range(bad + 1))


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    risk=st.floats(0.1, 0.6),
    confidence=st.floats(0.5, 0.95),
)
def test_learn_then_test_by_hand(counts, risk, confidence):
    expected = 0
    while expected < len(counts) and tail(counts[expected], 60, risk) <= 1 - confidence:
        expected += 1
    assert kept(losses(*counts, prompts=60), risk, confidence) == expected


@given(
    bad=st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=1, max_size=5), risk=st.floats(0.06, 0.9)
)
def test_conformal_risk_control_by_hand(bad, risk):
    expected, ever = 0, [False] * 20
    for row in bad:
        ever = [a or b for a, b in zip(ever, row, strict=True)]
        if (sum(ever) + 1) / 21 > risk:
            break
        expected += 1
    assert kept(torch.tensor(bad), risk, None) == expected


@pytest.mark.parametrize(
    ("risk", "confidence", "needed"), [(0.02, 0.9, 114), (0.05, 0.9, 45), (0.02, None, 49), (0.5, 0.5, 1)]
)
def test_prompts_needed(risk, confidence, needed):
    assert prompts_needed(risk, confidence) == needed
    assert kept(losses(0, prompts=needed), risk, confidence) == 1
    if needed > 1:
        with pytest.raises(ValueError, match=f"prompts must be at least {needed} to promise a risk of {risk:g}"):
            kept(losses(0, prompts=needed - 1), risk, confidence)


def test_the_promise_is_kept():
    """1,000 times 120 prompts of a rule whose risk rises from .01 to .09: a risk above .05 is chosen 10 % of the times
    at most, the risk that conformal risk control chooses is at most .05 on average, and neither is far below.
    """
    generator = torch.Generator().manual_seed(0)
    risks = torch.linspace(0.01, 0.09, 9)
    broken, mean, speed = 0, 0.0, 0
    for _ in range(1000):
        bad = torch.rand(120, generator=generator) < risks[:, None]  # monotone: one number a prompt
        chosen = kept(bad, 0.05, 0.9)
        broken += chosen > 0 and risks[chosen - 1].item() > 0.05 + 1e-6
        speed += chosen
        on_average = kept(bad, 0.05, None)
        mean += risks[on_average - 1].item() / 1000 if on_average else 0.0
    assert broken <= 100
    assert 0.025 < mean <= 0.05
    assert speed > 1000


@pytest.mark.parametrize(
    ("risk", "confidence", "message"),
    [
        (0.0, 0.9, r"risk must be a number above 0 and below 1, got 0\.0"),
        (1, 0.9, "risk must be a number above 0 and below 1, got 1"),
        (True, 0.9, "risk must be a number above 0 and below 1, got True"),
        ("much", 0.9, "risk must be a number above 0 and below 1, got 'much'"),
        (0.1, 1.0, r"confidence must be a number above 0 and below 1, got 1\.0"),
    ],
)
def test_shares_are_checked(risk, confidence, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(1000, risk, confidence)


class TestSaved:
    def test_beside_other_settings(self, tmp_path):
        assert read_guarantees(tmp_path / "generation_config.json") == {}
        write_guarantees(tmp_path, {FOUND.name: FOUND.to_dict()}, max_denoising_steps=10)
        write_guarantees(tmp_path, {"other": FOUND.to_dict()}, max_denoising_steps=99)
        found = read_guarantees(tmp_path / "generation_config.json")
        assert found == {"equations@0.02": FOUND.to_dict(), "other": FOUND.to_dict()}
        assert json.loads((tmp_path / "generation_config.json").read_text())["max_denoising_steps"] == 10
        assert Guarantee(**found["other"]) == FOUND

    def test_a_damaged_one_is_named(self, tmp_path):
        (tmp_path / "generation_config.json").write_text('{"guarantees": {"a@0.1": {"sampler": "factor"}}}')
        with pytest.raises(
            ValueError, match=r"'a@0\.1' of its guarantees must have sampler, options, max_denoising_steps"
        ):
            read_guarantees(tmp_path / "generation_config.json")
        (tmp_path / "generation_config.json").write_text('{"guarantees": [1]}')
        with pytest.raises(ValueError, match="'guarantees' of its guarantees must have"):
            read_guarantees(tmp_path / "generation_config.json")
