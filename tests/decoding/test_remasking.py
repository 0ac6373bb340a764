"""ReMDM and WINO: each is its formula, what only a right state solves, options."""

import dataclasses

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chi_square_excess
from problems import MASK, Scripted
from strategies import VOCAB, counts, positions, step_of, steps

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.adaptive import ThresholdSampler
from hf_learned_order.decoding.samplers.remasking import ReMDMSampler, WINOSampler
from hf_learned_order.decoding.samplers.scheduled import IIDSampler
from hf_learned_order.orders.laws.base import at_least_one

RIGHT, WRONG = Scripted.RIGHT, Scripted.WRONG


class TestReMDM:
    @pytest.mark.parametrize("masked", [[True, False, True, False, False], [False, True, True, True, False]])
    @pytest.mark.parametrize(("budget", "steps_left"), [(4, 3), (5, 2), (9, 8), (8, 4)])
    @pytest.mark.parametrize(
        "sampler",
        [
            ReMDMSampler(schedule="cap", eta=0.3),
            ReMDMSampler(schedule="cap", eta=1.0),
            ReMDMSampler(schedule="rescale", eta=0.6),
            ReMDMSampler(schedule="rescale", eta=1.0, confidence=True),
            ReMDMSampler(schedule="cap", eta=0.4, confidence=True),
        ],
        ids=str,
    )
    def test_law(self, masked, budget, steps_left, sampler):
        rows = 6000
        step = step_of(torch.zeros(rows, 5, VOCAB), torch.tensor(masked).expand(rows, -1), steps_left=budget)
        state = sampler.init_state(step)
        unmask, state, remask = sampler.propose(dataclasses.replace(step, steps_left=steps_left), state)
        psi = step.token_log_probs[0].exp().tolist()
        law, chances = oracles.remdm(masked, psi, budget, steps_left, *dataclasses.astuple(sampler))
        assert chi_square_excess(counts(unmask), law) < 5
        assert chi_square_excess(counts(remask), oracles.independent(chances)) < 5
        assert (state[0] == budget).all()

    @pytest.mark.parametrize("schedule", ["cap", "rescale"])
    @pytest.mark.parametrize("eta", [0.0, 0.2, 0.7, 1.0])
    def test_as_many_are_masked_as_in_ancestral_sampling(self, schedule, eta):
        """Theorem 3.1: remasking does not change the marginals. Without the state, T is wrong and this fails."""
        rows, length, budget = 1000, 40, 6
        sampler, masked, state = ReMDMSampler(schedule=schedule, eta=eta), torch.ones(rows, length).bool(), None
        for steps_left in range(budget, 1, -1):
            step = step_of(torch.zeros(rows, length, VOCAB), masked, steps_left=steps_left, seed=steps_left)
            unmask, state, remask = sampler.propose(step, state or sampler.init_state(step))
            masked = masked & ~unmask | remask
            share = masked.float().mean().item()
            assert share == pytest.approx((steps_left - 1) / budget, abs=5 * 0.5 / (rows * length) ** 0.5)

    @given(step=steps(), schedule=st.sampled_from(["cap", "rescale"]), confidence=st.booleans())
    def test_without_remasking_it_is_ancestral_sampling(self, step, schedule, confidence):
        sampler = ReMDMSampler(schedule=schedule, eta=0.0, confidence=confidence)
        seeded = [dataclasses.replace(step, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
        unmask, _, remask = sampler.propose(seeded[0], sampler.init_state(dataclasses.replace(step, steps_left=99)))
        assert torch.equal(unmask, IIDSampler().propose(seeded[1], ()).unmask)
        assert not remask.any()

    def test_the_least_sure_token_is_remasked_most(self):
        masked = torch.tensor([False, False, True, False]).expand(9000, -1)
        step = step_of(torch.zeros(9000, 4, VOCAB), masked, steps_left=9)
        step = dataclasses.replace(step, token_log_probs=torch.tensor([0.99, 0.1, 1.0, 0.5]).log().expand(9000, -1))
        sampler = ReMDMSampler(schedule="rescale", eta=1.0, confidence=True)
        remask = sampler.propose(dataclasses.replace(step, steps_left=5), sampler.init_state(step)).remask
        share = remask.float().mean(0)
        assert share[1] > share[3] + 0.05 > share[0] + 0.1
        assert share[2] == 0
        assert share.sum().item() == pytest.approx(1.0, abs=0.05)  # sigma_max, shared out

    @pytest.mark.parametrize("value", ["conf", "loop", None])
    def test_schedule(self, value):
        with pytest.raises(ValueError, match=f"schedule must be one of cap, rescale, got {value!r}"):
            ReMDMSampler(schedule=value)

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True])
    def test_eta(self, value):
        with pytest.raises(ValueError, match=r"eta must be a number in \[0.0, 1.0\], got"):
            ReMDMSampler(eta=value)

    @pytest.mark.parametrize("value", [1, "yes", None])
    def test_confidence(self, value):
        with pytest.raises(ValueError, match=f"confidence must be True or False, got {value!r}"):
            ReMDMSampler(confidence=value)


