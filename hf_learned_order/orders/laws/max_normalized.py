"""Independent Bernoullis scaled so that the best position is always in: the law of arXiv 2602.23968."""

import torch
from torch import Tensor

from hf_learned_order.orders.laws.base import SubsetDistribution, bernoulli_entropy, log1mexp


class MaxNormalizedBernoulli(SubsetDistribution):
    """Independent Bernoullis with pi^i = exp((s^i - max_{j in M} s^j) / tau): the best position is always unmasked.

    Source: arXiv 2602.23968 (a "softmax-style re-normalisation"; this form is derived from that description).
    """

    def __init__(self, scores: Tensor, masked: Tensor, *, temperature: float = 0.1):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        super().__init__(scores, masked)
        filled = scores.float().masked_fill(~masked, -torch.inf)
        finished = ~masked.any(-1, keepdim=True)
        best = filled.max(-1, keepdim=True).values.masked_fill(finished, 0.0)
        self.log_pi = ((filled - best) / temperature).masked_fill(~masked, 0.0)

    @property
    def mean(self) -> Tensor:
        return self.log_pi.exp().masked_fill(~self.masked, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` where `value` leaves out a position with pi = 1 or takes one outside M."""
        failure = log1mexp(self.log_pi)
        terms = torch.where(value, self.log_pi, failure).masked_fill(~self.masked, 0.0).sum(-1)
        return terms.masked_fill((value & ~self.masked).any(-1), -torch.inf)

    def entropy(self) -> Tensor:
        return bernoulli_entropy(self.log_pi, self.masked)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        # uniform < 1, so the best position, whose pi is 1, is always in
        return (uniform < self.mean) & self.masked
