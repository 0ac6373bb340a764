import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import beliefs, chi_square_excess, divergence, quota
from strategies import MASK, VOCAB, rows, step_of

from hf_learned_order.denoisers import predictions
from hf_learned_order.denoisers.predictions import Predictions

LOGITS = torch.tensor([[[0.3, -1.0, 0.8, 5.0, 0.1]]])  # the mask token, 3, looks best


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 4)), seed=st.integers(0, 2**32), scale=st.floats(0, 30))
def test_beliefs(shape, seed, scale):
    logits = scale * torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(seed))
    got = Predictions.from_logits(logits, MASK)
    for b in range(shape[0]):
        for i in range(shape[1]):
            expected = beliefs(logits[b, i].tolist(), MASK)
            values = (got.log_probs[b, i].exp(), got.confidence[b, i], got.margin[b, i], got.entropy[b, i])
            for value, reference in zip(values, expected, strict=True):
                torch.testing.assert_close(value, torch.tensor(reference), rtol=1e-4, atol=2e-5)


@given(seed=st.integers(0, 2**32), scale=st.floats(0, 8))
def test_kl(seed, scale):
    logits = scale * torch.randn(2, 1, 3, VOCAB, generator=torch.Generator().manual_seed(seed))
    p, q = (Predictions.from_logits(x, MASK) for x in logits)
    got = p.kl(q.log_probs)
    for i in range(3):
        expected = divergence(p.log_probs[0, i].exp().tolist(), q.log_probs[0, i].exp().tolist())
        torch.testing.assert_close(got[0, i], torch.tensor(expected), rtol=1e-3, atol=1e-5)


def test_kl_at_its_limits():
    one, other = torch.full((2, 1, 1, VOCAB), -torch.inf)
    one[..., 0], other[..., [0, 1]] = 0.0, 0.0
    one, other = Predictions.from_logits(one, MASK), Predictions.from_logits(other, MASK)
    assert one.kl(one.log_probs).item() == 0.0
    assert one.kl(other.log_probs).item() == pytest.approx(math.log(2))
    assert other.kl(one.log_probs).item() == math.inf


