import dataclasses

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import chi_square_excess
from problems import Scripted
from strategies import VOCAB, counts, positions, step_of, steps

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import (
    EntropyBoundSampler,
    FactorSampler,
    FrechetSampler,
    KLASSSampler,
    LocalLeapSampler,
    ThresholdSampler,
)
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.remasking import WINOSampler
from hf_learned_order.decoding.samplers.scheduled import (
    DilatedSampler,
    EntropySampler,
    IIDSampler,
    LeftToRightSampler,
    MarginSampler,
    PositionSampler,
    RandomSampler,
    TopProbSampler,
)
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.laws.base import at_least_one, largest
from hf_learned_order.orders.scorer import OrderScorer

SCORER = OrderScorer(OrderScorerConfig(hidden_size=8, denoiser_hidden_size=4, vocab_size=VOCAB))
CONFIDENT = (
    TopProbSampler(),
    MarginSampler(),
    EntropySampler(),
    ThresholdSampler(threshold=0.6),
    FactorSampler(factor=0.8),
    FrechetSampler(margin=0.1),
    LocalLeapSampler(threshold=0.7, relaxed=0.4, radius=2),
    EntropyBoundSampler(gamma=0.7),
    WINOSampler(draft=0.6),
)
FIXED_COUNT = (RandomSampler(), LeftToRightSampler(), PositionSampler(), *CONFIDENT[:3])
# a rule that draws has to be named here; every other one is taken to be deterministic
RANDOM_NAMES = ("iid", "random", "random_sizes", "remdm", "learned_order")
DETERMINISTIC = (
    *(make_sampler(name) for name in SAMPLERS if name not in RANDOM_NAMES),
    *CONFIDENT[3:],
    KLASSSampler(threshold=0.4, epsilon=0.5, history=1),
    DilatedSampler(base=3),
    WINOSampler(draft=0.3, verify=0.6),
)


def name_of(sampler):
    return str(sampler)


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
def test_left_to_right(step):
    check_rows(LeftToRightSampler(), step, lambda row, masked: oracles.left_to_right(masked, step.steps_left))


@given(step=steps(), f=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.7, 3.0]))
def test_factor(step, f):
    c = step.predictions.confidence.tolist()
    check_rows(FactorSampler(factor=f), step, lambda row, masked: oracles.factor(c[row], masked, f))


def test_factor_counts_the_token_after_the_last():
    """c = 0.9, 0.8, 0.7, ...: (n + 1) (1 - c_(n)) = 0.2, 0.6, 1.2, ..."""
    c = torch.tensor([0.6, 0.9, 0.7, 0.8])
    logits = torch.stack([c.log(), (1 - c).log(), *[torch.full_like(c, -200.0)] * 3], -1)
    step = step_of(logits[None], torch.ones(1, 4, dtype=torch.bool), steps_left=9)
    taken = [positions(unmask(FactorSampler(factor=f), step)[0]) for f in (0.1, 0.3, 1.0, 1.3)]
    assert taken == [{1}, {1}, {1, 3}, {1, 2, 3}]


@given(step=steps(), margin=st.sampled_from([1.0, 0.7, 0.25, 0.0, -0.5, -2.0]))
def test_frechet(step, margin):
    c = step.predictions.confidence.tolist()
    check_rows(FrechetSampler(margin=margin), step, lambda row, masked: oracles.frechet(c[row], masked, margin))


def test_frechet_is_factor_where_all_are_as_sure_and_takes_more_where_they_are_not():
    def taken(sampler, *c):
        c = torch.tensor(c)
        logits = torch.stack([c.log(), (1 - c).log(), *[torch.full_like(c, -200.0)] * 3], -1)
        return len(positions(unmask(sampler, step_of(logits[None], torch.ones(1, len(c), dtype=torch.bool)))[0]))

    same = [0.9] * 9  # (n + 1) 0.1 < 0.75
    assert taken(FactorSampler(factor=0.75), *same) == taken(FrechetSampler(), *same) == 6
    uneven = [0.99, 0.99, 0.99, 0.8]
    assert taken(FactorSampler(factor=0.75), *uneven) == 3
    assert taken(FrechetSampler(), *uneven) == 4


