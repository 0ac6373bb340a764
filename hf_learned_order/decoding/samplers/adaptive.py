"""Rules that take as many positions per step as the denoiser's predictions allow."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import max_pool1d

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State, check_integer, check_range
from hf_learned_order.denoisers.predictions import Step


@dataclass(frozen=True, kw_only=True)
class ThresholdSampler(Sampler):
    """Every position with c >= threshold, else the one with the largest c. Fast-dLLM, arXiv 2505.22618."""

    threshold: float = 0.9

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(step.predictions.confidence >= self.threshold)


@dataclass(frozen=True, kw_only=True)
class FactorSampler(Sampler):
    """The n positions with the largest c, for the largest n with (n + 1)(1 - c_(n)) < factor, c_(n) being the n-th
    largest; where there is none, the position with the largest c. Ties go to the leftmost. Fast-dLLM, arXiv 2505.22618.

    Behind the rule stands a theorem: n tokens that each have a probability above 1 - eps, with (n + 1) eps <= 1, are
    also the most likely ones together.
    """

    factor: float = 1.0

    def __post_init__(self):
        check_range("factor", self.factor, low=0.0)

    def propose(self, step: Step, state: State) -> Proposal:
        confidence = step.predictions.confidence.masked_fill(~step.masked, -torch.inf)
        falling, order = confidence.sort(dim=-1, descending=True, stable=True)
        # the left side only grows with n, so the n that fulfil it are the first ones
        n = torch.arange(1, falling.shape[-1] + 1, device=falling.device)
        return Proposal(torch.zeros_like(step.masked).scatter(-1, order, (n + 1) * (1 - falling) < self.factor))


@dataclass(frozen=True, kw_only=True)
class FrechetSampler(Sampler):
    """The n positions with the largest c, for the largest n with sum_{j<=n} c_(j) - (n - 1) - (1 - c_(n)) > margin;
    where there is none, the position with the largest c. Fast-dLLM++, arXiv 2606.02955.

    The first two terms bound the probability that all n are right from below, whatever their dependence (Frechet), and
    1 - c_(n) bounds that of any other choice from above. Where all c are equal it is `factor` with 1 - margin.

    Attributes:
        margin: delta, 1 or less. Their experiments have 0.25; below 0 the bound no longer holds, and more go.
    """

    margin: float = 0.25

    def __post_init__(self):
        check_range("margin", self.margin, low=-math.inf, high=1.0)

    def propose(self, step: Step, state: State) -> Proposal:
        falling, order = step.predictions.confidence.masked_fill(~step.masked, -torch.inf).sort(
            dim=-1, descending=True, stable=True
        )
        falling = falling.double()  # a sum of a thousand numbers near 1, of which a thousand is taken away
        before = torch.arange(falling.shape[-1], device=falling.device)
        # it only falls with n, so the n that fulfil it are the first ones
        score = falling.cumsum(-1) - before - (1 - falling)
        return Proposal(torch.zeros_like(step.masked).scatter(-1, order, score > self.margin))


@dataclass(frozen=True, kw_only=True)
class LocalLeapSampler(Sampler):
    """Every position with c >= threshold, an anchor, and within `radius` of one every position with c >= relaxed;
    without an anchor the position with the largest c. LocalLeap, arXiv 2510.07081.

    Anchors are masked themselves: what is unmasked already is none.
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    radius: int = 4

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)
        check_range("relaxed", self.relaxed, low=0.0, high=self.threshold)
        check_integer("radius", self.radius, low=0)

    def propose(self, step: Step, state: State) -> Proposal:
        confidence = step.predictions.confidence
        anchors = step.masked & (confidence >= self.threshold)
        width = 2 * self.radius + 1
        near = max_pool1d(anchors.float()[:, None], width, stride=1, padding=self.radius)[:, 0] > 0
        return Proposal(anchors | near & (confidence >= self.relaxed))


@dataclass(frozen=True, kw_only=True)
class EntropyBoundSampler(Sampler):
    """The most positions, by rising H, with sum H - max H <= gamma. EB-sampler, arXiv 2505.24857."""

    gamma: float = 0.1

    def __post_init__(self):
        check_range("gamma", self.gamma, low=0.0)

    def propose(self, step: Step, state: State) -> Proposal:
        entropy = step.predictions.entropy.masked_fill(~step.masked, torch.inf)
        rising, order = entropy.sort(dim=-1, stable=True)
        # sorted, so the largest of the first k is the k-th: the sum without it is the sum of the ones before
        accepted = rising.masked_fill(rising.isinf(), 0.0).cumsum(-1).roll(1, -1)
        accepted[..., 0] = 0.0
        return Proposal(torch.zeros_like(step.masked).scatter(-1, order, accepted <= self.gamma))


@dataclass(frozen=True, kw_only=True)
class KLASSSampler(Sampler):
    """Every position with c > threshold whose prediction was stable, KL(p_t || p_t-1) < epsilon, at each of the last
    `history` steps; else the one with the largest c. KLASS, arXiv 2511.05664.

    The first step has no step before it, so nothing is stable before step history + 1. Their values for GSM8K are
    0.6, 0.015, 2. The state holds the predictions of the step before: [batch, canvas, vocab].
    """

    threshold: float = 0.9
    epsilon: float = 0.01
    history: int = 2

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)
        check_range("epsilon", self.epsilon, low=0.0)
        check_integer("history", self.history, low=1)

    def init_state(self, step: Step) -> State:
        """log p_t-1, and for how many steps each position has been stable, int [batch, canvas]."""
        # -1: the first step compares a prediction with itself, and that counts for nothing
        return step.predictions.log_probs, torch.full_like(step.masked, -1, dtype=torch.long)

    def propose(self, step: Step, state: State) -> Proposal:
        previous, stable = state
        stable = torch.where(step.predictions.kl(previous) < self.epsilon, stable + 1, 0)
        unmask = (step.predictions.confidence > self.threshold) & (stable >= self.history)
        # in place: beside the logits a second tensor of their size fits into memory, a third would not
        return Proposal(unmask, (step.predictions.write_log_probs(previous), stable))
