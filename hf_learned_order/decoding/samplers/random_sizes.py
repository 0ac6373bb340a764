"""`RandomSizesSampler`: how many positions go in a step is drawn, which of them is drawn uniformly.

Symbols: m masked positions, k steps left, s of them go now; h_j the mean entropy of the next position given j others,
chosen at random, which only falls with j; TC = sum_j (h_0 - h_j), the total correlation. A step from j known positions
loses sum_{i<s} (h_j - h_{j+i}), the divergence of the product of its marginals from the truth.

Source: Zhao and Cai, Adaptation to Intrinsic Dependence in Diffusion Language Models, arXiv 2602.20126, where random
sizes lose O~(TC / k) nats whatever the distribution. Only its abstract could be read here. The sizes below were derived
from that: every h_j counts the same in the mean loss, so that it is the same share c_k(m) of TC for every distribution.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Proposal, Sampler, State
from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import largest


@dataclass(frozen=True, kw_only=True)
class RandomSizesSampler(Sampler):
    """s positions uniformly at random, s drawn with probability proportional to w_k(m - s). arXiv 2602.20126.

    With c_k(m) = 1 - w_k(m - 1) (1 + (m - 2) c_{k-1}(m - 1)) / sum_s w_k(m - s), the share of TC that is lost,
    c_1 = 1, c_k(m) = 0 for m <= k, and w_k(j) / w_k(j - 1) = (1 + (j - 2) c_{k-1}(j - 1)) / (j c_{k-1}(j)) from
    j = k on, w_k(k - 1) = 1, 0 below. For k = 2 it is w(j) = 1 / j: large steps are likely, and c = 1 - 1 / H_{m-1}.
    At most m - k + 1 go, so that the whole budget is used.
    """

    is_random: ClassVar[bool] = True

    def propose(self, step: Step, state: State) -> Proposal:
        numbers = step.uniform(1)
        noise, size = numbers[:, :-1], numbers[:, -1:].expand_as(step.masked)
        count = step.masked.sum(-1, keepdim=True)
        return Proposal(largest(noise, step.masked, self.sizes(count, step.steps_left, size)))

    def sizes(self, count: Tensor, steps_left: int | Tensor, uniform: Tensor) -> Tensor:
        """int [batch, 1] for so many masked positions [batch, 1], by the first column of `uniform` [batch, canvas]."""
        if isinstance(steps_left, Tensor):
            sizes = torch.ones_like(count)
            for number in steps_left.unique().tolist():
                rows = (steps_left == number).squeeze(-1)
                sizes[rows] = self.sizes(count[rows], number, uniform[rows])
            return sizes
        length = uniform.shape[-1]
        if steps_left == 1:
            return count
        size = torch.arange(1, length + 1, device=count.device)
        left = count - size
        weights = log_weights(steps_left, length).to(count.device)[left.clamp(min=0)].masked_fill(left < 0, -torch.inf)
        # one position goes where there is a step for each; all weights are 0 there
        weights = torch.where((count <= steps_left) & (size == 1), 0.0, weights)
        below = weights.softmax(-1).cumsum(-1)[..., :-1] <= uniform[..., :1]
        return 1 + below.sum(-1, keepdim=True)


def log_weights(steps: int, length: int) -> Tensor:
    """log w_k(j) for j = 0 ... length - 1, float64, at k = `steps`, 2 or more."""
    for number in range(2, steps):
        _level(number, length)  # or the recursion would be too deep
    return _level(steps, length)[0]


@lru_cache(maxsize=4096)
def _level(steps: int, length: int) -> tuple[Tensor, Tensor]:
    """log w_k(j), and c_k(m) for m = 0 ... length - 1: what the next level needs."""
    number = torch.arange(length, dtype=torch.double)
    if steps == 1:
        return torch.full_like(number, -torch.inf), (number > 1).double()
    _, share = _level(steps - 1, length)
    before = torch.cat([share.new_zeros(1), share])[:length]  # c_{k-1}(j - 1)
    ratio = (1 + (number - 2) * before) / (number * share)
    ratio[:steps] = 1.0
    weights = ratio.log().cumsum(0).masked_fill(number < steps - 1, -torch.inf)
    total = weights.logcumsumexp(0)  # at m - 1, for m
    lost = 1 - (weights - total).exp() * (1 + (number - 1) * share)
    lost = torch.cat([lost.new_zeros(1), lost])[:length]
    return weights, lost.masked_fill(number <= steps, 0.0)
