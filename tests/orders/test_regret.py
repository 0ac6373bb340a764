"""The regret law: against enumeration, its limits, its gradient, and a scorer that has it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import bounded_regret, chi_square_excess, eligible, factor, random_regret, subsets
from strategies import as_row, counts, positions, rows

from hf_learned_order.orders.laws.regret import BoundedRegret, RandomRegret, packed, unpacked


def values_of(scores: torch.Tensor, seed: int) -> torch.Tensor:
    """Weights and pairs that go with logits [..., canvas]."""
    generator = torch.Generator().manual_seed(seed)
    length = scores.shape[-1]
    weights = torch.rand(scores.shape, generator=generator, dtype=torch.float64)
    pairs = torch.rand((*scores.shape, length), generator=generator, dtype=torch.float64)
    return packed(scores.double(), weights, pairs)


def plain(values: torch.Tensor) -> list:
    return [part.tolist() for part in unpacked(values)]


def test_packed():
    values = values_of(torch.arange(6.0).view(2, 3), 0)
    assert values.shape == (2, 3, 5)
    torch.testing.assert_close(packed(*unpacked(values)), values)


@given(batch=rows(), seed=st.integers(0, 2**32), bound=st.sampled_from([0.0, 0.2, 0.7, 1.5, 100.0]))
def test_set(batch, seed, bound):
    scores, masked = batch
    values = values_of(scores, seed)
    law = BoundedRegret(values, masked, bound=bound)
    for row, taken in enumerate(law.accepted):
        assert positions(taken) == bounded_regret(*plain(values[row]), masked[row].tolist(), bound)
    torch.testing.assert_close(law.mean, law.accepted.float())


@given(batch=rows(), seed=st.integers(0, 2**32), bound=st.sampled_from([0.1, 0.7, 3.0]))
def test_every_subset(batch, seed, bound):
    scores, masked = batch
    length, values = masked.shape[1], values_of(scores, seed)
    law = RandomRegret(values, masked, bound=bound, temperature=0.5)
    everything = subsets(list(range(length)))
    drawn = torch.stack([as_row(s, length) for s in everything])[:, None].expand(-1, *masked.shape)
    for row, probabilities in enumerate(law.log_prob(drawn).exp().unbind(1)):
        expected = random_regret(*plain(values[row]), masked[row].tolist(), bound, 0.5)
        torch.testing.assert_close(
            probabilities, torch.tensor([expected.get(s, 0.0) for s in everything]), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("bound", [0.05, 1.0])
def test_samples(bound):
    values = values_of(torch.tensor([0.3, 2.0, -1.0, 1.0]), 3)
    masked = torch.ones(4, dtype=torch.bool)
    law = RandomRegret(values, masked, bound=bound, temperature=0.7)
    sample = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    expected = random_regret(*plain(values), masked.tolist(), bound, 0.7)
    assert chi_square_excess(counts(sample), expected) < 5


@pytest.mark.parametrize(("where", "sure"), [([1, 1, 0, 0], [0, 0, 1, 0]), ([0, 1, 1, 0], [0, 0, 0, 0])])
def test_samples_where_it_draws(where, sure):
    """Elsewhere the set is given, and what follows a position in it counts it."""
    values = values_of(torch.tensor([0.3, 1.0, 2.0, 3.0]), 3)
    masked, where, sure = torch.ones(4, dtype=torch.bool), torch.tensor(where).bool(), torch.tensor(sure).bool()
    law = RandomRegret(values, masked, bound=1.0, temperature=0.7, where=where, otherwise=sure)
    expected = random_regret(*plain(values), masked.tolist(), 1.0, 0.7, where=where.tolist(), sure=sure.tolist())
    everything = subsets(list(range(4)))
    probabilities = law.log_prob(torch.stack([as_row(s, 4) for s in everything])).exp()
    torch.testing.assert_close(
        probabilities, torch.tensor([expected.get(s, 0.0) for s in everything]), rtol=2e-5, atol=2e-5
    )
    sample = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert chi_square_excess(counts(sample), expected) < 5


@given(batch=rows(), f=st.sampled_from([0.0, 0.3, 1.0, 2.5]))
def test_without_pairs_it_is_the_factor_rule(batch, f):
    scores, masked = batch
    values = packed(
        scores.double(), torch.ones_like(scores.double()), torch.zeros(*scores.shape, scores.shape[1]).double()
    )
    law = BoundedRegret(values, masked, bound=f)
    for row, taken in enumerate(law.accepted):
        if masked[row].any():
            assert positions(taken) == factor(scores[row].sigmoid().tolist(), masked[row].tolist(), f)


@given(batch=rows(), seed=st.integers(0, 2**32))
def test_without_doubt_it_bounds_the_dependence(batch, seed):
    scores, masked = batch
    _, _, pairs = unpacked(values_of(scores, seed))
    law = BoundedRegret(packed(scores.double(), torch.zeros_like(scores.double()), pairs), masked, bound=1.01)
    for row, taken in enumerate(law.accepted):
        accepted: list[int] = []
        for i in sorted(eligible(masked[row].tolist()), key=lambda i: (-scores[row, i].item(), i)):
            if not accepted or pairs[row, i, accepted].sum() < 1.01:
                accepted.append(i)
        assert positions(taken) == set(accepted)


def test_cold_it_is_the_set():
    generator = torch.Generator().manual_seed(0)
    values, masked = values_of(torch.randn(20, 6, generator=generator), 1), torch.rand(20, 6, generator=generator) < 0.8
    cold = RandomRegret(values, masked, bound=0.8, temperature=1e-4)
    own = BoundedRegret(values, masked, bound=0.8).accepted
    # where the surest position is not within the bound, it is not free here: what is drawn is the likeliest set
    logits, weights, _ = unpacked(values)
    surest = logits.masked_fill(~masked, -9.0).argmax(-1, keepdim=True)
    within = (2 * weights * (-logits).sigmoid()).gather(-1, surest).squeeze(-1) < 0.8
    assert within.sum() > 5
    assert torch.equal(cold.sample(generator=torch.Generator().manual_seed(0))[within], own[within])


def test_gradient():
    """Against differences of the enumerated log-probability, for each kind of parameter."""
    values = values_of(torch.tensor([0.5, 1.0, -0.5]), 5).requires_grad_()
    masked, taken = torch.ones(3, dtype=torch.bool), torch.tensor([True, True, False])
    bound = torch.tensor(0.9, requires_grad=True)
    log_prob = RandomRegret(values, masked, bound=bound, temperature=0.6).log_prob(taken)
    got, of_bound = torch.autograd.grad(log_prob, (values, bound))

    def value(at: torch.Tensor, b: float) -> float:
        return torch.tensor(random_regret(*plain(at), masked.tolist(), b, 0.6)[frozenset({0, 1})]).double().log().item()

    step = 1e-4
    for index in [(i, j) for i in range(3) for j in range(5)]:
        change = torch.zeros_like(values).index_put(tuple(torch.tensor(i) for i in index), torch.tensor(step).double())
        slope = (value(values.detach() + change, 0.9) - value(values.detach() - change, 0.9)) / (2 * step)
        assert got[index].item() == pytest.approx(slope, rel=1e-2, abs=1e-3)
    slope = (value(values.detach(), 0.9 + step) - value(values.detach(), 0.9 - step)) / (2 * step)
    assert of_bound.item() == pytest.approx(slope, rel=1e-2, abs=1e-3)


def test_a_thousand_positions_with_huge_costs():
    generator = torch.Generator().manual_seed(0)
    scores, pairs = 1e4 * torch.randn(3, 512, generator=generator), 1e4 * torch.rand(3, 512, 512, generator=generator)
    values = packed(scores, torch.rand(3, 512, generator=generator) * 1e5, pairs).requires_grad_()
    masked = torch.rand(3, 512, generator=generator) < torch.tensor([1.0, 0.5, 0.0])[:, None]
    law = RandomRegret(values, masked, bound=0.5, temperature=0.5)
    sample = law.sample(generator=generator)
    assert torch.equal(sample.any(-1), masked.any(-1))
    assert not (sample & ~masked).any()
    log_prob = law.log_prob(sample)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert values.grad.isfinite().all()


def test_other_rows_and_padding_change_nothing():
    values, masked = values_of(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), 4), torch.rand(4, 5) < 0.8
    together = RandomRegret(values, masked, bound=0.7, temperature=0.5)
    uniform = torch.rand(4, 6)
    drawn = together.draw(uniform)
    for row in range(4):
        alone = RandomRegret(values[row], masked[row], bound=0.7, temperature=0.5)
        assert torch.equal(alone.draw(uniform[row]), drawn[row])
        torch.testing.assert_close(alone.log_prob(drawn[row]), together.log_prob(drawn)[row])
    logits, weights, pairs = unpacked(values)
    wider = packed(
        *(torch.nn.functional.pad(part, (0, 2)) for part in (logits, weights)),
        torch.nn.functional.pad(pairs, (0, 2, 0, 2)),
    )
    padded = BoundedRegret(wider, torch.nn.functional.pad(masked, (0, 2)), bound=0.7)
    assert torch.equal(padded.accepted[:, :5], BoundedRegret(values, masked, bound=0.7).accepted)


@pytest.mark.parametrize("name", ["mean", "entropy"])
def test_no_closed_forms(name):
    law = RandomRegret(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool), bound=1.0, temperature=1.0)
    with pytest.raises(NotImplementedError):
        getattr(law, name)()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v, m: BoundedRegret(v, m, bound=-1.0), "bound must be 0 or more, got -1.0"),
        (
            lambda v, m: BoundedRegret(v[..., :3], m, bound=1.0),
            r"values must have shape \(2, 4\), see `packed`, got \(2, 3\)",
        ),
        (lambda v, m: RandomRegret(v, m, bound=0.0, temperature=1.0), "bound must be positive, got 0.0"),
        (lambda v, m: RandomRegret(v, m, bound=1.0, temperature=0.0), "temperature must be positive, got 0.0"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
