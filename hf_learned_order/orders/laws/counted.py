"""The law that first draws how many positions to unmask, then which: P(r) = w_k P(r | k), k = |r|.

How many: any weights w_1..w_n. Which: conditional Bernoulli, whose normaliser is an elementary symmetric polynomial.
With equal scores that is a uniform set of size k, and with binomial weights it is ancestral sampling.

Symbols: `s` scores, `r` unmask, `M` masked, `n` = |M|, `w` count_probs, `e_k` the elementary symmetric polynomial of
degree k of exp(s^i), i in M.
"""

from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import register_kl
from torch.nn.functional import pad

from hf_learned_order.orders.laws.base import SubsetDistribution, inverse_cdf, largest

IMPOSSIBLE = -1e30  # a log-probability that is finite, so that 0 times it is 0


def log_binomial(masked: Tensor, logit: Tensor) -> Tensor:
    """log of binomial weights of 1..canvas successes among the masked, up to a constant, [..., canvas].

    `logit` of the success probability is one number, or one a row, [..., 1]; weights of more successes than positions
    mean nothing.
    """
    size = torch.arange(1.0, masked.shape[-1] + 1, device=masked.device)
    count = masked.sum(-1, keepdim=True).float()
    rest = (count - size).clamp(min=0.0)
    ways = torch.lgamma(count + 1) - torch.lgamma(size + 1) - torch.lgamma(rest + 1)
    return ways + size * logit.clamp(-60.0, 60.0)


