import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    chi_square_excess,
    conditional_bernoulli,
    counted,
    eligible,
    entropy_of,
    greedy,
    iid,
    kl,
    marginals,
    max_normalized,
    non_empty,
    subsets,
)
from strategies import as_row, counts, positions, rows
from torch.distributions import kl_divergence

from hf_learned_order.orders.laws.base import SubsetDistribution, ancestral_logit, at_least_one, everything
from hf_learned_order.orders.laws.counted import CountedBernoulli
from hf_learned_order.orders.laws.max_normalized import MaxNormalizedBernoulli
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli
from hf_learned_order.orders.laws.regret import BoundedRegret, packed

TAU = 0.7


def weights(length: int) -> list[float]:
    """Log-weights of 1, 2, ... positions."""
    return [math.sin(3 * k) for k in range(1, length + 1)]


def counted_of(scores, masked):
    return CountedBernoulli(torch.tensor(weights(scores.shape[-1])).expand(scores.shape), scores, masked)


LAWS = {
    "max_normalized": (
        lambda scores, masked: MaxNormalizedBernoulli(scores, masked, temperature=TAU),
        lambda scores, masked: max_normalized(scores, masked, TAU),
    ),
    "non_empty": (NonEmptyBernoulli, non_empty),
    "count": (
        counted_of,
        lambda scores, masked: counted(weights(len(scores)), conditional_bernoulli, scores, masked),
    ),
}
PAIRS = [("max_normalized", "non_empty"), ("non_empty", "non_empty"), ("count", "count")]

each_law = pytest.mark.parametrize(("make", "oracle"), LAWS.values(), ids=LAWS)


def prior_oracle(oracle):
    return oracle if oracle is LAWS["count"][1] else non_empty


def prior_of(law, scores):
    """A law of the kind that `law` has a KL to."""
    counts = isinstance(law, CountedBernoulli)
    return LAWS["count" if counts else "non_empty"][0](scores, law.masked)


def close(got, expected, tolerance=2e-5):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance)


def laws_of(oracle, scores, masked):
    """The enumerated law of every row."""
    return [oracle(s, m) for s, m in zip(scores.tolist(), masked.tolist(), strict=True)]


# ---- values, against the enumeration of all subsets --------------------------------------------------------------


@each_law
@given(batch=rows())
def test_log_prob_of_every_subset(make, oracle, batch):
    scores, masked = batch
    length = masked.shape[1]
    values = torch.stack([as_row(s, length) for s in subsets(list(range(length)))])
    log_prob = make(scores, masked).log_prob(values[:, None].expand(-1, *masked.shape))
    assert log_prob.shape == (2**length, len(masked))
    assert close(log_prob.exp().sum(0), torch.ones(len(masked)))
    for row, law in enumerate(laws_of(oracle, scores, masked)):
        expected = torch.tensor([law.get(s, 0.0) for s in subsets(list(range(length)))])
        assert close(log_prob[:, row].exp(), expected)
        likely = expected > 1e-30
        assert close(log_prob[likely, row], expected[likely].log())


@each_law
@given(batch=rows())
def test_mean_and_entropy(make, oracle, batch):
    scores, masked = batch
    law = make(scores, masked)
    expected = laws_of(oracle, scores, masked)
    assert close(law.mean, [marginals(e, masked.shape[1]) for e in expected])
    assert close(law.entropy(), [entropy_of(e) for e in expected])


@pytest.mark.parametrize(("q", "p"), PAIRS)
@given(batch=rows(), other=st.integers(0, 2**32))
def test_kl(q, p, batch, other):
    scores, masked = batch
    others = torch.randn(scores.shape, generator=torch.Generator().manual_seed(other), dtype=torch.float64)
    (make_q, oracle_q), (make_p, oracle_p) = LAWS[q], LAWS[p]
    got = kl_divergence(make_q(scores, masked), make_p(others, masked))
    pairs = zip(laws_of(oracle_q, scores, masked), laws_of(oracle_p, others, masked), strict=True)
    assert close(got, [kl(law, prior) for law, prior in pairs])


def test_kl_of_a_law_with_itself_is_zero():
    scores, masked = torch.tensor([[3.0, -9.0, 0.2], [40.0, -40.0, 0.0]]), torch.ones(2, 3, dtype=torch.bool)
    assert close(kl_divergence(NonEmptyBernoulli(scores, masked), NonEmptyBernoulli(scores, masked)), [0.0, 0.0])


