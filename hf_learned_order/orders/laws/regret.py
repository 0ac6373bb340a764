"""The law of what a step will have regretted: an own part, which is doubt, and pairs.

    C_i(S) = w_i (|S| + 2) (1 - q_i) + sum of A_ij over j in S

estimates what it costs to unmask position i in the same step as S, the positions that were accepted before it. `q_i` is
the probability that its most likely token stays right, `w_i` how much that doubt counts, and `A_ij` the nats that
position i would regret once j is known. Positions are visited by falling q; one is accepted while its cost is below a
bound. With w = 1 and A = 0 that is the factor rule (Fast-dLLM, arXiv 2505.22618) on q; with w = 0 it bounds the
dependence of what is unmasked together (DEMASK, arXiv 2604.02560, has the total variation there).

`BoundedRegret` is that set. `RandomRegret` draws around it, with an exact log-probability: the same costs, for
training.

Symbols: `S` accepted, `M` masked, `b` bound, `tau` temperature.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hf_learned_order.orders.laws.base import (
    OneSet,
    SubsetDistribution,
    as_visited,
    first_success,
    log1mexp,
    visiting_order,
    visits,
)

SMALLEST_COST = 1e-8


def packed(logits: Tensor, weights: Tensor, pairs: Tensor) -> Tensor:
    """What the law is made of as one tensor [..., canvas, canvas + 2]: logit of q, w, and A_i of each position i."""
    return torch.cat([logits[..., None], weights[..., None], pairs], -1)


def unpacked(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The way back: logits and weights [..., canvas], pairs [..., canvas, canvas]."""
    return values[..., 0], values[..., 1], values[..., 2:]


def acceptable(logits: Tensor, weights: Tensor, masked: Tensor, *, bound: float) -> Tensor:
    """bool [..., canvas]: what `BoundedRegret` can accept whatever the pairs; it is the same among these alone.

    They are the first that it visits, and those whose doubt stays within the bound behind one accepted position.
    """
    first = visiting_order(logits, masked)[..., :1]
    within = 3 * (weights * (-logits).sigmoid()) < bound
    return within.scatter(-1, first, True) & masked


class _Visits:
    """The positions in visiting order, and what each costs by itself."""

    def __init__(self, values: Tensor, masked: Tensor):
        logits, weights, pairs = unpacked(values.float())
        if pairs.shape != (*masked.shape, masked.shape[-1]):
            raise ValueError(
                f"values must have shape {(*masked.shape, masked.shape[-1] + 2)}, see `packed`, "
                f"got {tuple(values.shape)}"
            )
        self.order = visiting_order(logits.detach(), masked)
        doubt = weights * (-logits).sigmoid()
        self.pairs = as_visited(pairs, self.order)  # row k: what accepting the k-th does to the others
        self.masked, self.doubt = (part.gather(-1, self.order) for part in (masked, doubt))

    def back(self, visited: Tensor) -> Tensor:
        """From visiting order to places in the canvas."""
        order = self.order.expand(visited.shape)
        return torch.zeros_like(visited).scatter(-1, order, visited)


class BoundedRegret(OneSet):
    """The set that is built by falling q, each position accepted while C_i(S) < bound; the first is free.

    Args:
        values: [..., canvas, canvas + 2], see `packed`; w and A are 0 or more.
        masked: bool [..., canvas].
        bound: b, of the cost of a position.

    Raises:
        ValueError: the shapes do not fit, or the bound is negative.
    """

    def __init__(self, values: Tensor, masked: Tensor, *, bound: float):
        if not bound >= 0:
            raise ValueError(f"bound must be 0 or more, got {bound}")
        super().__init__(values[..., 0], masked)
        visited = _Visits(values, masked)
        accepted, count = torch.zeros_like(masked), torch.zeros_like(visited.doubt[..., 0])
        taken = torch.zeros_like(visited.doubt)  # sum of A_ij over S
        for k in range(visits(masked)):
            cost = (count + 2) * visited.doubt[..., k] + taken[..., k]
            accepted[..., k] = visited.masked[..., k] & ((cost < bound) | (k == 0))
            count = count + accepted[..., k]
            taken = taken + visited.pairs[..., k, :] * accepted[..., k, None]
        self.accepted = visited.back(accepted)


