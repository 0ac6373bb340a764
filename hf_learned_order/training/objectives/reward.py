"""Task reward: right, and fast.

    reward = [the response is right] * (1 - (NFE - 1) / canvas)^alpha

The product matters: a sum is largest for unmasking everything at once, whatever it says. What is right is the published
response, token for token, or what a judge says of it: where many responses are right, the published one is only one of
them.

Decoding goes on as in generation up to one step, the same for a batch, chosen evenly among those that a law decides.
There K sets are drawn, and each is decoded to the end as in generation; each draw is followed by what it earned more
than the mean of the other K - 1. Times the number of steps to choose from this is, for a law that draws, an unbiased
estimate of the gradient of the expected reward. For the regret law, which draws nothing, it is that of one that
explores at one step (`OrderScorer.exploring_law`) and is the law itself at all others. One step that explores at a time
says which draw was to blame, its states are those that generation passes, and the K decodings share what lies before.
Group-relative policies divide by the standard deviation of the group as well, which weights prompts by how even they
are and makes the gradient that of no fixed objective; that is left out.

A scorer with that law learns with every budget: each batch has a T and a bound of its own, small budgets more
often, where decoding has most to lose, and larger bounds with these. Its probabilities keep what they mean by a share
of `regret.doubt_loss`, at the states that the decoding passes anyway. With a judge there is none: that loss takes
the published token for the only right one. What the bound bounds is then no longer a risk, only a knob.

At a temperature above 0 all of these decodings draw their tokens, each of the K its own, at the step that explores as
behind it: the estimate stays unbiased, of the expected reward of a draw.

Source: Jazbec et al., Learning Unmasking Policies for Diffusion Language Models, arXiv 2512.09106 (group-relative
policy gradient with a product of correctness and speed; this speed factor and the single step are ours).
Symbols: `x` clean, `T` max_denoising_steps, `K` num_chains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_temperature
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Proposal, State
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.denoisers.sharding import in_step
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.objectives.base import Batch, Objective
from hf_learned_order.training.objectives.chains import leave_one_out
from hf_learned_order.training.objectives.judging import Judge
from hf_learned_order.training.objectives.regret import doubt_loss
from hf_learned_order.training.objectives.rollouts import OrderByRow
from hf_learned_order.training.objectives.updates import Draws, mean_of

BIASES = (-0.1, 7.0)  # times T, and divided by it: a batch's bias is drawn between the two
CORRECTNESS = 0.1  # the share of `doubt_loss`


class RewardObjective(Objective):
    """Maximises the expected reward of the scorer's own decodings.

    Args:
        denoiser: p_theta, never trained by this objective.
        scorer: an `OrderScorer` with any law.
        max_denoising_steps: T; with the regret law the largest one, each batch has its own.
        num_chains: K.
        eos_token_id: a row is finished when everything before its first EOS is settled, as in generation.
        speed_exponent: alpha, how much speed counts; 0: not at all.
        is_right: the judge, as `Judge` has it. By default a response is right that is the published one. Then most
            explored responses need no denoiser any more, as what is wrong stays wrong; those that are judged are all
            decoded to their end.
        temperature: of the decodings; 0: greedy.

    Raises:
        ValueError: a number is out of range: one step leaves nothing to choose, one chain nothing to compare with.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int = 8,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        speed_exponent: float = 1.0,
        is_right: Callable[[Tensor, Tensor], Tensor] | None = None,
        temperature: float = 0.0,
    ):
        super().__init__(denoiser, scorer, max_denoising_steps=max_denoising_steps, eos_token_id=eos_token_id)
        for name, value in (("max_denoising_steps", max_denoising_steps), ("num_chains", num_chains)):
            if value < 2:
                raise ValueError(f"{name} must be 2 or more, got {value}")
        if not speed_exponent >= 0:
            raise ValueError(f"speed_exponent must be 0 or more, got {speed_exponent}")
        check_temperature(temperature, finite=True)
        self.num_chains = num_chains
        self.temperature = temperature
        self.speed_exponent = speed_exponent
        self.judge = Judge(eos_token_id=eos_token_id, is_right=is_right)

    def measured(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` (to be minimised), the means of `reward` over the draws, `exact` (share of responses that come out
        right without exploring; with a judge its name is `right`) and `nfe`.

        Raises:
            ValueError: there is a judge and the batch has no `answer`.
        """
        clean, draws = batch.clean, batch.draws
        steps, bias = self._budget(draws)
        branch = draws.integer(2, steps)
        # before any decoding, which is as long as the slowest row of the batch: [batch, K, branch, canvas + 1], of the
        # step that explores and those behind it
        numbers = draws.uniform(self.num_chains, branch, clean.shape[1] + 1)
        # of the tokens, likewise: of each row's decoding, and of each of its K
        own, of_chains = (draws.generators(n) if self.temperature else [] for n in (1, self.num_chains))
        sampler = _Branching(
            scorer=self.scorer,
            bias=bias,
            clean=clean if self.judge.is_right is None else None,
            branch=branch,
            steps=steps,
            gradient=torch.is_grad_enabled(),
            draws=draws,
            seen=[],
            states=[],
        )
        canvas = clean.masked_fill(batch.masked, self.denoiser.mask_token_id)
        surrogate, reward = clean.new_zeros((), dtype=torch.float), clean.new_zeros((), dtype=torch.float)
        with in_step(self.denoiser, clean.device):
            output = self._decode(batch.prompt, batch.prompt_mask, canvas, sampler, steps, own)
            if sampler.states:  # else every row had finished before
                surrogate, reward = self._explore(batch, sampler, numbers, of_chains)
        right = self.judge.right(output.sequences[:, -clean.shape[1] :], clean, batch.answer)
        loss = -(steps - 1) * surrogate
        if sampler.seen:
            observed, counts = (torch.stack(parts).sum() for parts in zip(*sampler.seen, strict=True))
            loss = loss + CORRECTNESS * mean_of(observed, counts)
        # a batch without a draw still gives every parameter a gradient, of 0
        loss = loss + sum(0.0 * p.sum() for p in self.scorer.parameters())
        name = "exact" if self.judge.is_right is None else "right"
        return {"loss": loss, "reward": reward, name: right.float().mean(), "nfe": output.nfe.float().mean()}

    def _explore(
        self, batch: Batch, sampler: "_Branching", numbers: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """The sum of log q(r) times its advantage over rows and draws, and that of rewards, both divided by B K."""
        ((step, values),) = sampler.states
        rows = step.rows
        chains = self.num_chains
        # a judge knows no end of the right response: what counts is that of the response as it looks here
        looks = (
            batch.clean[rows]
            if self.judge.is_right is None
            else torch.where(step.masked, step.predictions.tokens, step.canvas)
        )
        law = self.scorer.exploring_law(step, values, bias=sampler.bias, where=self.judge.response(looks))
        numbers = numbers[rows].transpose(0, 1)
        with torch.no_grad():
            unmask = law.draw(numbers[:, :, 0])  # [K, rows, canvas]
        log_q = law.log_prob(unmask)  # [K, rows]
        mine = [generators[row * chains + k] for k in range(chains) for row in rows.tolist()] if generators else []
        canvas = torch.where(unmask, self._tokens(step, mine), step.canvas).flatten(0, 1)
        masked = (step.masked & ~unmask).flatten(0, 1)
        rows = rows.repeat(chains)
        clean, answer = batch.clean[rows], None if batch.answer is None else batch.answer[rows]
        taken = torch.full_like(rows, sampler.calls)
        unfinished = (masked & self.judge.response(canvas)).any(-1)
        if self.judge.is_right is None:
            # what is wrong stays wrong
            unfinished &= (masked | (canvas == clean) | ~self.judge.response(clean)).all(-1)
        going_on = unfinished.nonzero().squeeze(-1)
        if len(going_on):
            rest = _Rest(scorer=self.scorer, bias=sampler.bias, numbers=numbers.flatten(0, 1)[going_on])
            at = rows[going_on]
            mine = [mine[place] for place in going_on.tolist()] if mine else []
            place = batch.prompt[at], batch.prompt_mask[at], canvas[going_on]
            output = self._decode(*place, rest, sampler.branch - 1, mine)
            canvas[going_on] = output.sequences[:, -clean.shape[1] :]
            taken[going_on] += output.nfe
        right = self.judge.right(canvas, clean, answer)
        reward = (right * (1 - (taken - 1) / clean.shape[1]) ** self.speed_exponent).view(chains, -1)
        draws = len(batch.clean) * chains
        return (log_q * leave_one_out(reward.T).T).sum() / draws, reward.sum() / draws

    def _tokens(self, step: Step, generators: list[torch.Generator]) -> Tensor:
        """[K, rows, canvas], by K generators of each row; [rows, canvas] at temperature 0, where all K are the same."""
        if not generators:
            return step.predictions.tokens
        uniform = torch.stack([torch.rand(step.masked.shape[1], generator=own) for own in generators])
        uniform = uniform.view(self.num_chains, -1).to(step.masked.device)[:, step.predictions.index]
        draws = (step.predictions.draw(temperature=self.temperature, uniform=numbers) for numbers in uniform)
        return torch.stack([*draws])

    def _budget(self, draws: Draws) -> tuple[int, float]:
        """T and the bias of a batch."""
        if self.scorer.is_random:
            return self.max_denoising_steps, 0.0
        # evenly in log T
        steps = 2 * (self.max_denoising_steps / 2 + 0.5) ** draws.number(0.0, 1.0)
        steps = min(int(steps), self.max_denoising_steps)
        low, high = BIASES[0] * steps, BIASES[1] / steps
        return steps, draws.number(low, high)

    def _decode(
        self,
        prompt: Tensor,
        prompt_mask: Tensor,
        canvas: Tensor,
        sampler: LearnedOrderSampler,
        steps: int,
        generators: list[torch.Generator],
    ) -> LearnedOrderOutput:
        if prompt_mask.shape[1] > prompt.shape[1]:  # rows of different lengths, without prompts
            place: dict[str, Any] = {"input_ids": canvas, "attention_mask": prompt_mask, "infill": True}
        else:
            place = {"input_ids": prompt, "attention_mask": prompt_mask, "draft": canvas}
        return decode(
            self.denoiser,
            **place,
            sampler=sampler,
            max_denoising_steps=steps,
            eos_token_id=self.eos_token_id,
            temperature=self.temperature,
            generator=generators or None,
        )


@dataclass(frozen=True, kw_only=True)
class _Branching(OrderByRow):
    """The learned order, what the law was made of at one of its steps, and what there is to learn at each."""

    clean: Tensor | None  # None: nothing but the one step
    branch: int  # steps left at that step, it included
    steps: int
    gradient: bool  # decoding is without
    seen: list[tuple[Tensor, Tensor]]
    states: list[tuple[Step, Tensor]]

    @property
    def calls(self) -> int:
        """Of the denoiser, up to that step."""
        return self.steps - self.branch + 1

    def propose(self, step: Step, state: State) -> Proposal:
        with torch.set_grad_enabled(self.gradient):
            values = self.scorer(step)
            if self.clean is not None and not self.scorer.is_random:
                self.seen.append(doubt_loss(step, values[..., 0], self.clean[step.rows]))
        if step.steps_left == self.branch:
            self.states.append((step, values))
        return self.drawn(step, values.detach())


@dataclass(frozen=True, kw_only=True)
class _Rest(LearnedOrderSampler):
    """The learned order behind the step that explores, each row drawn by numbers of its own."""

    numbers: Tensor  # [rows, branch, canvas + 1]

    def propose(self, step: Step, state: State) -> Proposal:
        law = self.scorer.law(step, self.scorer(step), bias=self.bias)
        return Proposal(law.draw(self.numbers[step.rows, -step.steps_left]))