@given(
    step=steps(),
    thresholds=st.sampled_from([(1.0, 0.0), (0.75, 0.3), (0.6, 0.6), (0.5, 0.0)]),
    radius=st.sampled_from([0, 1, 3, 20]),
)
def test_local_leap(step, thresholds, radius):
    c = step.predictions.confidence.tolist()
    sampler = LocalLeapSampler(threshold=thresholds[0], relaxed=thresholds[1], radius=radius)
    check_rows(sampler, step, lambda row, masked: oracles.local_leap(c[row], masked, *thresholds, radius))


FREQUENCIES = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])


@given(
    step=steps(),
    decay=st.sampled_from([0.0, 0.25, 1.0]),
    clip=st.sampled_from([0.3, 1.0, 10.0]),
    frequencies=st.sampled_from([None, FREQUENCIES]),
)
def test_position(step, decay, clip, frequencies):
    probs = step.predictions.log_probs.exp().tolist()
    f = [1 / VOCAB] * VOCAB if frequencies is None else FREQUENCIES.tolist()
    sampler = PositionSampler(decay=decay, clip=clip, frequencies=frequencies)
    got = unmask(sampler, step)
    for row, masked in enumerate(step.masked.tolist()):
        # the oracle's scores in double precision break ties that single precision has: both choices are right then
        scores = oracles.position_scores(probs[row], decay, clip, f)
        chosen, rest = positions(got[row]), set(oracles.eligible(masked)) - positions(got[row])
        assert len(chosen) == oracles.quota(masked, step.steps_left)
        assert min((scores[i] for i in chosen), default=1) >= max((scores[i] for i in rest), default=0) * (1 - 1e-5)


def test_position_weighs_place_against_rarity():
    logits = torch.full((1, 3, VOCAB), -200.0)
    logits[0, [0, 1, 2], [0, 1, 2]] = (
        0.0  # c = 1 everywhere, tokens of frequency 0.5, 0.3, 0.2: rarity 0.69, 1.20, 1.61
    )
    step = step_of(logits, torch.ones(1, 3, dtype=torch.bool), steps_left=3)
    for decay, clip, best in ((0.0, 10.0, 2), (0.4, 10.0, 1), (1.0, 10.0, 0), (0.0, 1.0, 1)):
        sampler = PositionSampler(decay=decay, clip=clip, frequencies=FREQUENCIES)
        assert positions(unmask(sampler, step)[0]) == {best}


def test_position_prefers_the_sure():
    logits = torch.zeros(1, 2, VOCAB)
    logits[0, :, 0] = torch.tensor([1.0, 4.0])
    step = step_of(logits, torch.ones(1, 2, dtype=torch.bool), steps_left=2)
    assert positions(unmask(PositionSampler(decay=0.1), step)[0]) == {1}


def test_position_on_a_long_canvas():
    """exp(-decay i) is below float32's smallest number from i = 400 on."""
    masked = torch.zeros(1, 1000, dtype=torch.bool)
    masked[0, [600, 700, 900]] = True
    assert positions(unmask(PositionSampler(), step_of(torch.zeros(1, 1000, VOCAB), masked, steps_left=2))[0]) == {
        600,
        700,
    }


@given(step=steps(), base=st.integers(2, 4))
def test_dilated(step, base):
    check_rows(DilatedSampler(base=base), step, lambda row, masked: oracles.dilated(masked, base))


def test_dilated_goes_from_coarse_to_fine():
    masked, groups = torch.ones(1, 16, dtype=torch.bool), []
    while masked.any():
        taken = unmask(DilatedSampler(), step_of(torch.zeros(1, 16, VOCAB), masked))
        groups.append(sorted(positions(taken[0])))
        masked = masked & ~taken
    assert groups == [[0, 8], [4, 12], [2, 6, 10, 14], [1, 3, 5, 7, 9, 11, 13, 15]]  # log2(16) steps


