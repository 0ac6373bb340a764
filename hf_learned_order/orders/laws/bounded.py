"""Laws that are one set: as many positions as a bound on risk or dependence allows."""

import torch
from torch import Tensor

from hf_learned_order.orders.laws.base import OneSet, as_visited, at_least_one, visiting_order, visits


def factor_set(probability: Tensor, masked: Tensor, factor: float) -> Tensor:
    """The n masked positions with the largest `probability` c [..., canvas], for the largest n with
    (n + 1) (1 - c_(n)) < factor, c_(n) being the n-th largest; ties go to the leftmost. Fast-dLLM, arXiv 2505.22618.
    """
    falling, order = probability.masked_fill(~masked, -torch.inf).sort(dim=-1, descending=True, stable=True)
    # the left side only grows with n, so the n that fulfil it are the first ones
    n = torch.arange(1, falling.shape[-1] + 1, device=falling.device)
    return torch.zeros_like(masked).scatter(-1, order, (n + 1) * (1 - falling) < factor)


def matching_edge(logits: Tensor, masked: Tensor, count: Tensor, temperature: float) -> Tensor:
    """[..., 1]: the edge at which sigmoid((logit - edge) / temperature) sums to `count` [..., 1] over masked positions.

    To a half at least, and to all of them but a half at most, so that one may always be left out. Logits beyond -20 and
    20 count as these; where nothing is masked, the edge is any.
    """
    count = torch.minimum(count, masked.sum(-1, keepdim=True) - 0.5).clamp(min=0.5)
    logits = logits.clamp(-20.0, 20.0)
    low, high = torch.full_like(count, -40.0), torch.full_like(count, 40.0)
    for _ in range(32):  # by bisection, to 2e-8
        edge = (low + high) / 2
        more = (((logits - edge) / temperature).sigmoid() * masked).sum(-1, keepdim=True) > count
        low, high = torch.where(more, edge, low), torch.where(more, high, edge)
    return (low + high) / 2


class BoundedRisk(OneSet):
    """The factor rule (`factor_set`) on any probability that a position's token is right; never empty.

    Behind the rule stands a theorem: n tokens that each have a probability above 1 - eps, with (n + 1) eps <= 1, are
    also the most likely ones together (Fast-dLLM, arXiv 2505.22618).

    Args:
        logits: [..., canvas], of the probability that the most likely token is the right one.
        masked: bool [..., canvas].
        bound: what (n + 1) (1 - c) stays below.
    """

    def __init__(self, logits: Tensor, masked: Tensor, *, bound: float):
        if not bound >= 0:
            raise ValueError(f"bound must be 0 or more, got {bound}")
        super().__init__(logits, masked)
        self.accepted = at_least_one(factor_set(logits.float().sigmoid(), masked, bound), masked, logits)


class BoundedDependence(OneSet):
    """The set that is built from the most preferred position down, each accepted while its own cost is within a bound.

    Position i costs `c^i = own^i + sum of A_ij over the j accepted before it`, an estimate of the nats that are lost by
    unmasking it in this step; it is accepted when `c^i <= bound`. The first is free, so the set is never empty. With
    A = 0 and own = H it is a threshold on the entropy; with own = 0 it bounds the dependence of each position on the
    ones before it.

    Args:
        dependence: A [..., canvas, canvas], nats: how much knowing position j says about position i.
        own: [..., canvas], nats: what a position costs by itself.
        preference: [..., canvas]; positions are visited from the largest down.
        masked: bool [..., canvas].
        bound: nats a position.
    """

    def __init__(self, dependence: Tensor, own: Tensor, preference: Tensor, masked: Tensor, *, bound: float):
        if not bound >= 0:
            raise ValueError(f"bound must be 0 or more, got {bound}")
        super().__init__(preference, masked)
        self.accepted = self._build(dependence, own, preference, bound)

    def _build(self, dependence: Tensor, own: Tensor, preference: Tensor, bound: float) -> Tensor:
        order = visiting_order(preference, self.masked)
        visited = as_visited(dependence, order)
        masked = self.masked.gather(-1, order)
        cost = own.gather(-1, order)
        cost[..., 0] = 0.0
        accepted = torch.zeros_like(masked)
        for k in range(visits(masked)):
            accepted[..., k] = masked[..., k] & (cost[..., k] <= bound)
            cost = cost + visited[..., k, :] * accepted[..., k, None]
        return torch.zeros_like(masked).scatter(-1, order, accepted)