def test_max_normalized_prior_has_no_kl():
    """It would be infinite as soon as the best positions differ, so it is not on offer."""
    scores, masked = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    prior = MaxNormalizedBernoulli(scores, masked)
    for q in (prior, NonEmptyBernoulli(scores, masked)):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, prior)


def test_kl_is_finite_where_the_posterior_is_certain():
    scores = torch.tensor([[2.0, 2.0, 2.0, -50.0]], requires_grad=True)  # three ties: pi = 1 three times, and one 0
    logits = torch.tensor([[-40.0, -1.0, 3.0, 5.0]], requires_grad=True)
    masked = torch.ones(1, 4, dtype=torch.bool)
    divergence = kl_divergence(MaxNormalizedBernoulli(scores, masked), NonEmptyBernoulli(logits, masked))
    assert close(
        divergence,
        [kl(max_normalized([2.0, 2.0, 2.0, -50.0], [True] * 4, 0.1), non_empty(*logits.tolist(), [True] * 4))],
    )
    divergence.sum().backward()
    assert scores.grad.abs().max() < 1e3  # at a tie the slope is infinite: it must not reach the scorer
    assert logits.grad.isfinite().all()


def test_ties_for_the_best_score_have_no_entropy_gradient():
    scores = torch.tensor([[1.0, 1.0, -50.0]], requires_grad=True)
    MaxNormalizedBernoulli(scores, torch.ones(1, 3, dtype=torch.bool)).entropy().sum().backward()
    assert close(scores.grad, [[0.0, 0.0, 0.0]])


# ---- rows with nothing to choose ---------------------------------------------------------------------------------


@each_law
def test_finished_and_single_rows(make, oracle):
    masked = torch.tensor([[False, False, False], [False, True, False]])
    scores = torch.tensor([[5.0, -3.0, 900.0], [7.0, -30.0, 1e4]], requires_grad=True)
    law = make(scores, masked)
    assert (law.sample((50,)) == masked).all()
    assert close(law.log_prob(masked), [0.0, 0.0], 1e-3)
    law.log_prob(masked).sum().backward()
    assert close(scores.grad, torch.zeros(2, 3), 1e-3)


@each_law
def test_closed_forms_of_finished_and_single_rows(make, oracle):
    masked = torch.tensor([[False, False, False], [False, True, False]])
    scores = torch.tensor([[5.0, -3.0, 900.0], [7.0, -30.0, 1e4]], requires_grad=True)
    law = make(scores, masked)
    for got in (law.entropy(), kl_divergence(law, prior_of(law, -scores))):
        assert close(got, [0.0, 0.0], 1e-3)
    assert close(law.mean, masked.float())
    (law.entropy() + law.mean.sum(-1)).sum().backward()
    assert close(scores.grad, torch.zeros(2, 3), 1e-3)


@each_law
def test_impossible_sets(make, oracle):
    masked = torch.tensor([[True, True, False]])
    law = make(torch.tensor([[1.0, 0.0, 9.0]]), masked)
    for impossible in ([False, False, False], [True, False, True], [False, False, True]):
        assert law.log_prob(torch.tensor([impossible])).item() == -torch.inf


@each_law
@given(batch=rows())
def test_scores_outside_the_mask_do_not_matter(make, oracle, batch):
    scores, masked = batch
    law, other = make(scores, masked), make(torch.where(masked, scores, 1e9), masked)
    assert torch.equal(law.log_prob(masked), other.log_prob(masked))
    assert torch.equal(law.mean, other.mean)
    assert torch.equal(law.entropy(), other.entropy())


# ---- sampling ----------------------------------------------------------------------------------------------------


@each_law
@pytest.mark.parametrize("scores", [[0.0, 0.3, -1.0, 2.0], [-9.0, -9.5, -8.0, -9.0], [1.0, 1.0, 30.0, 1.0]])
@pytest.mark.parametrize("masked", [[True, True, True, True], [False, True, False, True], [False, False, True, False]])
def test_samples_follow_the_law(make, oracle, scores, masked):
    law = make(torch.tensor(scores), torch.tensor(masked))
    sample = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert sample.dtype == torch.bool
    assert chi_square_excess(counts(sample), oracle(scores, masked)) < 5