class TestWINO:
    @given(
        step=steps(),
        before=st.integers(0, 5),
        draft=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
        verify=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    )
    def test_formula(self, step, before, draft, verify):
        befores = [(before + row) % 6 for row in range(len(step.masked))]
        state = (torch.tensor(befores)[:, None],)
        unmask, (count,), remask = WINOSampler(draft=draft, verify=verify).propose(step, state)
        unmask = at_least_one(unmask, step.masked, step.predictions.confidence)
        c, now = step.predictions.confidence.tolist(), step.predictions.log_probs[..., 0].exp().tolist()
        for row, masked in enumerate(step.masked.tolist()):
            drafted, doubtful = oracles.wino(c[row], now[row], masked, befores[row], draft, verify)
            assert (positions(unmask[row]), positions(remask[row])) == (drafted, doubtful)
            assert count[row].item() == max(len(drafted), 1)

    def test_what_was_drafted_too_early_is_corrected(self):
        """Four hasty tokens, wrong until position 5 is known; 4 and 6 are hard until then. Row 9 has nothing hard."""

        def script(prompt, canvas):
            known = canvas[5] != MASK
            hasty = (RIGHT, 0.97) if known else (WRONG, 0.7)
            hard = (RIGHT, 0.95) if known or prompt == 9 else (RIGHT, 0.55)
            return [hasty] * 4 + [hard, (RIGHT, 0.95), hard]

        prompts = torch.tensor([[9], [8]])
        output = decode(Scripted(script), prompts, sampler=WINOSampler(), max_new_tokens=7)
        # the second step may remask one less than the five of the first: all four wrong ones
        assert output.order.tolist() == [[1] * 7, [3, 3, 3, 3, 2, 1, 2]]
        assert output.nfe.tolist() == [1, 3]
        assert output.sequences[1, 1:].tolist() == [RIGHT] * 7
        hasty = decode(Scripted(script), prompts, sampler=ThresholdSampler(threshold=0.6), max_new_tokens=7)
        assert hasty.sequences[1, 1:].tolist() == [WRONG] * 4 + [RIGHT] * 3

    def test_a_step_remasks_less_than_the_one_before_drafted(self):
        """Two drafts a step, and every token is doubted: net one a step until the canvas is full."""

        def script(prompt, canvas):
            waiting = [i for i, token in enumerate(canvas) if token == MASK][:2]
            return [(RIGHT, 0.9 if i in waiting else 0.55) for i in range(len(canvas))]

        output = decode(Scripted(script), torch.tensor([[1]]), sampler=WINOSampler(), max_new_tokens=6)
        # drafted {0 1} {2 3} {0 4} {1 5} {0}; remasked {} {0} {1} {0} {}, the leftmost of equally doubtful ones
        assert output.order[0].tolist() == [5, 4, 2, 2, 3, 4]
        assert output.nfe.item() == 5

    @pytest.mark.parametrize("name", ["draft", "verify"])
    @pytest.mark.parametrize("value", [-0.1, 1.1, "0.5"])
    def test_options(self, name, value):
        with pytest.raises(ValueError, match=rf"{name} must be a number in \[0.0, 1.0\], got"):
            WINOSampler(**{name: value})