def test_limits_of_certainty():
    sharp, flat = torch.tensor([0.0, 0.0, 90.0, 0.0, 0.0]), torch.zeros(VOCAB)
    got = Predictions.from_logits(torch.stack([sharp, flat])[None], MASK)
    torch.testing.assert_close(got.confidence, torch.tensor([[1.0, 0.25]]))
    torch.testing.assert_close(got.margin, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(got.entropy, torch.tensor([[0.0, math.log(4)]]))


def test_the_mask_token_is_impossible_however_likely():
    got = Predictions.from_logits(LOGITS, MASK)
    assert got.log_probs[0, 0, MASK] == -torch.inf
    draws = Predictions.from_logits(LOGITS.expand(2000, -1, -1), MASK).draw(temperature=50.0)
    assert MASK not in draws


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_beliefs_are_float32(dtype):
    got = Predictions.from_logits(LOGITS.to(dtype), MASK)
    assert {getattr(got, name).dtype for name in ("log_probs", "confidence", "margin", "entropy")} == {torch.float32}


@given(batch=rows(-1e4, 1e4))
def test_huge_logits(batch):
    scores, _ = batch
    logits = torch.stack([scores, -scores, scores / 2, scores, 0 * scores], -1).float().requires_grad_()
    got = Predictions.from_logits(logits, MASK)
    values = torch.stack([got.confidence, got.margin, got.entropy])
    assert values.isfinite().all()
    assert (got.entropy >= 0).all()
    values.sum().backward()
    assert logits.grad.isfinite().all()


def test_draw_at_temperature_zero_is_the_most_likely_token():
    assert Predictions.from_logits(LOGITS, MASK).draw().tolist() == [[2]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_law(temperature):
    predictions = Predictions.from_logits(LOGITS.expand(20_000, -1, -1), MASK)
    tokens = predictions.draw(temperature=temperature, generator=torch.Generator().manual_seed(0))
    counts = dict(enumerate(tokens.flatten().bincount(minlength=VOCAB).tolist()))
    law, *_ = beliefs((LOGITS[0, 0] / temperature).tolist(), MASK)
    assert chi_square_excess({t: n for t, n in counts.items() if n}, dict(enumerate(law))) < 5


def test_draws_are_repeatable():
    predictions = Predictions.from_logits(torch.zeros(3, 40, VOCAB), MASK)
    first, second, other = (
        predictions.draw(temperature=1.0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_log_prob_picks_the_token_at_its_position():
    logits = torch.randn(2, 3, VOCAB, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2], [4, MASK, 0]])
    got = Predictions.from_logits(logits, MASK).log_prob(tokens)
    for b in range(2):
        for i in range(3):
            expected = beliefs(logits[b, i].tolist(), MASK)[0][tokens[b, i]]
            torch.testing.assert_close(got[b, i].exp(), torch.tensor(expected))


def test_detach_leaves_the_values_and_the_original():
    logits = LOGITS.clone().requires_grad_()
    original = Predictions.from_logits(logits, MASK)
    detached = original.detach()
    for name in ("log_probs", "confidence", "margin", "entropy"):
        assert torch.equal(getattr(detached, name), getattr(original, name))
        assert getattr(original, name).requires_grad
        assert not getattr(detached, name).requires_grad


@given(batch=rows(), steps_left=st.integers(1, 9))
def test_quota(batch, steps_left):
    _, masked = batch
    step = step_of(torch.zeros(*masked.shape, VOCAB), masked, steps_left=steps_left)
    assert step.quota.tolist() == [[quota(row, steps_left)] for row in masked.tolist()]


class TestSomePositions:
    """Beliefs of positions by themselves are those of the same positions among all."""

    LOGITS = 3 * torch.randn(3, 7, VOCAB, generator=torch.Generator().manual_seed(1))
    ASKED = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) < 0.5

    def some(self, logits=LOGITS):
        at = self.ASKED.nonzero(as_tuple=True)
        return Predictions.from_logits(logits[at], MASK, at=at, shape=(3, 7))

    # one position a piece; several, the last one cut short; all at once
    @pytest.mark.parametrize("numbers", [1, 3 * VOCAB, 2**18])
    def test_as_among_all(self, numbers, monkeypatch):
        every, other = (Predictions.from_logits(x, MASK) for x in (self.LOGITS, self.LOGITS.flip(0)))
        tokens = torch.arange(21).view(3, 7) % VOCAB
        monkeypatch.setattr(predictions, "CPU_PIECE", numbers)
        some = self.some()
        for name in ("confidence", "margin", "entropy", "log_probs"):
            got = getattr(some, name)
            assert torch.equal(got[self.ASKED], getattr(every, name)[self.ASKED])
            assert got[~self.ASKED].isnan().all()
        for got, expected in (
            (some.log_prob(tokens), every.log_prob(tokens)),
            (some.kl(other.log_probs), every.kl(other.log_probs)),
        ):
            assert torch.equal(got[self.ASKED], expected[self.ASKED])
            assert got[~self.ASKED].isnan().all()
        assert torch.equal(some.tokens, every.tokens.masked_fill(~self.ASKED, 0))

    def test_pieces_do_not_change_a_draw(self, monkeypatch):
        whole = self.some().draw(temperature=1.0, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr(predictions, "CPU_PIECE", 2 * VOCAB)
        cut = self.some().draw(temperature=1.0, generator=torch.Generator().manual_seed(0))
        assert torch.equal(cut, whole)

    def test_draws_where_they_are_wanted(self):
        """At an endless temperature only the most likely token stays, where nothing is drawn."""
        some, among = self.some(), torch.tensor([1, 3])
        drawn = torch.stack([some.draw(among, temperature=1e6) for _ in range(100)])
        changed = (drawn != some.tokens).any(0).flatten()
        assert changed.nonzero().flatten().tolist() == some.index[among].tolist()

    def test_what_is_warped(self):
        """`warp` is told which positions its scores are of."""
        some, seen = self.some(), []

        def warp(scores, among):
            seen.extend(among.tolist())
            return torch.where(torch.arange(VOCAB) == among[:, None] % 3, 0.0, -torch.inf) + 0 * scores.nan_to_num()

        tokens = some.draw(torch.tensor([0, 2, 4]), temperature=1.0, warp=warp).flatten()
        assert seen == [0, 2, 4]
        assert tokens[some.index[[0, 2, 4]]].tolist() == [0, 2, 1]

    def test_the_first_of_equals(self):
        assert Predictions.from_logits(torch.zeros(1, 1, VOCAB), MASK).tokens.item() == 0
