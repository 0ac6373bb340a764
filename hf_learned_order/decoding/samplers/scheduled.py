"""The unmasking rules, one small class each, and `SAMPLERS`; the ones that remask are in `remasking.py`.

A rule proposes which masked positions to unmask at a step, and may propose to mask unmasked ones again; the decoding
loop (`generation.py`) adds the laws that hold for every rule: nothing outside the masked positions is unmasked and
nothing else remasked, at least one position a step, everything at the last step.

Symbols: `M` masked, `n = |M|`, `c` confidence, `m` margin, `H` entropy, K = ceil(n / steps left).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State, check_integer, check_range
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import ancestral_logit, largest
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli

if TYPE_CHECKING:
    pass


SMALL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class IIDSampler(Sampler):
    """Each masked position with probability 1 / steps left, given that at least one is: ancestral sampling.

    MDLM, arXiv 2406.07524, linear schedule. A step of theirs that unmasks nothing leaves the canvas as it was and
    needs no denoiser call; here it does not occur.
    """

    is_random: ClassVar[bool] = True

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(self.law(step).draw(step.uniform(1)))

    def law(self, step: Step) -> NonEmptyBernoulli:
        logit = ancestral_logit(torch.ones((), device=step.masked.device) * step.steps_left)
        return NonEmptyBernoulli(logit.expand(step.masked.shape), step.masked)


@dataclass(frozen=True, kw_only=True)
class RandomSampler(Sampler):
    """K positions uniformly at random. LLaDA "random", arXiv 2502.09992."""

    is_random: ClassVar[bool] = True

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(largest(step.uniform(), step.masked, step.quota))


class Ranked(Sampler):
    """The K positions with the largest `preference`; ties go to the leftmost."""

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(largest(self.preference(step), step.masked, step.quota))


@dataclass(frozen=True, kw_only=True)
class LeftToRightSampler(Ranked):
    """The K leftmost positions: the autoregressive order."""

    def preference(self, step: Step) -> Tensor:
        return -step.masked.float().cumsum(-1)


@dataclass(frozen=True, kw_only=True)
class TopProbSampler(Ranked):
    """The K positions with the largest c. LLaDA "low_confidence", arXiv 2502.09992."""


@dataclass(frozen=True, kw_only=True)
class MarginSampler(Ranked):
    """The K positions with the largest m. Kim et al., arXiv 2502.06768."""

    def preference(self, step: Step) -> Tensor:
        return step.predictions.margin


@dataclass(frozen=True, kw_only=True)
class EntropySampler(Ranked):
    """The K positions with the smallest H. Dream, arXiv 2508.15487."""

    def preference(self, step: Step) -> Tensor:
        return -step.predictions.entropy


# eq=False: tensors have no single truth value to compare by
@dataclass(frozen=True, kw_only=True, eq=False)
class PositionSampler(Ranked):
    """The K positions i with the largest exp(-decay i) min(-c log f(token), clip). PC-Sampler, arXiv 2508.13021.

    `token` is the most likely one at i, and i counts from 0 at the start of the canvas: early positions and rare tokens
    go first.

    Attributes:
        decay: lambda, 0 or more; their tasks use 0 to 1.
        clip: alpha, above 0.
        frequencies: f, float [vocab], how often each token occurs in a background corpus; by default 1/vocab each,
            with which the second factor is c log(vocab).
    """

    decay: float = 0.25
    clip: float = 10.0
    frequencies: Tensor | None = None

    def __post_init__(self):
        check_range("decay", self.decay, low=0.0)
        check_range("clip", self.clip, low=SMALL)
        f = self.frequencies
        if f is not None and (
            not isinstance(f, Tensor) or f.ndim != 1 or not f.is_floating_point() or not (f >= 0).all()
        ):
            got = f"{f.dtype} {tuple(f.shape)}" if isinstance(f, Tensor) else type(f).__name__
            raise ValueError(f"frequencies must be a float tensor [vocab] of 0 or more, got {got}")

    def preference(self, step: Step) -> Tensor:
        rarity = -self._log_frequency(step)
        # in logarithms, because exp(-decay i) vanishes on a long canvas
        score = (step.predictions.confidence * rarity).clamp(SMALL, self.clip).log()
        return score - self.decay * torch.arange(step.masked.shape[-1], device=step.masked.device)

    def _log_frequency(self, step: Step) -> Tensor:
        vocab = step.predictions.logits.shape[-1]
        if self.frequencies is None:
            return torch.full_like(step.predictions.confidence, -math.log(vocab))
        if len(self.frequencies) != vocab:
            raise ValueError(f"frequencies must have one entry for each of {vocab} tokens, got {len(self.frequencies)}")
        return self.frequencies.to(step.masked.device)[step.predictions.tokens].log()


@dataclass(frozen=True, kw_only=True)
class DilatedSampler(Sampler):
    """Fixed groups from coarse to fine, one a step: group t holds the positions of the canvas (length B, from 0) that
    stride max(1, floor(B / base^t)) reaches and no group before it. DUS, arXiv 2506.19037.

    ceil(log_base B) steps fill the canvas, whatever the budget; a smaller budget takes the rest at its last step.
    """

    base: int = 2

    def __post_init__(self):
        check_integer("base", self.base, low=2)

    def propose(self, step: Step, state: State) -> Proposal:
        group = torch.zeros(step.masked.shape[-1], device=step.masked.device, dtype=torch.long)
        strides = self.strides(len(group))
        for t in reversed(range(len(strides))):  # the coarser ones last, so that they have the last word
            group[:: strides[t]] = t
        group = group.expand(step.masked.shape).masked_fill(~step.masked, len(strides))
        return Proposal(group == group.amin(-1, keepdim=True))

    def strides(self, length: int) -> list[int]:
        """One stride a step; the last one is 1."""
        strides, power = [], self.base
        while not strides or strides[-1] > 1:
            strides.append(max(1, length // power))
            power *= self.base
        return strides