@each_law
@given(batch=rows(-30.0, 30.0), seed=st.integers(0, 2**32))
def test_samples_are_non_empty_and_repeatable(make, oracle, batch, seed):
    scores, masked = batch
    law = make(scores, masked)
    sample, again = (law.sample((7, 3), generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(sample, again)
    assert sample.shape == (7, 3, *masked.shape)
    assert not (sample & ~masked).any()
    assert torch.equal(sample.any(-1), masked.any(-1).expand(7, 3, -1))
    assert law.log_prob(sample).isfinite().all()


@each_law
@given(batch=rows(), leading=st.booleans())
def test_greedy_is_the_likeliest_set_of_its_size(make, oracle, batch, leading):
    scores, masked = batch
    law = make(scores[None], masked[None]) if leading else make(scores, masked)
    got = law.greedy()
    assert got.shape == law.masked.shape
    for row, expected in enumerate(laws_of(oracle, scores, masked)):
        taken = positions(got.flatten(0, -2)[row])
        size = mean_size(expected)
        if make is LAWS["count"][0]:
            size = max({len(s) for s in expected}, key=lambda k: sum(p for s, p in expected.items() if len(s) == k))
        elif abs(size % 1 - 0.5) < 1e-4:
            continue  # rounding decides
        assert len(taken) == round(size)
        assert math.isclose(expected[taken], greedy(expected, len(taken)), rel_tol=1e-9)


def mean_size(law) -> float:
    return math.fsum(len(s) * p for s, p in law.items())


def test_greedy_of_one_set_is_that_set():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    masked = torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    law = BoundedRegret(packed(logits, torch.ones(50, 6), torch.ones(50, 6, 6)), masked, bound=1.0)
    assert torch.equal(law.greedy(), law.sample())


def test_greedy_goes_from_the_left_where_all_are_alike():
    law = NonEmptyBernoulli(ancestral_logit(torch.tensor(3.0)).expand(9), torch.tensor([False] + [True] * 8))
    assert positions(law.greedy()) == {1, 2, 3}  # 8 / 3, given at least one: 2.8


def test_max_normalized_always_takes_its_best_position():
    scores = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    law = MaxNormalizedBernoulli(scores, torch.ones(200, 9, dtype=torch.bool), temperature=0.01)
    best = scores.argmax(-1)
    assert torch.equal(law.mean.gather(-1, best[:, None]), torch.ones(200, 1))
    assert law.sample((50,)).gather(-1, best[:, None].expand(50, -1, 1)).all()


# ---- gradients and extremes --------------------------------------------------------------------------------------

QUANTITIES = {
    "log_prob": (lambda law, value: law.log_prob(value), lambda oracle, e, s: math.log(e[s])),
    "entropy": (lambda law, value: law.entropy(), lambda oracle, e, s: entropy_of(e)),
    "mean": (lambda law, value: law.mean[..., 0], lambda oracle, e, s: marginals(e, 5)[0]),
    "kl": (
        lambda law, value: kl_divergence(law, prior_of(law, torch.zeros(5))),
        lambda oracle, e, s: kl(
            e, (oracle if oracle is LAWS["count"][1] else non_empty)([0.0] * 5, [True] * 4 + [False])
        ),
    ),
}
CASES = [(law, what) for law in LAWS for what in QUANTITIES]


@pytest.mark.parametrize(("law", "what"), CASES)
def test_gradients_are_those_of_the_enumerated_values(law, what):
    (make, oracle), (got, expected) = LAWS[law], QUANTITIES[what]
    scores = torch.tensor([0.4, -0.9, 1.3, 1.1, 50.0], dtype=torch.float64)
    masked = torch.tensor([True, True, True, True, False])
    chosen = frozenset({0, 2})
    leaf = scores.float().requires_grad_()
    got(make(leaf, masked), as_row(chosen, 5)).backward()
    numerical = torch.zeros(5, dtype=torch.float64)
    for i, delta in enumerate(1e-5 * torch.eye(5, dtype=torch.float64)):
        above, below = (
            expected(oracle, oracle(x.tolist(), masked.tolist()), chosen) for x in (scores + delta, scores - delta)
        )
        numerical[i] = (above - below) / 2e-5
    assert close(leaf.grad, numerical, 1e-3)


def test_prior_gradient_of_the_kl():
    masked, q = torch.ones(3, dtype=torch.bool), max_normalized([0.5, 0.2, -0.4], [True] * 3, TAU)
    logits = torch.tensor([-2.0, 0.3, 1.0], dtype=torch.float64)
    leaf = logits.float().requires_grad_()
    law = MaxNormalizedBernoulli(torch.tensor([0.5, 0.2, -0.4]), masked, temperature=TAU)
    kl_divergence(law, NonEmptyBernoulli(leaf, masked)).backward()
    numerical = [
        (kl(q, non_empty((logits + d).tolist(), [True] * 3)) - kl(q, non_empty((logits - d).tolist(), [True] * 3)))
        / 2e-5
        for d in 1e-5 * torch.eye(3, dtype=torch.float64)
    ]
    assert close(leaf.grad, numerical, 1e-3)


@each_law
@pytest.mark.parametrize("low", [-1e4, 1e4 - 1e-2])
def test_a_thousand_positions_with_huge_scores(make, oracle, low):
    """float32 all the way: no nan, no inf, in values or gradients."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 1024, generator=generator) * (1e4 - low) + low
    scores[1] = -1e4
    scores[2] = 1e4
    scores[3, ::2] = -scores[3, ::2]
    masked = torch.rand(6, 1024, generator=generator) < torch.tensor([1.0, 1.0, 1.0, 0.5, 0.001, 0.0])[:, None]
    scores.requires_grad_()
    law = make(scores, masked)
    sample = law.sample(generator=generator)
    assert torch.equal(sample.any(-1), masked.any(-1))
    prior = prior_of(law, -scores)
    values = [law.log_prob(sample), law.entropy(), law.mean, kl_divergence(law, prior), prior.entropy()]
    assert ((law.mean >= 0) & (law.mean <= 1)).all()
    assert all(value.isfinite().all() for value in values)
    sum(value.sum() for value in values).backward()
    assert scores.grad.isfinite().all()


def test_rare_successes_keep_their_digits():
    """p = sigmoid(-30) is far below what 1 - p can hold in float32, and Z with it."""
    scores, masked = [-30.0, -31.0, -29.0], [True] * 3
    law = NonEmptyBernoulli(torch.tensor(scores), torch.tensor(masked))
    total = sum(torch.tensor(scores, dtype=torch.float64).exp())
    assert close(law.mean, torch.tensor(scores, dtype=torch.float64).exp() / total)
    single = torch.eye(3, dtype=torch.bool)
    assert close(law.log_prob(single).exp(), law.mean)
    sample = law.sample((9000,), generator=torch.Generator().manual_seed(0))
    assert chi_square_excess(counts(sample), non_empty(scores, masked)) < 5


# ---- ancestral sampling, and the two laws of every loop ----------------------------------------------------------


@pytest.mark.parametrize("steps_left", [1, 2, 3, 8, 1000])
def test_ancestral_logit_makes_non_empty_the_conditioned_iid_law(steps_left):
    masked = [True, False, True, True]
    law = NonEmptyBernoulli(ancestral_logit(torch.tensor(float(steps_left))).expand(4), torch.tensor(masked))
    expected = iid(masked, steps_left)
    for subset in subsets(eligible(masked)):
        assert close(law.log_prob(as_row(subset, 4)).exp(), expected.get(subset, 0.0))


@given(batch=rows(), chosen=st.integers(0, 2**32))
def test_at_least_one(batch, chosen):
    preference, masked = batch
    proposal = torch.rand(masked.shape, generator=torch.Generator().manual_seed(chosen)) < 0.2
    unmask = at_least_one(proposal, masked, preference)
    for row in range(len(masked)):
        candidates = eligible(masked[row].tolist())
        allowed = [i for i in candidates if proposal[row, i]]
        expected = allowed or sorted(candidates, key=lambda i: -preference[row, i])[:1]
        assert torch.equal(unmask[row], as_row(frozenset(expected), masked.shape[1]))


def test_everything_is_a_copy():
    masked = torch.tensor([[True, False], [False, False]])
    unmask = everything(masked)
    assert torch.equal(unmask, masked)
    masked[0, 0] = False
    assert unmask[0, 0]


# ---- errors ------------------------------------------------------------------------------------------------------


@each_law
def test_masked_of_another_shape(make, oracle):
    with pytest.raises(ValueError, match=r"masked must have the shape of the scores \(2, 3\), got \(3,\)"):
        make(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        MaxNormalizedBernoulli(torch.zeros(3), torch.ones(3, dtype=torch.bool), temperature=temperature)


def test_a_law_has_to_say_how_it_samples():
    with pytest.raises(NotImplementedError):
        SubsetDistribution(torch.zeros(3), torch.ones(3, dtype=torch.bool)).sample()
