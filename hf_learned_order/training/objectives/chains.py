"""K chains of each response: what their steps were worth, and the surrogates whose gradients are those of the means.

The score function of a step, grad log q(r_t), is multiplied by what followed it, less a baseline that does not depend
on r_t: the mean of what followed in the other chains of the same response (leave-one-out), or a learned value.
`objective` says what the terms of a step are.

Symbols: `T` steps, `B` responses, `K` chains of each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_learned_order.training.objectives.updates import mean_of


class Chains(NamedTuple):
    """K chains of each of B responses, T steps each; 0 before a chain starts and after it has finished.

    Attributes:
        step_terms: [T, B, K], nats, differentiable.
        log_q: [T, B, K], log-probability of the positions drawn, differentiable.
        active: bool [T, B, K], whether the chain had something masked, and the denoiser was called.
        kl: [T, B, K], nats; where the pair of laws has no closed KL, log q - log p of the draw.
        drawn: [T, B, K], the part of `step_terms - pull` that was taken at the draw; 0 where all is an expectation.
        values: [T, B, K], V(r_t) of a value baseline, differentiable; 0 without one.
        expected_values: [T, B, K], its mean over r_t, which only q has a gradient through.
        pull: [T, B, K], nats, differentiable: what exploration takes off `step_terms` in the gradient; 0 without.
        choices: from how many steps the one with a gradient was chosen; 1 where all have theirs.
    """

    step_terms: Tensor
    log_q: Tensor
    active: Tensor
    kl: Tensor
    drawn: Tensor
    values: Tensor
    expected_values: Tensor
    pull: Tensor
    choices: int = 1

    @property
    def bound(self) -> Tensor:
        """The single-chain estimate of the ELBO, [B, K], nats."""
        return self.step_terms.sum(0)

    @property
    def nfe(self) -> Tensor:
        """[B, K], denoiser calls while something was masked."""
        return self.active.sum(0)

    def returns(self, kind: str = "per_step") -> Tensor:
        """[T, B, K], nats, held constant: what the score function of a step is multiplied by, before the baseline."""
        steps = (self.step_terms - self.pull).detach()
        if kind == "trajectory":
            return steps.sum(0).expand_as(steps)
        # of later draws, what they did to the steps behind them gives way to its mean, as far as V knows it
        steps = steps + (self.expected_values - self.values).detach()
        return _after(steps) + self.drawn

    def surrogate(self, *, baseline: str = "leave_one_out", returns: str = "per_step") -> Tensor:
        """A scalar whose gradient is an unbiased estimate of the ELBO's, in nats a response."""
        total = self.returns(returns)
        terms = self.step_terms - self.pull
        if baseline == "value":
            total, terms = total - self.values.detach(), terms + self.expected_values
        elif baseline == "leave_one_out":
            total = leave_one_out(total)
        return self.choices * (terms + self.log_q * total).sum(0).mean()

    def calls_surrogate(self) -> Tensor:
        """A scalar whose gradient is an unbiased estimate of that of the mean NFE; leave-one-out is the baseline."""
        return self.choices * (self.log_q * leave_one_out(_after(self.active.float()))).sum(0).mean()

    def value_loss(self, *, returns: str = "per_step") -> Tensor:
        """Mean squared error of `values`, nats^2, over the steps that a law decided (`updates.mean_of`)."""
        number = torch.arange(len(self.values), device=self.active.device)[:, None, None]
        decided = self.active & (number < len(self.values) - 1)
        error = (self.values - self.returns(returns)).square() * decided
        return mean_of(error.sum(), decided.sum())


def _after(steps: Tensor) -> Tensor:
    """[T, ...]: of each step the sum over those that follow."""
    return steps.flip(0).cumsum(0).flip(0) - steps


def leave_one_out(returns: Tensor) -> Tensor:
    """`returns` [..., K] less the mean of the other chains', as they are where K is 1."""
    others = max(1, returns.shape[-1] - 1)
    return returns - (returns.sum(-1, keepdim=True) - returns) / others
