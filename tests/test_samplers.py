import dataclasses

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chi_square_excess
from strategies import VOCAB, counts, positions, step_of, steps

from hf_learned_order.distributions import at_least_one
from hf_learned_order.samplers import (
    SAMPLERS,
    EntropyBoundSampler,
    EntropySampler,
    IIDSampler,
    LearnedOrderSampler,
    MarginSampler,
    RandomSampler,
    Sampler,
    ThresholdSampler,
    TopProbSampler,
    largest,
    make_sampler,
)
from hf_learned_order.scorer import OrderScorer, OrderScorerConfig

FIXED_COUNT = (RandomSampler(), TopProbSampler(), MarginSampler(), EntropySampler())
DETERMINISTIC = (*FIXED_COUNT[1:], ThresholdSampler(threshold=0.6), EntropyBoundSampler(gamma=0.7))
SCORER = OrderScorer(OrderScorerConfig(hidden_size=8, denoiser_hidden_size=4, vocab_size=VOCAB))


def name_of(sampler):
    return type(sampler).__name__


def unmask(sampler, step):
    """What the decoding loop makes of a proposal before the last step."""
    return at_least_one(propose(sampler, step).unmask, step.masked, step.predictions.confidence)


def propose(sampler, step):
    """The first step's proposal."""
    return sampler.propose(step, sampler.init_state(step))


def reseeded(step, **changes):
    return dataclasses.replace(step, generator=torch.Generator().manual_seed(0), **changes)


# ---- each rule is its formula ------------------------------------------------------------------------------------


def check_rows(sampler, step, expected):
    """`expected(row, masked)` is the set that the oracle takes in that row."""
    got = unmask(sampler, step)
    for row, masked in enumerate(step.masked.tolist()):
        assert positions(got[row]) == expected(row, masked)


@given(step=steps())
def test_top_prob(step):
    c = step.predictions.confidence.tolist()
    check_rows(TopProbSampler(), step, lambda row, masked: oracles.top_prob(c[row], masked, step.steps_left))


@given(step=steps())
def test_margin(step):
    m = step.predictions.margin.tolist()
    check_rows(MarginSampler(), step, lambda row, masked: oracles.margin(m[row], masked, step.steps_left))


@given(step=steps())
def test_entropy(step):
    h = step.predictions.entropy.tolist()
    check_rows(EntropySampler(), step, lambda row, masked: oracles.entropy(h[row], masked, step.steps_left))


@given(step=steps(), tau=st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]))
def test_threshold(step, tau):
    c = step.predictions.confidence.tolist()
    check_rows(ThresholdSampler(threshold=tau), step, lambda row, masked: oracles.threshold(c[row], masked, tau))


@given(step=steps(), gamma=st.sampled_from([0.0, 0.01, 0.1, 0.6, 2.0, 50.0]))
def test_entropy_bound(step, gamma):
    h = step.predictions.entropy.tolist()
    check_rows(EntropyBoundSampler(gamma=gamma), step, lambda row, masked: oracles.entropy_bound(h[row], masked, gamma))


@given(step=steps())
def test_random_takes_its_quota(step):
    got = unmask(RandomSampler(), step)
    assert not (got & ~step.masked).any()
    assert got.sum(-1).tolist() == [oracles.quota(masked, step.steps_left) for masked in step.masked.tolist()]


def test_random_is_uniform():
    masked = torch.tensor([[True, False, True, True, True]]).expand(6000, -1)
    step = step_of(torch.randn(1, 5, VOCAB).expand(6000, -1, -1), masked, steps_left=2)
    got = propose(RandomSampler(), step).unmask
    law = {pair: 1 / 6 for pair in oracles.subsets([0, 2, 3, 4]) if len(pair) == 2}
    assert chi_square_excess(counts(got), law) < 5


@pytest.mark.parametrize("steps_left", [1, 2, 5])
@pytest.mark.parametrize("masked", [[True] * 4, [False, True, False, True], [False, False, True, False]])
def test_iid(masked, steps_left):
    step = step_of(torch.zeros(20_000, 4, VOCAB), torch.tensor(masked).expand(20_000, -1), steps_left=steps_left)
    assert chi_square_excess(counts(propose(IIDSampler(), step).unmask), oracles.iid(masked, steps_left)) < 5


