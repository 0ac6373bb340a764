"""The law that can say "not both": positions are visited one by one, and those accepted before change the chances.

Symbols: `s` scores, `r` unmask, `M` masked, `A_ij` how much accepting j takes from the logit of i.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hf_learned_order.orders.laws.base import SubsetDistribution, as_visited, first_success, visiting_order, visits
from hf_learned_order.orders.laws.non_empty import NonEmptyBernoulli


class RepulsiveBernoulli(SubsetDistribution):
    """Position i is accepted with probability sigmoid(s^i - sum of A_ij over the j accepted before it), given r != {}.

    An autoregressive law over positions, exactly normalised. Nothing has repelled anything before the first success,
    so the chance of the empty set is the independent one, `prod(1 - sigmoid(s^i))`. With A = 0 it is
    `NonEmptyBernoulli`; with A infinite it takes one position. A negative A_ij attracts. Only pairs in visiting order
    count: of A_ij and A_ji, the one whose i comes later.

    The log-probability of a given set is one masked matrix product; a draw visits one position after another.
    Marginals, entropy and KL sum over all subsets and have no closed form.

    Args:
        logits: s [..., canvas]. Beyond +-60, with or without A, they count as +-60.
        dependence: A [..., canvas, canvas].
        preference: [..., canvas]; positions are visited from the largest down, ties from the left.
        masked: bool [..., canvas].
    """

    def __init__(self, logits: Tensor, dependence: Tensor, preference: Tensor, masked: Tensor):
        super().__init__(logits, masked)
        for name, value, shape in (
            ("dependence", dependence, (*masked.shape, masked.shape[-1])),
            ("preference", preference, tuple(masked.shape)),
        ):
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        self.free = NonEmptyBernoulli(logits, masked)
        self.order = visiting_order(preference, masked)
        rank = self.order.argsort(-1)
        earlier = rank[..., None, :] < rank[..., :, None]  # those outside M come last
        self.repulsion = dependence.float().masked_fill(~earlier, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` where `value` is empty though M is not, or takes a position outside M."""
        penalty = (self.repulsion @ value.float()[..., None]).squeeze(-1)
        logits = _clamped(self.free.logits, self.masked, penalty)
        terms = logsigmoid(torch.where(value, logits, -logits)).masked_fill(~self.masked, 0.0)
        impossible = (value & ~self.masked).any(-1) | (~value.any(-1) & ~self.free.finished)
        log_prob = (terms.sum(-1) - self.free.log_normalizer).clamp(max=0.0)
        return log_prob.masked_fill(impossible, -torch.inf)

    def greedy(self) -> Tensor:
        """bool [..., canvas]: one set in the place of a draw, of about as many positions as are drawn.

        For the number each position changes the chances of those behind it by a factor, as if by itself. The set grows
        by the position with the largest logit after what all in it take from it and it would take from them.
        """
        order = self.order
        visited = as_visited(self.repulsion, order)
        logits, masked = (values.gather(-1, order) for values in (self.free.logits, self.masked))
        number = visits(masked)
        free = self.free.log_success.gather(-1, order).exp()
        chance, count = free * masked, torch.zeros_like(free[..., 0])
        for k in range(number):
            here = chance[..., k].clamp(max=1.0)
            count = count + here
            factor = _clamped(logits, masked, visited[..., k, :]).sigmoid() / free
            chance = chance * (1 + here[..., None] * (factor - 1))
        count = (count / self.free.log_normalizer.exp()).round().clamp(min=1)[..., None]
        both = visited + visited.mT
        accepted = torch.zeros_like(masked)
        for k in range(number):
            best = logits.masked_fill(accepted, -torch.inf).argmax(-1, keepdim=True)
            new = torch.zeros_like(masked).scatter(-1, best, count > k) & masked
            accepted = accepted | new
            logits = logits - (both @ new.float()[..., None]).squeeze(-1)
        return torch.zeros_like(accepted).scatter(-1, order, accepted)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        shape, order = uniform.shape, self.order
        visited = as_visited(self.repulsion, order)
        logits, masked = (values.gather(-1, order) for values in (self.free.logits, self.masked))
        success, failure = (values.gather(-1, order) for values in (self.free.log_success, self.free.log_failure))
        first = first_success(success, failure, masked, pivot).squeeze(-1)
        accepted = torch.zeros(shape, dtype=torch.bool, device=uniform.device)
        penalty = torch.zeros(shape, device=uniform.device)
        for k in range(visits(masked)):
            chance = _clamped(logits[..., k], masked[..., k], penalty[..., k]).sigmoid()
            accepted[..., k] = ((uniform[..., k] < chance) & (first < k) | (first == k)) & masked[..., k]
            penalty = penalty + visited[..., k, :] * accepted[..., k, None]
        return torch.zeros_like(accepted).scatter(-1, order.expand(shape), accepted)


def _clamped(logits: Tensor, masked: Tensor, penalty: Tensor) -> Tensor:
    return (logits.masked_fill(~masked, 0.0) - penalty).clamp(-60.0, 60.0)
