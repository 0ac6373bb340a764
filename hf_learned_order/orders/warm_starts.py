"""Rules that a learned order can start from: each prefers some positions, and says how many of them to unmask.

    offset^i = asinh(K + 1/2 - rank^i),     rank 1 is the most preferred position, K how many

Added to the scores before they are divided by tau, it makes the K most preferred positions certain and all others
impossible as tau goes to 0, whatever the scale of the preference; at tau = 0.1 the odds at the border are 120 to 1. The
arsinh is steep there and flat elsewhere, so that a learned correction can move any position across.

Symbols: `c` confidence, `m` margin, `H` entropy, `M` masked, K = ceil(n / steps left) in the rules of a fixed count.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hf_learned_order.denoisers.predictions import Step
from hf_learned_order.orders.laws.base import visiting_order
from hf_learned_order.orders.laws.bounded import factor_set


class WarmStart(NamedTuple):
    """What a rule says of a state.

    Attributes:
        offset: [batch, canvas], above 0 at the positions that the rule unmasks, below at others.
        count: int [batch, 1], K.
    """

    offset: Tensor
    count: Tensor

    def of_count(self, size: Tensor) -> Tensor:
        """[batch, canvas], the offset of unmasking `size` [canvas] positions: 0 at K, below elsewhere."""
        return -(size - self.count).abs().asinh()


def _threshold(step: Step, bound: float) -> Tensor:
    return (step.predictions.confidence >= 1 - bound) & step.masked


def _factor(step: Step, bound: float) -> Tensor:
    return factor_set(step.predictions.confidence, step.masked, bound) & step.masked


# rule -> its preference, and the positions that it accepts within `bound`; None: a fixed count
WARM_STARTS: dict[str, tuple[Callable[[Step], Tensor], Callable[[Step, float], Tensor] | None]] = {
    "entropy": (lambda step: -step.predictions.entropy, None),
    "margin": (lambda step: step.predictions.margin, None),
    "top_prob": (lambda step: step.predictions.confidence, None),
    "threshold": (lambda step: step.predictions.confidence, _threshold),
    "factor": (lambda step: step.predictions.confidence, _factor),
}


def warm_start(rule: str, step: Step, *, bound: float) -> WarmStart:
    """What `rule` says of a state; `bound` is f of the factor rule, 1 minus the threshold of the threshold rule."""
    preference, accepts = WARM_STARTS[rule]
    count = step.quota if accepts is None else accepts(step, bound).sum(-1, keepdim=True).clamp(min=1)
    rank = visiting_order(preference(step), step.masked).argsort(-1)  # from 0
    return WarmStart((count - rank - 0.5).asinh(), count)
