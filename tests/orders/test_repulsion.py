"""Positions that change each other's chances: any A, any order of visiting, limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chi_square_excess, greedy_repulsive, repulsive, subsets
from strategies import as_row, counts, positions, rows

from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli
from hf_learned_order.orders.laws.repulsive import RepulsiveBernoulli


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got, expected, tolerance=2e-5):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=torch.float32), rtol=tolerance, atol=tolerance)


@given(batch=rows(), seed=st.integers(0, 2**32))
def test_every_subset(batch, seed):
    scores, masked = batch
    length = masked.shape[1]
    a, preference = 2 * randn(seed, *masked.shape, length), randn(seed, *masked.shape).round()
    law = RepulsiveBernoulli(scores, a, preference, masked)
    everything = subsets(list(range(length)))
    values = torch.stack([as_row(s, length) for s in everything])[:, None].expand(-1, *masked.shape)
    for row, probabilities in enumerate(law.log_prob(values).exp().unbind(1)):
        arguments = (scores[row].tolist(), a[row].tolist(), preference[row].tolist(), masked[row].tolist())
        expected = repulsive(*arguments)
        close(probabilities, [expected.get(s, 0.0) for s in everything])


@given(batch=rows(), seed=st.integers(0, 2**32))
def test_greedy(batch, seed):
    scores, masked = batch
    length = masked.shape[1]
    a, preference = 2 * randn(seed, *masked.shape, length), randn(seed, *masked.shape)
    got = RepulsiveBernoulli(scores, a, preference, masked).greedy()
    for row, taken in enumerate(map(positions, got)):
        arguments = (scores[row].tolist(), a[row].tolist(), preference[row].tolist(), masked[row].tolist())
        number, chosen = greedy_repulsive(*arguments)
        if abs(number % 1 - 0.5) > 1e-4:  # or rounding decides
            assert taken == frozenset(chosen[: max(1, round(number))])


def test_greedy_of_pairs_that_never_go_together():
    a = 50 * torch.eye(8).roll(4, 0)
    law = RepulsiveBernoulli(torch.zeros(8), a, torch.zeros(8), torch.ones(8, dtype=torch.bool))
    taken = positions(law.greedy())
    assert len(taken) == 3  # the first of a pair comes in at 1/2, the second where the first does not, at 1/4
    assert not any(i + 4 in taken for i in taken)


def test_greedy_of_positions_that_attract_one_another():
    law = RepulsiveBernoulli(torch.zeros(8), -50 * torch.ones(8, 8), torch.zeros(8), torch.ones(8, dtype=torch.bool))
    assert positions(law.greedy()) == set(range(7))  # 1/2, 3/4 and six times 1, by 1 - 2^-8: 7.28


@pytest.mark.parametrize("logits", [[0.0, 0.5, -1.0, 1.0], [-12.0, -11.0, -12.0, -12.5]])
def test_samples_in_an_order_of_their_own(logits):
    a, preference, masked = (4 * randn(3, 4, 4)).tolist(), [1.0, 3.0, 0.0, 2.0], [True, True, True, True]
    law = RepulsiveBernoulli(*(torch.tensor(x) for x in (logits, a, preference, masked)))
    sample = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert chi_square_excess(counts(sample), repulsive(logits, a, preference, masked)) < 5


def test_without_repulsion_it_is_the_non_empty_law():
    scores, masked = randn(0, 5, 7).float(), torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    law, free = RepulsiveBernoulli(scores, torch.zeros(5, 7, 7), scores, masked), NonEmptyBernoulli(scores, masked)
    value = free.sample((99,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(law.log_prob(value), free.log_prob(value))
    assert torch.equal(law.greedy(), free.greedy())


def test_not_both():
    """Two positions that never go together, and one that does not care."""
    a = torch.zeros(3, 3)
    a[0, 1] = a[1, 0] = 1e4
    sample = RepulsiveBernoulli(torch.zeros(3), a, torch.zeros(3), torch.ones(3, dtype=torch.bool)).sample((4000,))
    assert not (sample[:, 0] & sample[:, 1]).any()
    assert sample[:, :2].any(0).all()
    assert (sample[:, 2] & sample[:, :2].any(-1)).any()


def test_gradient_of_the_repulsion():
    """Only A_ij with j before i, j in the set and both masked; d log P / d A_ij = -(r_i - sigmoid(s^i - sum))."""
    a = torch.full((4, 4), 0.5, requires_grad=True)
    logits, masked = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([True, True, True, False])
    law = RepulsiveBernoulli(logits, a, torch.tensor([2.0, 3.0, 1.0, 9.0]), masked)  # visits 1, 0, 2
    law.log_prob(torch.tensor([True, True, False, False])).backward()
    expected = torch.zeros(4, 4)
    expected[0, 1] = -(1 - 1 / (1 + math.exp(-(0.1 - 0.5))))
    expected[2, 0] = expected[2, 1] = 1 / (1 + math.exp(-(0.3 - 1.0)))
    close(a.grad, expected, 1e-5)


def test_a_thousand_positions_with_huge_repulsion():
    generator = torch.Generator().manual_seed(0)
    scores, a = 1e4 * torch.randn(3, 1024, generator=generator), 1e4 * torch.randn(3, 1024, 1024, generator=generator)
    scores.requires_grad_()
    a.requires_grad_()
    masked = torch.rand(3, 1024, generator=generator) < torch.tensor([1.0, 0.5, 0.0])[:, None]
    law = RepulsiveBernoulli(scores, a, scores.detach(), masked)
    sample = law.sample(generator=generator)
    assert torch.equal(sample.any(-1), masked.any(-1))
    log_prob = law.log_prob(sample)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert scores.grad.isfinite().all()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mean", "entropy"])
def test_no_closed_forms(name):
    law = RepulsiveBernoulli(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(NotImplementedError):
        getattr(law, name)()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 3)), r"dependence must have shape \(2, 3, 3\), got \(2, 3\)"),
        (((2, 3, 3), (3,)), r"preference must have shape \(2, 3\), got \(3,\)"),
    ],
)
def test_shapes(shapes, message):
    a, preference = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        RepulsiveBernoulli(torch.zeros(2, 3), a, preference, torch.ones(2, 3, dtype=torch.bool))