# ---- what holds for every rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@given(step=steps())
def test_a_non_empty_part_of_the_masked_positions(name, step):
    got = unmask(make_sampler(name, scorer=SCORER), step)
    assert got.dtype == torch.bool
    assert not (got & ~step.masked).any()
    assert torch.equal(got.any(-1), step.masked.any(-1))


@pytest.mark.parametrize("sampler", [IIDSampler(), *FIXED_COUNT], ids=name_of)
@given(step=steps())
def test_one_step_left_unmasks_everything(sampler, step):
    assert torch.equal(unmask(sampler, dataclasses.replace(step, steps_left=1)), step.masked)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name_of)
@given(step=steps())
def test_rows_are_independent(sampler, step):
    together = unmask(sampler, step_of(step.predictions.log_probs, step.masked, steps_left=step.steps_left))
    for row in range(len(together)):
        alone = step_of(step.predictions.log_probs[[row]], step.masked[[row]], steps_left=step.steps_left)
        assert torch.equal(unmask(sampler, alone)[0], together[row])


@pytest.mark.parametrize("sampler", [IIDSampler(), RandomSampler(), *DETERMINISTIC], ids=name_of)
@given(step=steps(), seed=st.integers(0, 2**32))
def test_what_is_already_unmasked_does_not_matter(sampler, step, seed):
    logits = step.predictions.log_probs
    noise = 9 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    other = torch.where(step.masked[..., None], logits, noise)
    before, after = (unmask(sampler, step_of(x, step.masked, steps_left=step.steps_left)) for x in (logits, other))
    assert torch.equal(before, after)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name_of)
@given(step=steps(), position=st.integers(0, 8))
def test_sharper_goes_first(sampler, step, position):
    """A position that is taken is still taken when the denoiser becomes surer of it."""
    position %= step.masked.shape[1]
    logits = step.predictions.log_probs
    factor = torch.ones(logits.shape[1], 1).index_fill(0, torch.tensor([position]), 2.0)
    before, after = (
        unmask(sampler, step_of(x, step.masked, steps_left=step.steps_left))[:, position]
        for x in (logits, logits * factor)
    )
    assert (after | ~before).all()


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name_of)
def test_the_sharpest_position_is_taken(sampler):
    logits = torch.tensor([0.5, 3.0, 0.1, 2.0])[:, None] * torch.tensor([1.0, 0.0, 0.4, 0.0, 0.2])
    step = step_of(logits[None], torch.tensor([[True, True, True, False]]), steps_left=9)
    assert positions(unmask(sampler, step)[0]) == {1}


@pytest.mark.parametrize("sampler", FIXED_COUNT[1:], ids=name_of)
def test_ties_go_to_the_leftmost(sampler):
    masked = torch.tensor([[False, True, True, False, True, True]])
    got = propose(sampler, step_of(torch.zeros(1, 6, VOCAB), masked, steps_left=2)).unmask
    assert positions(got[0]) == {1, 2}


def test_largest_counts_row_by_row():
    values = torch.tensor([[1.0, 3.0, 2.0, 9.0], [1.0, 3.0, 2.0, 9.0]])
    masked = torch.tensor([[True, True, True, False], [True, True, False, False]])
    got = largest(values, masked, torch.tensor([[2], [3]]))
    assert [positions(row) for row in got] == [{1, 2}, {0, 1}]


def test_the_threshold_itself_is_enough():
    logits = torch.tensor([0.0, 0.0, -200.0, 0.0, -200.0]).expand(1, 3, -1)  # c = 0.5, exactly
    step = step_of(logits, torch.tensor([[True, False, True]]))
    assert positions(unmask(ThresholdSampler(threshold=0.5), step)[0]) == {0, 2}


# ---- the learned order -------------------------------------------------------------------------------------------


