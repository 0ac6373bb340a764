"""K decodings of each prompt by the learned order itself, with the log-probabilities of what it drew: for objectives
that score whole responses and follow the gradient of the order's own draws (REINFORCE).

Tokens are the denoiser's business: given the positions, their law does not depend on the scorer, so the gradient of the
expected reward is the mean of `reward * grad log q(r_t)` however tokens are chosen.

The factor law has nothing random about it. For training, and only then, Gaussian noise is added to its logits,
z = s + e; the set is the law's own of z, and log q is the log-density of z around s. That gives the gradient of the
expected reward under that noise, without bias. Decoding is without it.

Symbols: `s` scores, `r_t` unmask, `q` the law of r_t (prior and posterior are one here), `K` num_chains.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.samplers.base import Proposal, State
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.configuration import ELBO_LAWS
from hf_learned_order.orders.laws.base import everything
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.training.chains import leave_one_out
from hf_learned_order.training.judging import Judge
from hf_learned_order.training.updates import Draws


class Rollouts(NamedTuple):
    """K decodings of each of B prompts.

    Attributes:
        tokens: int [B, K, canvas]; behind the first EOS what was drawn, EOS where nothing was.
        order: int [B, K, canvas], the step, from 1, that unmasked a position; 0 where none did.
        token_log_probs: [B, K, canvas], log p_theta of each token when it was unmasked, nats.
        log_q: [steps, B, K], log q of each step's draw, differentiable; 0 after the end. The last step draws nothing.
        nfe: int [B, K].
    """

    tokens: Tensor
    order: Tensor
    token_log_probs: Tensor
    log_q: Tensor
    nfe: Tensor

    def surrogate(self, returns: Tensor) -> Tensor:
        """A scalar whose gradient is an unbiased estimate of that of the mean return.

        `returns` [steps, B, K]: what followed a draw. Leave-one-out over K is the baseline.
        """
        return (self.log_q * leave_one_out(returns)).sum(0).mean()


class PolicyGradientObjective(nn.Module):
    """What objectives share that follow the gradient of the scorer's own draws, over K decodings of a prompt.

    Args:
        denoiser: p_theta, never trained by these objectives.
        scorer: an `OrderScorer` with any law but "dependent".
        max_denoising_steps: T, the step budget of the decodings.
        num_chains: K.
        eos_token_id: a row is finished when everything before its first EOS is settled, as in generation.

    Raises:
        ValueError: the scorer has another law, or a number is out of range: one step leaves nothing to choose, one
            chain nothing to compare with.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int,
        num_chains: int,
        eos_token_id: int | None,
    ):
        super().__init__()
        if scorer.config.law not in ELBO_LAWS:
            raise ValueError(
                f"law must be one of {', '.join(ELBO_LAWS)}, got {scorer.config.law!r}, which draws nothing"
            )
        for name, value in (("max_denoising_steps", max_denoising_steps), ("num_chains", num_chains)):
            if value < 2:
                raise ValueError(f"{name} must be 2 or more, got {value}")
        self.denoiser = denoiser
        self.scorer = scorer
        self.max_denoising_steps = max_denoising_steps
        self.num_chains = num_chains
        self.eos_token_id = eos_token_id

    def response(self, tokens: Tensor) -> Tensor:
        """bool, shape of `tokens` [..., canvas]: `Judge.response`."""
        return Judge(eos_token_id=self.eos_token_id).response(tokens)