class CountedBernoulli(SubsetDistribution):
    """How many, then independent Bernoullis given their number: P(r | k) = exp(sum of s^i over r) / e_k.

    e_k comes from a tree over the positions: the polynomial of a node is the product of its children's, each a
    convolution in log space, so log2(canvas) steps in all. The same tree splits a count between the two halves of the
    canvas, and again, down to single positions: that is the draw, and, with the law of the count in its place, the
    marginals.

    Source: Chen, Dempster, Liu, Weighted finite population sampling to maximize entropy, Biometrika 81 (1994).

    Args:
        count_logits: [..., canvas], log-weight of unmasking 1, 2, ..., canvas positions, up to a constant; those above
            n do not matter.
        scores: [..., canvas]. Beyond +-60 they count as +-60.
        masked: bool [..., canvas].
    """

    def __init__(self, count_logits: Tensor, scores: Tensor, masked: Tensor):
        super().__init__(scores, masked)
        if count_logits.shape != masked.shape:
            raise ValueError(
                f"count_logits must have the shape of masked {tuple(masked.shape)}, got {tuple(count_logits.shape)}"
            )
        self.scores = scores.float().clamp(-60.0, 60.0).masked_fill(~masked, 0.0)
        count = masked.sum(-1, keepdim=True)
        size = torch.arange(masked.shape[-1] + 1, device=masked.device)
        possible = torch.where(count > 0, (size > 0) & (size <= count), size == 0)
        logits = pad(count_logits.float(), (1, 0)).masked_fill(~possible, IMPOSSIBLE)
        self.log_count_probs = logits.log_softmax(-1)
        one = torch.where(masked, self.scores, IMPOSSIBLE)
        self._levels = [torch.stack([torch.zeros_like(one), one], -1)]  # 1 + exp(s) z, and 1 outside M
        while self._levels[-1].shape[-2] > 1:
            if self._levels[-1].shape[-2] % 2:
                self._levels[-1] = torch.cat([self._levels[-1], _unit(self._levels[-1])], -2)
            children = self._levels[-1]
            self._levels.append(_products(children[..., 0::2, :], children[..., 1::2, :]).logsumexp(-1))
        self.log_polynomials = self._levels[-1][..., 0, : masked.shape[-1] + 1]

    @property
    def count_probs(self) -> Tensor:
        """w, [..., canvas + 1]: the probability of unmasking 0, 1, ..., canvas positions; 0 only in a finished row."""
        return self.log_count_probs.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` where `value` is empty though M is not, or takes a position outside M."""
        inside = value & self.masked
        size = inside.sum(-1, keepdim=True)
        shape = (*size.shape[:-1], self.log_count_probs.shape[-1])
        log_count = self.log_count_probs.expand(shape).gather(-1, size).squeeze(-1)
        impossible = (value & ~self.masked).any(-1) | (~value.any(-1) & self.masked.any(-1))
        return (log_count + self._log_which(inside, size)).clamp(max=0.0).masked_fill(impossible, -torch.inf)

    def greedy(self) -> Tensor:
        """bool [..., canvas]: the likeliest set of the likeliest size."""
        return largest(self.scores, self.masked, self.log_count_probs.argmax(-1, keepdim=True))

    @cached_property  # the ELBO asks twice: for its marginals, and for the KL of exploration
    def mean(self) -> Tensor:
        degree = self._levels[-1].shape[-1]
        counts = pad(self.count_probs, (0, degree - self.count_probs.shape[-1]))[..., None, :]
        for children in reversed(self._levels[:-1]):
            left, right = children[..., 0::2, :], children[..., 1::2, :]
            counts = counts[..., : left.shape[-2], :, None]
            halves = [
                (counts * _products(*pair).softmax(-1)).sum(-2).flip(-1) for pair in ((left, right), (right, left))
            ]
            counts = torch.stack(halves, -2).flatten(-3, -2)
        mean = counts[..., : self.masked.shape[-1], 1]
        return mean.clamp(max=1.0).masked_fill(~self.masked, 0.0)

    def entropy(self) -> Tensor:
        """H = H(w) + sum of w_k log e_k - sum of pi^i s^i."""
        per_count = self.count_probs * (self.log_polynomials - self.log_count_probs)
        return (per_count.sum(-1) - (self.mean * self.scores).sum(-1)).clamp(min=0.0)

    def _log_which(self, value: Tensor, size: Tensor) -> Tensor:
        shape = (*size.shape[:-1], self.log_polynomials.shape[-1])
        log_normalizer = self.log_polynomials.expand(shape).gather(-1, size).squeeze(-1)
        return (value * self.scores).sum(-1) - log_normalizer

    def _draw_count(self, pivot: Tensor) -> Tensor:
        cumulative = self.count_probs.cumsum(-1)
        return inverse_cdf(cumulative.expand(*pivot.shape[:-1], -1), pivot)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        uniform = pad(uniform, (0, self._levels[-1].shape[-1]))
        counts = self._draw_count(pivot)
        for children in reversed(self._levels[:-1]):
            left, right = children[..., 0::2, :], children[..., 1::2, :]
            half = left.shape[-1] - 1
            counts = counts[..., : left.shape[-2]]
            products = _products(left, right)
            index = counts[..., None, None].expand(*counts.shape, 1, half + 1)
            chances = products.expand(*counts.shape, *products.shape[-2:]).gather(-2, index).squeeze(-2).softmax(-1)
            # the number of the first position on the right: no two splits share one
            chance = uniform[..., half :: 2 * half][..., : counts.shape[-1], None]
            on_left = half - inverse_cdf(chances.cumsum(-1), chance).squeeze(-1)
            # scores that are no numbers split a count into more than it: an index out of bounds, on a GPU fatal
            on_left = torch.minimum(on_left, counts)
            counts = torch.stack([on_left, counts - on_left], -1).flatten(-2)
        return counts[..., : self.masked.shape[-1]].bool() & self.masked


@register_kl(CountedBernoulli, CountedBernoulli)
def _kl_counted_counted(q: CountedBernoulli, p: CountedBernoulli) -> Tensor:
    # given the count, log q - log p is linear in r: its mean needs the marginals only
    per_count = q.log_count_probs - q.log_polynomials - p.log_count_probs + p.log_polynomials
    kl = (q.count_probs * per_count).sum(-1) + (q.mean * (q.scores - p.scores)).sum(-1)
    return kl.clamp(min=0.0)


def _unit(children: Tensor) -> Tensor:
    """The polynomial 1 beside `children` [..., m, degree + 1]."""
    unit = torch.full_like(children[..., :1, :], IMPOSSIBLE)
    unit[..., 0] = 0.0
    return unit


def _products(a: Tensor, b: Tensor) -> Tensor:
    """log of the terms of a product of polynomials of degree d, [..., 2d + 1, d + 1]: at [k, i], a_{d-i} b_{k-d+i}."""
    degree = a.shape[-1] - 1
    windows = pad(b, (degree, degree), value=IMPOSSIBLE).unfold(-1, degree + 1, 1)
    return a.flip(-1)[..., None, :] + windows