class RandomRegret(SubsetDistribution):
    """Position i is accepted with probability sigmoid((log b - log C_i(S)) / tau), given that one is.

    Positions are visited as in `BoundedRegret`, which this law becomes as tau goes to 0. It is autoregressive over
    positions and exactly normalised: before the first success nothing is in S, so the chance that none succeeds is a
    product. The log-probability of a set is one cumulative sum and one matrix product; a draw visits one position after
    another. Marginals, entropy and KL have no closed form.

    Args:
        values, masked, bound: as in `BoundedRegret`; the bound above 0.
        temperature: tau.
        where: bool [..., canvas]: which of the masked positions it draws; None: all.
        otherwise: bool [..., canvas]: what is accepted, with certainty, elsewhere.

    Raises:
        ValueError: the shapes do not fit, or bound or temperature is not positive.
    """

    def __init__(
        self,
        values: Tensor,
        masked: Tensor,
        *,
        bound: float | Tensor,
        temperature: float,
        where: Tensor | None = None,
        otherwise: Tensor | None = None,
    ):
        bound = torch.as_tensor(bound, dtype=torch.float, device=values.device)
        for name, value in (("bound", bound.item()), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        super().__init__(values[..., 0], masked)
        self.log_bound = bound.log()
        self.temperature = temperature
        self.visited = _Visits(values, masked)
        fixed = torch.zeros_like(masked) if where is None else ~where
        sure = torch.zeros_like(masked) if otherwise is None else otherwise & fixed & masked
        self.fixed, self.sure = (part.gather(-1, self.visited.order) for part in (fixed, sure))
        nothing = torch.zeros_like(self.visited.doubt)
        self.log_success, self.log_failure = self._chances(nothing, nothing)
        self.finished = ~masked.any(-1)
        log_empty = self.log_failure.sum(-1)
        settled = self.finished | self.sure.any(-1)  # never empty, or nothing to draw
        self.log_normalizer = log1mexp(log_empty.masked_fill(settled, -1.0)).masked_fill(settled, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` where `value` is empty though M is not, takes a position outside M, or differs where it is certain."""
        inside = value.gather(-1, self.visited.order.expand(value.shape)) & self.visited.masked
        taken = inside.float()
        count = taken.cumsum(-1) - taken
        earlier = torch.ones_like(self.visited.pairs).triu(1)  # [k, i]: k is visited before i
        pairs = (taken[..., None, :] @ (self.visited.pairs * earlier)).squeeze(-2)
        success, failure = self._chances(count, pairs)
        log_prob = torch.where(inside, success, failure).sum(-1) - self.log_normalizer
        impossible = (value & ~self.masked).any(-1) | (~value.any(-1) & ~self.finished)
        impossible = impossible | (self.fixed & self.visited.masked & (inside != self.sure)).any(-1)
        return log_prob.clamp(max=0.0).masked_fill(impossible, -torch.inf)

    def _logits(self, doubt: Tensor, count: Tensor, pairs: Tensor) -> Tensor:
        """Of acceptance, at a cost of `(count + 2) * doubt + pairs`."""
        cost = ((count + 2) * doubt + pairs).clamp(min=SMALLEST_COST)
        return ((self.log_bound - cost.log()) / self.temperature).clamp(-60.0, 60.0)

    def _chances(self, count: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """log of the probabilities of success and failure, in visiting order, after `count` and `pairs` of S."""
        logits = self._logits(self.visited.doubt, count, pairs)
        logits = torch.where(self.fixed, torch.where(self.sure, 60.0, -60.0), logits)
        drawn = self.visited.masked & ~self.fixed
        success, failure = (
            torch.where(drawn, logsigmoid(sign * torch.where(drawn, logits, 0.0)), 0.0) for sign in (1.0, -1.0)
        )
        return success, failure

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        shape, visited = uniform.shape, self.visited
        free = visited.masked & ~self.fixed
        first = first_success(self.log_success, self.log_failure, free, pivot).squeeze(-1)
        first = torch.where(self.sure.any(-1) | ~free.any(-1), -1, first)
        uniform = uniform.gather(-1, visited.order.expand(shape))
        accepted = torch.zeros(shape, dtype=torch.bool, device=uniform.device)
        count, pairs = torch.zeros(shape[:-1], device=uniform.device), torch.zeros(shape, device=uniform.device)
        for k in range(visits(self.masked)):
            chance = self._logits(visited.doubt[..., k], count, pairs[..., k]).sigmoid()
            drawn = ((uniform[..., k] < chance) & (first < k)) | (first == k)
            accepted[..., k] = torch.where(self.fixed[..., k], self.sure[..., k], drawn) & visited.masked[..., k]
            count = count + accepted[..., k]
            pairs = pairs + visited.pairs[..., k, :] * accepted[..., k, None]
        return visited.back(accepted)