class RolloutObjective(PolicyGradientObjective):
    """One that scores whole decodings, and every draw in them.

    Args:
        denoiser, scorer, max_denoising_steps, num_chains, eos_token_id: as in `PolicyGradientObjective`.
        noise: standard deviation of what is added to the logits of a factor law.

    Raises:
        ValueError: `noise` is not positive, or as `PolicyGradientObjective`.
    """

    temperature: float  # of the tokens

    def __init__(
        self,
        denoiser: Denoiser,
        scorer: OrderScorer,
        *,
        max_denoising_steps: int = 8,
        num_chains: int = 8,
        eos_token_id: int | None = None,
        noise: float = 0.5,
    ):
        super().__init__(
            denoiser,
            scorer,
            max_denoising_steps=max_denoising_steps,
            num_chains=num_chains,
            eos_token_id=eos_token_id,
        )
        if not noise > 0:
            raise ValueError(f"noise must be positive, got {noise}")
        self.noise = noise

    def rollouts(self, input_ids: Tensor, attention_mask: Tensor, length: int, seeds: Tensor | None = None) -> Rollouts:
        """K decodings of each prompt [batch, prompt] on a canvas of `length`; `seeds` are those of `updates.Draws`."""
        draws = Draws(seeds, rows=len(input_ids), device=input_ids.device)
        batch, chains = len(input_ids), self.num_chains
        tokens = input_ids.new_full((batch * chains, length), self.denoiser.mask_token_id)
        sampler = _Recorded(
            scorer=self.scorer,
            noise=self.noise,
            gradient=torch.is_grad_enabled(),
            draws=draws,
            temperature=self.temperature,
            tokens=tokens,
            log_q=[],
        )
        output = decode(
            self.denoiser,
            input_ids.repeat_interleave(chains, 0),
            attention_mask.repeat_interleave(chains, 0),
            sampler=sampler,
            max_new_tokens=length,
            max_denoising_steps=self.max_denoising_steps + 1,  # see `_Recorded`
            eos_token_id=self.eos_token_id,
            clean=tokens,
        )
        # what was drawn behind the first EOS too, where the output has padding
        tokens = torch.where(tokens == self.denoiser.mask_token_id, output.sequences[:, -length:], tokens)
        return Rollouts(
            tokens=tokens.view(batch, chains, length),
            order=output.order.view(batch, chains, length),
            token_log_probs=output.token_log_probs.view(batch, chains, length),
            log_q=torch.stack(sampler.log_q).view(-1, batch, chains),
            nfe=output.nfe.view(batch, chains),
        )


@dataclass(frozen=True, kw_only=True)
class OrderByRow(LearnedOrderSampler):
    """The learned order, drawn for each row by itself: the same whatever batch the row is in."""

    draws: Draws

    def propose(self, step: Step, state: State) -> Proposal:
        return self.drawn(step, self.scorer(step))

    def drawn(self, step: Step, values: Tensor) -> Proposal:
        """A draw from the law of `values`, which the scorer gave."""
        uniform = self.draws.uniform(step.masked.shape[1] + 1)[step.rows]
        return Proposal(self.scorer.law(step, values, bias=self.bias).draw(uniform))


@dataclass(frozen=True, kw_only=True)
class _Recorded(LearnedOrderSampler):
    """The learned order, and of each of its steps the log-probability of what it drew.

    It draws the tokens as well, each prompt's with random numbers of its own, and the loop takes them for given ones.
    The loop asks no rule at its last step. It is given one step more, so that this is asked at the last of T, and
    unmasks everything itself.
    """

    noise: float
    gradient: bool  # decoding is without
    draws: Draws
    temperature: float
    tokens: Tensor  # int [rows, canvas], written: what was drawn, the mask token where nothing was
    log_q: list[Tensor]  # [rows], one a step

    @property
    def chains(self) -> int:
        return len(self.tokens) // self.draws.rows

    def propose(self, step: Step, state: State) -> Proposal:
        step = replace(step, steps_left=step.steps_left - 1)
        unmask = everything(step.masked) if step.steps_left == 1 else self._set(step)
        self.tokens[step.rows] = torch.where(unmask, self._drawn(step, unmask), self.tokens[step.rows])
        return Proposal(unmask)

    def _set(self, step: Step) -> Tensor:
        """bool [batch, canvas], non-empty; its log-probability is put down."""
        rows, chains, length = step.rows, self.chains, step.masked.shape[1]
        with torch.set_grad_enabled(self.gradient):
            values = self.scorer(step)
            if self.scorer.is_random or self.scorer.config.law == "regret":
                law = self.scorer.exploring_law(step, values, where=step.masked)
                with torch.no_grad():
                    unmask = law.draw(self.draws.uniform(chains, length + 1).flatten(0, 1)[rows])
                log_q = law.log_prob(unmask)
            else:
                drawn = values.detach() + self.noise * self.draws.normal(chains, length).flatten(0, 1)[rows]
                unmask = self.scorer.law(step, drawn).sample()
                log_q = -(((drawn - values) / self.noise).square() / 2).masked_fill(~step.masked, 0.0).sum(-1)
            self.log_q.append(log_q.new_zeros(len(self.tokens)).index_put((rows,), log_q))
        return unmask

    def _drawn(self, step: Step, unmask: Tensor) -> Tensor:
        """int [batch, canvas]: tokens, drawn from the denoiser at `unmask`."""
        predictions = step.predictions
        wanted = unmask.flatten()[predictions.index].nonzero().squeeze(-1)
        prompt = step.rows[predictions.index[wanted] // unmask.shape[1]] // self.chains
        tokens = predictions.tokens.flatten()
        for generator, places in self.draws.apart(prompt):
            drawn = predictions.draw(wanted[places], temperature=self.temperature, generator=generator).flatten()
            at = predictions.index[wanted[places]]
            tokens = tokens.index_copy(0, at, drawn[at])
        return tokens.view_as(unmask)