@given(step=steps())
def test_an_untrained_scorer_is_ancestral_sampling(step):
    learned = propose(LearnedOrderSampler(scorer=SCORER), reseeded(step)).unmask
    assert torch.equal(learned, propose(IIDSampler(), reseeded(step)).unmask)


def test_bias_is_the_speed():
    step = step_of(torch.zeros(500, 8, VOCAB), torch.ones(500, 8, dtype=torch.bool))
    mean = [
        propose(LearnedOrderSampler(scorer=SCORER, bias=b), reseeded(step)).unmask.sum(-1).float().mean()
        for b in (-99, 0, 99)
    ]
    assert mean[0] == 1
    assert 2 < mean[1] < 2.5  # 8 / 4, given at least one
    assert mean[2] == 8


def test_only_the_learned_order_needs_hidden_states():
    assert [name for name, sampler in SAMPLERS.items() if sampler.needs_hidden_states] == ["learned_order"]


# ---- options and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9", None, True])
def test_threshold_out_of_range(value):
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0.0, 1.0\], got"):
        ThresholdSampler(threshold=value)


@pytest.mark.parametrize("value", [-1, float("nan"), "0.9", None, False])
def test_gamma_out_of_range(value):
    with pytest.raises(ValueError, match=r"gamma must be a number in \[0.0, inf\], got"):
        EntropyBoundSampler(gamma=value)


@pytest.mark.parametrize("value", [float("nan"), "fast", None])
def test_bias_out_of_range(value):
    with pytest.raises(ValueError, match="bias must be a number in"):
        LearnedOrderSampler(scorer=SCORER, bias=value)


def test_scorer_of_another_type():
    with pytest.raises(TypeError, match="scorer must be an OrderScorer, got Linear"):
        LearnedOrderSampler(scorer=torch.nn.Linear(2, 2))


def test_defaults_are_those_of_the_papers():
    assert make_sampler("threshold").threshold == 0.9
    assert make_sampler("entropy_bound").gamma == 0.1


def test_make_sampler_takes_options_and_instances():
    assert make_sampler("threshold", {"threshold": 0.5}) == ThresholdSampler(threshold=0.5)
    learned = make_sampler("learned_order", {"bias": 1.5}, scorer=SCORER)
    assert (learned.scorer, learned.bias) == (SCORER, 1.5)
    assert make_sampler("learned_order", {"scorer": SCORER}).scorer is SCORER
    instance = EntropyBoundSampler(gamma=3)
    assert make_sampler(instance) is instance
    assert make_sampler(instance, {}, scorer=SCORER) is instance


def test_make_sampler_lists_the_names():
    with pytest.raises(ValueError, match=f"sampler must be one of {', '.join(SAMPLERS)}, got 'best'"):
        make_sampler("best")


def test_make_sampler_without_a_scorer():
    with pytest.raises(ValueError, match=r'"learned_order" needs a scorer: attach\(model, scorer=...\)'):
        make_sampler("learned_order", {"bias": 1.0})


def test_make_sampler_with_an_unknown_option():
    with pytest.raises(ValueError, match=r"'threshold' must have keys among \['threshold'\], got \['gamma', 'tau'\]"):
        make_sampler("threshold", {"tau": 0.5, "threshold": 0.9, "gamma": 1})


def test_make_sampler_with_a_value_out_of_range():
    with pytest.raises(ValueError, match="threshold must be a number"):
        make_sampler("threshold", {"threshold": 7})


def test_make_sampler_with_an_instance_and_options():
    with pytest.raises(ValueError, match="sampler_config must be empty when sampler is an instance, got"):
        make_sampler(IIDSampler(), {"threshold": 0.5})


@pytest.mark.parametrize("sampler", [None, 3, IIDSampler])
def test_make_sampler_with_another_type(sampler):
    with pytest.raises(TypeError, match="sampler must be a name or a Sampler, got"):
        make_sampler(sampler)


def test_a_rule_has_to_say_what_it_proposes():
    with pytest.raises(NotImplementedError):
        propose(Sampler(), step_of(torch.zeros(1, 2, VOCAB), torch.ones(1, 2, dtype=torch.bool)))
