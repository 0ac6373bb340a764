r"""The dual variable that holds the NFE of generation at a target.

A bias b changes a law over sets r of positions to one that is proportional to p(r) exp(b |r|). Among all laws with that
mean number of positions it is the closest to p in KL: b is the multiplier of the constraint on that number (Csiszar,
I-divergence geometry of probability distributions and minimization problems, 1975). It is exactly so for the Bernoulli
and the counted law, whose scores or log-weights it is added to; the regret law has a bound, and b is added to its
logarithm. The larger b is, the fewer calls are made. So it is found along with the scores, by the gradient of the
dual, in logarithms and with steps that shrink (Robbins and Monro, 1951):

    b  <-  b + rate_k (log nfe_k - log target),     rate_k = max(1 / (1 + k / 5), 0.1)

where nfe_k is measured by decoding prompts of the k-th batch that is asked, as generation decodes, with the law as it
is then. The rate stays above 0, because the scores that b belongs to go on changing. A bound on the likelihood would
go on changing them for the worse, since each call more is worth something to it: the ELBO is charged for calls what
they are worth (`OrderELBO._price`), so that the NFE is left to b. When training has ended, b is solved for.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from hf_learned_order.orders.scorer import OrderScorer

if TYPE_CHECKING:
    from hf_learned_order.training.arguments import OrderTrainingArguments

EVERY = 4  # updates from one measurement to the next


class Pace:
    """Moves a scorer's bias, or bound, until generation takes `target` denoiser calls a sequence in the mean.

    Args:
        scorer: its configuration is changed: `bound` of the regret law, `law_bias` of any other.
        target: denoiser calls, more than 1.
        longest: the most that generation can take: the budget, or the length of the canvas.

    Attributes:
        setting: the name of what is changed.

    Raises:
        ValueError: the target is out of reach, or the law has no bias that changes its speed.
    """

    def __init__(self, scorer: OrderScorer, *, target: float, longest: int):
        if not 1 < target < longest:
            raise ValueError(f"target_nfe must be more than 1 and less than the budget, {longest}, got {target}")
        if scorer.config.law == "max_normalized":
            raise ValueError('target_nfe must be None with the law "max_normalized", which no bias makes faster')
        self.config = scorer.config
        self.target = target
        self.setting = "bound" if scorer.config.law == "regret" else "law_bias"

    @classmethod
    def of_run(cls, scorer: OrderScorer, args: "OrderTrainingArguments") -> "Pace":
        """For a training run with a `target_nfe`."""
        if scorer.config.law != "regret" and args.posterior != "prior" and args.posterior_law is not None:
            raise ValueError(
                f"posterior_law must be None with target_nfe, got {args.posterior_law!r}: "
                "a posterior with a law of its own does not follow the prior's bias"
            )
        longest = min(args.canvas_length, scorer.config.max_denoising_steps or args.canvas_length)
        return cls(scorer, target=args.target_nfe, longest=longest)  # pyrefly: ignore[bad-argument-type] (not None)

    @property
    def value(self) -> float:
        """Of what is changed."""
        return getattr(self.config, self.setting)

    def update(self, nfe: float, *, number: int) -> None:
        """After the measurement with that number, from 0."""
        step = max(1 / (1 + number / 5), 0.1) * math.log(nfe / self.target)
        self._set(self.value, step)

    def solve(self, measure: Callable[[], float]) -> float:
        """Set it to where `measure`, the NFE of fixed prompts with what is set, is the target; returns that NFE.

        A bracket is doubled until the target lies within, then bisected, until it is met to 1 % or 24 measurements are
        made; the closest one counts.
        """
        start = self.value
        found: dict[float, float] = {}  # bias added to what was set -> NFE
        low = high = None  # biases known to be too slow, too fast
        shift, width = 0.0, 0.25
        for _ in range(24):
            self._set(start, shift)
            found[shift] = measure()
            if abs(found[shift] / self.target - 1) < 0.01:
                break
            low, high = (shift, high) if found[shift] > self.target else (low, shift)
            if low is None or high is None:
                width *= 2
                shift += width if high is None else -width
            else:
                shift = (low + high) / 2
        best = min(found, key=lambda each: abs(found[each] - self.target))
        self._set(start, best)
        return found[best]

    def _set(self, start: float, shift: float) -> None:
        setattr(self.config, self.setting, start * math.exp(shift) if self.setting == "bound" else start + shift)
