"""Laws of r_t, the set of positions to unmask: non-empty subsets of the masked positions M_t.

Symbols: `s` scores, `r` unmask, `M` masked, `pi` and `p` the success probabilities of a position, `tau` temperature.

Values are bool [..., canvas]. All arithmetic is in log space. Positions outside M contribute exactly 0; a row with one
position in M has log-probability 0, a finished row (M empty) too. Two laws that every decoding loop obeys, whatever
its rule, stand here as well, once: at least one position a step, and everything at the last step.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints


def at_least_one(unmask: Tensor, masked: Tensor, preference: Tensor) -> Tensor:
    """`unmask` within `masked`; where a row with something masked has nothing chosen, its most preferred position."""
    unmask = unmask & masked
    best = preference.masked_fill(~masked, -torch.inf).argmax(-1, keepdim=True)
    only = torch.zeros_like(unmask).scatter(-1, best, value=True) & masked
    return torch.where(unmask.any(-1, keepdim=True), unmask, only)


def everything(masked: Tensor) -> Tensor:
    """The last budgeted step: whatever is still masked."""
    return masked.clone()


def largest(values: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """The `count` [batch, 1] masked positions with the largest values; ties go to the leftmost."""
    order = values.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.zeros_like(masked).scatter(-1, order, rank < count) & masked


def ancestral_logit(steps_left: Tensor) -> Tensor:
    """logit(1 / steps left): the chance of a position in ancestral sampling with a linear schedule. `+inf` at 1."""
    return -(steps_left - 1).log()


class SubsetDistribution(Distribution):
    """A law over subsets of `masked`. Batch shape `masked.shape[:-1]`, event shape `masked.shape[-1:]`."""

    arg_constraints = {}
    support = constraints.independent(constraints.boolean, 1)
    has_rsample = False

    def __init__(self, parameters: Tensor, masked: Tensor):
        if parameters.shape != masked.shape:
            raise ValueError(
                f"masked must have the shape of the scores {tuple(parameters.shape)}, got {tuple(masked.shape)}"
            )
        self.masked = masked
        super().__init__(masked.shape[:-1], masked.shape[-1:], validate_args=False)

    def sample(self, sample_shape=(), *, generator: torch.Generator | None = None) -> Tensor:
        """bool `sample_shape + [..., canvas]`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        # one number a position, and one more for laws that need a choice among positions
        return self.draw(torch.rand((*shape[:-1], shape[-1] + 1), device=self.masked.device, generator=generator))

    def draw(self, uniform: Tensor) -> Tensor:
        """The sample that uniform numbers [..., canvas + 1] make."""
        return self._from_uniform(uniform[..., :-1], uniform[..., -1:])

    def greedy(self) -> Tensor:
        """bool [..., canvas]: one set in the place of a draw, the likeliest of about as many positions as are drawn.

        As many as the mean says, rounded. Not the mode: where positions that are equally likely share the chance of a
        step, the likeliest set of any size has one position or none of them.
        """
        count = self.mean.sum(-1, keepdim=True).round()
        return largest(self.mean, self.masked, count)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        raise NotImplementedError


class OneSet(SubsetDistribution):
    """All mass on one set, which a subclass builds from its parameters: `accepted`, bool [..., canvas]."""

    accepted: Tensor

    @property
    def mean(self) -> Tensor:
        return self.accepted.float()

    def log_prob(self, value: Tensor) -> Tensor:
        """0 for the set, `-inf` for any other."""
        same = (value == self.accepted).all(-1)
        return torch.zeros(same.shape, device=value.device).masked_fill(~same, -torch.inf)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        return self.accepted.expand(uniform.shape)


def visiting_order(preference: Tensor, masked: Tensor) -> Tensor:
    """int [..., canvas]: the masked positions from the most preferred down, ties from the left; then the others."""
    return preference.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def as_visited(pairs: Tensor, order: Tensor) -> Tensor:
    """A [..., canvas, canvas] with both axes in visiting order, columns first: row k is what the k-th does to each."""
    square = (*order.shape, order.shape[-1])
    visited = pairs.mT.gather(-2, order[..., :, None].expand(square))
    return visited.gather(-1, order[..., None, :].expand(square))


def visits(masked: Tensor) -> int:
    """How many positions have to be visited, as far as that is known without waiting for a GPU."""
    known = masked.device.type == "cpu" and masked.numel() > 0
    return int(masked.sum(-1).max()) if known else masked.shape[-1]


def first_success(log_success: Tensor, log_failure: Tensor, masked: Tensor, pivot: Tensor) -> Tensor:
    """Index [..., 1] of the first success of a sequence of trials, given that there is one.

    It follows a truncated geometric law; trials before it fail, those after it are free. `pivot` [..., 1] is uniform.
    """
    before = log_failure.cumsum(-1) - log_failure
    log_first = (before + log_success).masked_fill(~masked, -torch.inf)
    cumulative = log_first.masked_fill(~masked.any(-1, keepdim=True), 0.0).softmax(-1).cumsum(-1)
    return inverse_cdf(cumulative, pivot)


def inverse_cdf(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """The first index [..., 1] where `cumulative` exceeds `uniform` [..., 1] of its total: its chance is positive."""
    return (cumulative > uniform * cumulative[..., -1:]).to(torch.uint8).argmax(-1, keepdim=True)


def bernoulli_entropy(log_pi: Tensor, masked: Tensor) -> Tensor:
    return -negative_entropy(log_pi).masked_fill(~masked, 0.0).sum(-1)


def negative_entropy(log_pi: Tensor) -> Tensor:
    """pi log pi + (1 - pi) log(1 - pi)."""
    # constant where pi = 1: the slope there is infinite, and a tie for the best score would send it into the scorer
    inside = torch.where(log_pi < 0, log_pi, -1.0)
    value = inside.exp() * inside - torch.expm1(inside) * log1mexp(inside)
    return torch.where(log_pi < 0, value, 0.0)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, with a finite gradient at x = 0, where it is -inf."""
    inside = torch.where(x < 0, x, -1.0)
    small = torch.where(inside > -0.6931, inside, -0.5)
    large = torch.where(inside > -0.6931, -1.0, inside)
    value = torch.where(inside > -0.6931, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))
    return torch.where(x < 0, value, -torch.inf)
