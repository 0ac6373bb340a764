"""A risk that is kept: the fastest setting of a rule whose responses are bad at most so often, with a guarantee.

Symbols: n prompts; settings j = 0, 1, ... from slow to fast; L_i(j) in {0, 1}, whether the response to prompt i is bad
at setting j; R(j) = E L(j), the risk; alpha, the risk that is allowed; delta = 1 - confidence.

**Learn then test** (Angelopoulos, Bates, Candes, Jordan, Lei, arXiv 2110.01052, Theorem 1, with tests in a fixed
sequence). If the n prompts and those to come are independent draws from one law, then with probability 1 - delta over
the n prompts R(chosen) <= alpha. "R(j) > alpha" is tested by its exact binomial p-value P(Bin(n, alpha) <= sum_i
L_i(j)), setting by setting in an order fixed beforehand, here from slow to fast, until one p-value exceeds delta; the
last one before is chosen. The losses need not be monotone: the order only decides how far one gets.

**Conformal risk control** (Angelopoulos, Bates, Fisch, Lei, Schuster, arXiv 2208.02814, Theorem 1). If the n prompts
and the next one are exchangeable, L_i(j) does not fall in j and L_i(0) <= alpha, then E L_{n+1}(chosen) <= alpha, over
the n prompts too, for the fastest j with (sum_i L_i(j) + 1) / (n + 1) <= alpha. Losses that fall are replaced by their
running maximum from slow to fast, which bounds them, so what is promised for it holds for them. L_i(0) <= alpha is kept
by what is done where no j fulfils this: nothing is chosen, and the slow rule, whose loss against itself is 0, goes on.
Against a judge that last condition does not hold, so there only learn then test promises something.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


class NothingKept(ValueError):
    """No setting of a rule keeps the risk."""


METHODS = ("learn_then_test", "conformal_risk_control")


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A setting and what is promised of it, for prompts, canvas and denoiser as they were.

    Attributes:
        sampler, options, max_denoising_steps: the setting.
        task: what was measured on.
        risk: alpha, the share of bad responses that is allowed.
        confidence: 1 - delta; None with conformal risk control, which promises a mean.
        method: one of `METHODS`.
        against: what is bad: the name of a slow rule, where the response is wrong and that of this rule with one token
            a step is right; or "judge", where it is wrong.
        prompts, bad: how many were looked at, and how many of their responses were bad at this setting.
        nfe: mean calls there.
        canvas_length: positions of a response.
    """

    sampler: str
    options: dict[str, float] = field(default_factory=dict)
    max_denoising_steps: int | None = None
    task: str
    risk: float
    confidence: float | None
    method: str
    against: str
    prompts: int
    bad: int
    nfe: float
    canvas_length: int

    @property
    def name(self) -> str:
        """What `generate(sampler=...)` takes."""
        return f"{self.task}@{self.risk:g}" + ("" if self.sampler == "learned_order" else f"/{self.sampler}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_share(name: str, value: float) -> None:
    """Raises `ValueError` unless `value` is a number in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number above 0 and below 1, got {value!r}")


def prompts_needed(risk: float, confidence: float | None) -> int:
    """The fewest prompts with which any setting can be chosen: those of which none turns out bad.

    With a confidence the smallest n with (1 - risk)^n <= 1 - confidence, without one that with 1 / (n + 1) <= risk.
    """
    if confidence is None:
        return math.ceil(1 / risk - 1 - 1e-9)
    return math.ceil(math.log1p(-confidence) / math.log1p(-risk) - 1e-9)


def check_prompts(count: int, risk: float, confidence: float | None) -> None:
    """Raises `ValueError` unless risk and confidence are shares and so many prompts can promise them."""
    check_share("risk", risk)
    if confidence is not None:
        check_share("confidence", confidence)
    needed = prompts_needed(risk, confidence)
    if count < needed:
        said = "on average" if confidence is None else f"with confidence {confidence:g}"
        raise ValueError(f"prompts must be at least {needed} to promise a risk of {risk:g} {said}, got {count}")


def kept(bad: Tensor, risk: float, confidence: float | None) -> int:
    """How many of the settings may be chosen from, the slowest first; the fastest of them is the one to choose.

    Args:
        bad: bool [settings, n], from slow to fast: which responses are bad.
        risk: alpha.
        confidence: 1 - delta of learn then test; None for conformal risk control.

    Raises:
        ValueError: as `check_prompts`.
    """
    count = bad.shape[1]
    check_prompts(count, risk, confidence)
    if confidence is None:
        worst = bad.to(torch.uint8).cummax(0).values  # monotone from slow to fast
        fine = (worst.sum(-1, dtype=torch.long) + 1).double() / (count + 1) <= risk
    else:
        from scipy.stats import binom

        p_values = binom.cdf(bad.sum(-1).numpy(), count, risk)
        fine = torch.from_numpy(p_values) <= 1 - confidence
    return int(fine.long().cumprod(0).sum())
