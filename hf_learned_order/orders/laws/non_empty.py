"""Independent Bernoullis, given that at least one succeeds; its divergences."""

import torch
from torch import Tensor
from torch.distributions import register_kl
from torch.nn.functional import logsigmoid

from hf_learned_order.orders.laws.base import (
    SubsetDistribution,
    bernoulli_entropy,
    first_success,
    log1mexp,
    negative_entropy,
)
from hf_learned_order.orders.laws.max_normalized import MaxNormalizedBernoulli


class NonEmptyBernoulli(SubsetDistribution):
    """Independent Bernoullis with p^i = sigmoid(s^i), conditioned on at least one success.

    With every s^i = `ancestral_logit(steps left)` it is ancestral sampling that never pays for an empty step.
    """

    def __init__(self, logits: Tensor, masked: Tensor):
        super().__init__(logits, masked)
        # A logit of +-inf has no gradient and makes 0 * inf; beyond +-60 float32 sees no difference.
        self.logits = logits.float().clamp(-60.0, 60.0).masked_fill(~masked, -torch.inf)
        self.log_success = logsigmoid(self.logits.masked_fill(~masked, 0.0)).masked_fill(~masked, 0.0)
        self.log_failure = logsigmoid(-self.logits.masked_fill(~masked, 0.0)).masked_fill(~masked, 0.0)
        self.finished = ~masked.any(-1)
        # log Z = log(1 - prod(1 - p)); a finished row has the empty set with certainty, so Z = 1 there
        log_empty = self.log_failure.sum(-1)
        self.log_normalizer = log1mexp(log_empty.masked_fill(self.finished, -1.0)).masked_fill(self.finished, 0.0)

    @property
    def mean(self) -> Tensor:
        log_mean = self.log_success - self.log_normalizer[..., None]
        return log_mean.clamp(max=0.0).exp().masked_fill(~self.masked, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` where `value` is empty though M is not, or takes a position outside M."""
        log_prob = torch.where(value, self.log_success, self.log_failure).sum(-1) - self.log_normalizer
        impossible = (value & ~self.masked).any(-1) | (~value.any(-1) & ~self.finished)
        # with one position left log p - log Z is 0 but for rounding
        return log_prob.clamp(max=0.0).masked_fill(impossible, -torch.inf)

    def entropy(self) -> Tensor:
        """H = (sum of H_b(p) - the part of the empty set) / Z + log Z."""
        normalizer = self.log_normalizer.exp()
        log_empty = self.log_failure.sum(-1)
        free = bernoulli_entropy(self.log_success, self.masked)
        entropy = (free + log_empty.exp() * log_empty) / normalizer + self.log_normalizer
        return entropy.clamp(min=0.0).masked_fill(self.finished, 0.0)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        first = first_success(self.log_success, self.log_failure, self.masked, pivot)
        index = torch.arange(uniform.shape[-1], device=uniform.device)
        free = (index > first) & (uniform < self.log_success.exp())
        return (free | (index == first)) & self.masked


@register_kl(MaxNormalizedBernoulli, NonEmptyBernoulli)
def _kl_max_normalized_non_empty(q: MaxNormalizedBernoulli, p: NonEmptyBernoulli) -> Tensor:
    # q is never empty, so conditioning p only shifts it by log Z: finite even where q's pi is 1
    return _bernoulli_kl(q.log_pi, p, q.masked) + p.log_normalizer


@register_kl(NonEmptyBernoulli, NonEmptyBernoulli)
def _kl_non_empty_non_empty(q: NonEmptyBernoulli, p: NonEmptyBernoulli) -> Tensor:
    # log q - log p is linear in r: its mean needs the marginals only
    mean = q.mean
    success = torch.where(q.masked, q.log_success - p.log_success, 0.0)
    failure = torch.where(q.masked, q.log_failure - p.log_failure, 0.0)
    kl = (mean * success + (1 - mean) * failure).sum(-1) - q.log_normalizer + p.log_normalizer
    return kl.clamp(min=0.0)


def _bernoulli_kl(log_pi: Tensor, p: NonEmptyBernoulli, masked: Tensor) -> Tensor:
    cross = log_pi.exp() * p.log_success - torch.expm1(log_pi) * p.log_failure
    return (negative_entropy(log_pi) - cross).masked_fill(~masked, 0.0).sum(-1)