@given(
    seed=st.integers(0, 2**32),
    tau=st.sampled_from([0.0, 0.3, 0.6]),
    epsilon=st.sampled_from([0.0, 0.02, 0.3]),
    history=st.integers(1, 3),
)
def test_klass(seed, tau, epsilon, history):
    """A walk of predictions, now and then a jump, and the positions that the rule itself takes."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(3, 6, generator=generator) < 0.9
    logits = 2 * torch.randn(3, 6, VOCAB, generator=generator)
    sampler, state, seen = KLASSSampler(threshold=tau, epsilon=epsilon, history=history), None, []
    while masked.any():
        jump = torch.rand(3, 6, 1, generator=generator) < 0.2
        logits = logits + torch.where(jump, 2.0, 0.1) * torch.randn(3, 6, VOCAB, generator=generator)
        step = step_of(logits, masked)
        seen.append(step.predictions.log_probs.exp().tolist())
        proposal, state, _ = sampler.propose(step, sampler.init_state(step) if state is None else state)
        taken = at_least_one(proposal, masked, step.predictions.confidence)
        for row in range(3):
            steps_of_row = [probs[row] for probs in seen]
            expected = oracles.klass(steps_of_row, masked[row].tolist(), tau, epsilon, history)
            assert positions(taken[row]) == expected
        masked = masked & ~taken


@pytest.mark.parametrize("history", [1, 2, 3])
def test_klass_does_not_believe_at_once_who_changes_its_mind(history):
    """Sure of the wrong token until so many surer positions are known as the prompt says, then of the right one.

    With a state that is not its row's, or a count that is not reset, the order is another.
    """
    surest = 9

    def script(prompt, canvas):
        known = sum(token != Scripted.mask_token_id for token in canvas[:surest])
        rest = [(Scripted.RIGHT if known >= prompt - 10 else Scripted.WRONG, 0.95)] * 3
        return [(Scripted.RIGHT, 0.99 - 0.001 * i) for i in range(surest)] + rest

    changes = [1, 3, 0, 2]
    prompts = torch.tensor(changes)[:, None] + 10
    sampler = KLASSSampler(history=history)
    output = decode(Scripted(script), prompts, sampler=sampler, max_new_tokens=surest + 3, max_denoising_steps=40)
    for row, change in enumerate(changes):
        # what is surest is stable from the first step on, so all of it goes at step history + 1; before that, and
        # while the rest is not believed, one goes a step
        expected = [min(i + 1, history + 1) for i in range(surest)]
        believed = history + 1 + (change if change <= history else 0)
        expected += [min(history + 2 + i, believed) for i in range(3)]
        assert output.order[row].tolist() == expected
        right = change <= history
        assert output.sequences[row, -3:].tolist() == [Scripted.RIGHT if right else Scripted.WRONG] * 3


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
@settings(max_examples=50)
@given(step=steps())
def test_a_non_empty_part_of_the_masked_positions(name, step):
    got = unmask(make_sampler(name, scorer=SCORER), step)
    assert got.dtype == torch.bool
    assert not (got & ~step.masked).any()
    assert torch.equal(got.any(-1), step.masked.any(-1))


@pytest.mark.parametrize("sampler", [IIDSampler(), make_sampler("remdm"), *FIXED_COUNT], ids=name_of)
@given(step=steps())
def test_one_step_left_unmasks_everything(sampler, step):
    assert torch.equal(unmask(sampler, dataclasses.replace(step, steps_left=1)), step.masked)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=10)
@given(step=steps())
def test_a_state_has_a_row_for_each_row(name, step):
    sampler = make_sampler(name, scorer=SCORER)
    state = sampler.init_state(step)
    for proposal in (sampler.propose(step, state), sampler.propose(step, sampler.propose(step, state).state)):
        assert isinstance(proposal.state, tuple)
        assert [(len(part), part.dtype, part.shape) for part in proposal.state] == [
            (len(step.masked), part.dtype, part.shape) for part in state
        ]


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=20)
@given(step=steps())
def test_only_unmasked_positions_are_remasked_and_only_by_rules_that_say_so(name, step):
    sampler = make_sampler(name, scorer=SCORER)
    for _ in range(2):
        remask = propose(sampler, step).remask
        assert (remask is not None) == sampler.remasks
        if remask is not None:
            assert remask.dtype == torch.bool
            assert not (remask & step.masked).any()


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name_of)
@settings(max_examples=20)
@given(step=steps(), seed=st.integers(0, 2**32))
def test_rows_are_independent(sampler, step, seed):
    """Three steps of a batch and of each row alone, with the state that belongs to it."""
    generator = torch.Generator().manual_seed(seed)
    noise = [0.3 * number * torch.randn(step.predictions.log_probs.shape, generator=generator) for number in range(3)]

    def decoded(rows):
        masked, state, answers = step.masked[rows], None, []
        for extra in noise:
            now = step_of(step.predictions.log_probs[rows] + extra[rows], masked, steps_left=step.steps_left)
            taken, state, remask = sampler.propose(now, sampler.init_state(now) if state is None else state)
            taken = at_least_one(taken, masked, now.predictions.confidence)
            answers.append(torch.stack([taken, torch.zeros_like(taken) if remask is None else remask]))
            masked = masked & ~taken | answers[-1][1]
        return torch.stack(answers)

    together = decoded(list(range(len(step.masked))))
    for row in range(len(step.masked)):
        assert torch.equal(decoded([row])[:, :, 0], together[:, :, row])


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name_of)
@settings(max_examples=20)
@given(step=steps())
def test_the_generator_is_for_rules_that_draw(sampler, step):
    propose(sampler, dataclasses.replace(step, generator=None, hidden_states=None))
    before = torch.random.get_rng_state()
    propose(sampler, dataclasses.replace(step, generator=None, hidden_states=None))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sampler", [IIDSampler(), RandomSampler(), *DETERMINISTIC], ids=name_of)
@settings(max_examples=20)
@given(step=steps(), seed=st.integers(0, 2**32))
def test_what_is_already_unmasked_does_not_matter(sampler, step, seed):
    """For what is unmasked next; what is remasked, it decides."""
    logits = step.predictions.log_probs
    noise = 9 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
    other = torch.where(step.masked[..., None], logits, noise)
    before, after = (unmask(sampler, step_of(x, step.masked, steps_left=step.steps_left)) for x in (logits, other))
    assert torch.equal(before, after)


@pytest.mark.parametrize("sampler", CONFIDENT, ids=name_of)
@settings(max_examples=50)
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


@pytest.mark.parametrize("sampler", [*CONFIDENT, KLASSSampler(threshold=0.0)], ids=name_of)
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


@given(step=steps())
def test_greedy_does_not_draw(step):
    sampler = LearnedOrderSampler(scorer=SCORER, bias=0.5, greedy=True)
    got = propose(sampler, dataclasses.replace(step, generator=None)).unmask
    assert torch.equal(got, SCORER.law(step, SCORER(step), bias=0.5).greedy())
    assert not sampler.is_random
    assert LearnedOrderSampler(scorer=SCORER).is_random


def test_only_the_learned_order_needs_hidden_states():
    samplers = {name: make_sampler(name, scorer=SCORER) for name in SAMPLERS}
    assert [name for name, sampler in samplers.items() if sampler.needs_hidden_states] == ["learned_order"]
    config = OrderScorerConfig(hidden_size=8, denoiser_hidden_size=0, vocab_size=VOCAB)
    assert not LearnedOrderSampler(scorer=OrderScorer(config)).needs_hidden_states


# ---- options and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9", None, True])
def test_threshold_out_of_range(value):
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0.0, 1.0\], got"):
        ThresholdSampler(threshold=value)


@pytest.mark.parametrize("value", [-1, float("nan"), "0.9", None, False])
@pytest.mark.parametrize(
    ("name", "option"), [("factor", "factor"), ("klass", "epsilon"), ("position", "decay"), ("entropy_bound", "gamma")]
)
def test_option_below_zero(name, option, value):
    with pytest.raises(ValueError, match=rf"{option} must be a number in \[0.0, inf\], got"):
        make_sampler(name, {option: value})


def test_klass_threshold_out_of_range():
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0.0, 1.0\], got 2"):
        KLASSSampler(threshold=2)


def test_options_of_frechet_and_local_leap():
    with pytest.raises(ValueError, match=r"margin must be a number in \[-inf, 1.0\], got 1.5"):
        FrechetSampler(margin=1.5)
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0.0, 1.0\], got -1"):
        LocalLeapSampler(threshold=-1)
    with pytest.raises(ValueError, match=r"relaxed must be a number in \[0.0, 0.5\], got 0.75"):
        LocalLeapSampler(threshold=0.5)
    with pytest.raises(ValueError, match="radius must be an integer of 0 or more, got -1"):
        LocalLeapSampler(radius=-1)


@pytest.mark.parametrize("value", [0, 1.5, "2", True])
def test_history_out_of_range(value):
    with pytest.raises(ValueError, match="history must be an integer of 1 or more, got"):
        KLASSSampler(history=value)


@pytest.mark.parametrize("value", [1, 2.0, None, True])
def test_base_out_of_range(value):
    with pytest.raises(ValueError, match="base must be an integer of 2 or more, got"):
        DilatedSampler(base=value)


def test_clip_out_of_range():
    with pytest.raises(ValueError, match="clip must be a number in"):
        PositionSampler(clip=0.0)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([0.5, 0.5], "list"),
        (torch.ones(2, 2), r"torch.float32 \(2, 2\)"),
        (torch.ones(2, dtype=torch.long), r"torch.int64 \(2,\)"),
        (torch.tensor([0.5, -0.1]), r"torch.float32 \(2,\)"),
    ],
)
def test_frequencies(value, got):
    with pytest.raises(ValueError, match=rf"frequencies must be a float tensor \[vocab\] of 0 or more, got {got}"):
        PositionSampler(frequencies=value)


def test_frequencies_of_another_vocabulary():
    step = step_of(torch.zeros(1, 2, VOCAB), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="frequencies must have one entry for each of 5 tokens, got 4"):
        propose(PositionSampler(frequencies=torch.ones(4)), step)


@pytest.mark.parametrize("value", [float("nan"), "fast", None, 1e9, -float("inf")])
def test_bias_out_of_range(value):
    with pytest.raises(ValueError, match="bias must be a number in"):
        LearnedOrderSampler(scorer=SCORER, bias=value)


@pytest.mark.parametrize("law", ["regret", "non_empty"])
@pytest.mark.parametrize(("bias", "count"), [(-700.0, 1), (700.0, 9)])
def test_the_largest_biases(law, bias, count):
    scorer = OrderScorer(OrderScorerConfig(law=law, hidden_size=8, denoiser_hidden_size=4, vocab_size=VOCAB))
    step = step_of(torch.zeros(20, 9, VOCAB), torch.ones(20, 9, dtype=torch.bool))
    assert (propose(LearnedOrderSampler(scorer=scorer, bias=bias), step).unmask.sum(-1) == count).all()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_greedy_of_another_type(value):
    with pytest.raises(ValueError, match=f"greedy must be True or False, got {value!r}"):
        LearnedOrderSampler(scorer=SCORER, greedy=value)


def test_scorer_of_another_type():
    with pytest.raises(TypeError, match="scorer must be an OrderScorer, got Linear"):
        LearnedOrderSampler(scorer=torch.nn.Linear(2, 2))


def test_defaults_are_those_of_the_papers():
    assert make_sampler("threshold").threshold == 0.9
    assert make_sampler("factor").factor == 1.0
    assert make_sampler("entropy_bound").gamma == 0.1
    assert make_sampler("frechet").margin == 0.25
    assert vars(make_sampler("local_leap")) == {"threshold": 0.9, "relaxed": 0.75, "radius": 4}
    assert vars(make_sampler("klass")) == {"threshold": 0.9, "epsilon": 0.01, "history": 2}
    assert vars(make_sampler("position")) == {"decay": 0.25, "clip": 10.0, "frequencies": None}
    assert make_sampler("dilated").base == 2
    assert vars(make_sampler("remdm")) == {"schedule": "cap", "eta": 0.008, "confidence": False}
    assert vars(make_sampler("wino")) == {"draft": 0.6, "verify": 0.9}


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
