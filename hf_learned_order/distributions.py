"""Laws of r_t, the set of positions to unmask: non-empty subsets of the masked positions M_t.

Symbols: `s` scores, `r` unmask, `M` masked, `pi` and `p` the success probabilities of a position, `tau` temperature.

Values are bool [..., canvas]. All arithmetic is in log space. Positions outside M contribute exactly 0; a row with one
position in M has log-probability 0, a finished row (M empty) too. Two laws that every decoding loop obeys, whatever
its rule, stand here as well, once: at least one position a step, and everything at the last step.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.nn.functional import logsigmoid


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
        return _bernoulli_entropy(self.log_pi, self.masked)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        # uniform < 1, so the best position, whose pi is 1, is always in
        return (uniform < self.mean) & self.masked


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
        free = _bernoulli_entropy(self.log_success, self.masked)
        entropy = (free + log_empty.exp() * log_empty) / normalizer + self.log_normalizer
        return entropy.clamp(min=0.0).masked_fill(self.finished, 0.0)

    def _from_uniform(self, uniform: Tensor, pivot: Tensor) -> Tensor:
        first = first_success(self.log_success, self.log_failure, self.masked, pivot)
        index = torch.arange(uniform.shape[-1], device=uniform.device)
        free = (index > first) & (uniform < self.log_success.exp())
        return (free | (index == first)) & self.masked


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


def visiting_order(preference: Tensor, masked: Tensor) -> Tensor:
    """int [..., canvas]: the masked positions from the most preferred down, ties from the left; then the others."""
    return preference.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def as_visited(dependence: Tensor, order: Tensor) -> Tensor:
    """A [..., canvas, canvas] with both axes in visiting order, columns first: row k is what the k-th does to each."""
    square = (*order.shape, order.shape[-1])
    visited = dependence.mT.gather(-2, order[..., :, None].expand(square))
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
    return (_negative_entropy(log_pi) - cross).masked_fill(~masked, 0.0).sum(-1)


def _bernoulli_entropy(log_pi: Tensor, masked: Tensor) -> Tensor:
    return -_negative_entropy(log_pi).masked_fill(~masked, 0.0).sum(-1)


def _negative_entropy(log_pi: Tensor) -> Tensor:
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
