"""How many, then which: the parts that `test_distributions.py` does not see. Counts, limits, large canvases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import conditional_bernoulli, counted, iid, kl, subsets
from strategies import as_row, rows
from torch.distributions import kl_divergence

from hf_learned_order.orders.laws.base import ancestral_logit
from hf_learned_order.orders.laws.counted import CountedBernoulli, log_binomial
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, tolerance=2e-5):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=torch.float32), rtol=tolerance, atol=tolerance)


@given(batch=rows(), seed=st.integers(0, 2**32))
def test_any_counts(batch, seed):
    scores, masked = batch
    counts = 2 * randn(seed, *masked.shape)
    law, everything = CountedBernoulli(counts, scores, masked), subsets(list(range(masked.shape[1])))
    values = torch.stack([as_row(s, masked.shape[1]) for s in everything])[:, None].expand(-1, *masked.shape)
    for row, probabilities in enumerate(law.log_prob(values).exp().unbind(1)):
        expected = counted(counts[row].tolist(), conditional_bernoulli, scores[row].tolist(), masked[row].tolist())
        close(probabilities, [expected.get(s, 0.0) for s in everything])
        sizes = [math.fsum(p for s, p in expected.items() if len(s) == k) for k in range(masked.shape[1] + 1)]
        close(law.count_probs[row], sizes)


@given(batch=rows(), seed=st.integers(0, 2**32))
def test_kl_of_any_two(batch, seed):
    scores, masked = batch
    (q_counts, p_counts, p_scores), expected = randn(seed, 3, *masked.shape), []
    for row, allowed in enumerate(masked.tolist()):
        q = counted(q_counts[row].tolist(), conditional_bernoulli, scores[row].tolist(), allowed)
        p = counted(p_counts[row].tolist(), conditional_bernoulli, p_scores[row].tolist(), allowed)
        expected.append(kl(q, p))
    q, p = CountedBernoulli(q_counts, scores, masked), CountedBernoulli(p_counts, p_scores, masked)
    close(kl_divergence(q, p), expected)


@pytest.mark.parametrize("steps_left", [2, 3, 8])
def test_equal_scores_and_binomial_counts_are_ancestral_sampling(steps_left):
    masked = [True, False, True, True, True]
    logit = ancestral_logit(torch.tensor(float(steps_left)))
    law = CountedBernoulli(log_binomial(torch.tensor(masked), logit), torch.full((5,), 3.0), torch.tensor(masked))
    expected = iid(masked, steps_left)
    for subset in subsets([0, 2, 3, 4]):
        close(law.log_prob(as_row(subset, 5)).exp(), expected.get(subset, 0.0))


def test_with_one_step_left_the_binomial_takes_everything():
    masked = torch.tensor([[True, False, True, True]])
    law = CountedBernoulli(log_binomial(masked, ancestral_logit(torch.tensor(1.0))), torch.zeros(1, 4), masked)
    close(law.log_prob(masked), [0.0])
    assert law.sample((20,)).eq(masked).all()


def test_the_polynomials_own_weights_give_back_independent_bernoullis():
    scores, masked = randn(0, 3, 9).float(), torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    weights = CountedBernoulli(torch.zeros(3, 9), scores, masked).log_polynomials[:, 1:]
    law, free = CountedBernoulli(weights, scores, masked), NonEmptyBernoulli(scores, masked)
    value = free.sample((50,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(law.log_prob(value), free.log_prob(value), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(law.mean, free.mean)
    torch.testing.assert_close(law.entropy(), free.entropy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_gradient_of_the_counts(size):
    """d log w_k / d logit_j = [j = k] - w_j."""
    counts = randn(0, 6).float().requires_grad_()
    law = CountedBernoulli(counts, randn(1, 6).float(), torch.ones(6, dtype=torch.bool))
    law.log_prob(torch.arange(6) < size).backward()
    expected = torch.eye(6)[size - 1] - law.count_probs[1:]
    close(counts.grad, expected.detach(), 1e-5)


def test_a_thousand_positions_against_the_sequential_recursion():
    """float64, e_k(S + i) = e_k(S) + exp(s^i) e_{k-1}(S), one position at a time."""
    scores = randn(0, 1024) * 3
    expected = torch.full((1025,), -torch.inf, dtype=torch.float64)
    expected[0] = 0.0
    for score in scores:
        expected[1:] = torch.logaddexp(expected[1:], expected[:-1] + score)
    law = CountedBernoulli(torch.zeros(1024), scores.float(), torch.ones(1024, dtype=torch.bool))
    torch.testing.assert_close(law.log_polynomials.double(), expected, rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(law.mean.sum(), (law.count_probs * torch.arange(1025)).sum(), rtol=1e-4, atol=0)


def test_scores_beyond_sixty():
    masked, value = torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, False])
    beyond, at = (
        CountedBernoulli(torch.zeros(4), torch.tensor(s), masked)
        for s in ([torch.inf, 61.0, -70.0, 0], [60.0, 60, -60, 0])
    )
    assert beyond.log_prob(value).equal(at.log_prob(value))


def test_count_logits_of_another_shape():
    with pytest.raises(ValueError, match=r"count_logits must have the shape of masked \(2, 3\), got \(2, 4\)"):
        CountedBernoulli(torch.zeros(2, 4), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
