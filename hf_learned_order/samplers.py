"""The unmasking rules, one small class each, and `SAMPLERS`; the ones that remask are in `remasking.py`.

A rule proposes which masked positions to unmask at a step, and may propose to mask unmasked ones again; the decoding
loop (`generation.py`) adds the laws that hold for every rule: nothing outside the masked positions is unmasked and
nothing else remasked, at least one position a step, everything at the last step.

Symbols: `M` masked, `n = |M|`, `c` confidence, `m` margin, `H` entropy, K = ceil(n / steps left).
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_learned_order.distributions import NonEmptyBernoulli, ancestral_logit, factor_set, largest
from hf_learned_order.predictions import Step
from hf_learned_order.remasking import ReMDMSampler, WINOSampler
from hf_learned_order.rules import Proposal, Sampler, State, check_integer, check_range

if TYPE_CHECKING:
    from hf_learned_order.scorer import OrderScorer

SMALL = torch.finfo(torch.float32).tiny
MOST = 700.0  # exp of more is no float


@dataclass(frozen=True, kw_only=True)
class IIDSampler(Sampler):
    """Each masked position with probability 1 / steps left, given that at least one is: ancestral sampling.

    MDLM, arXiv 2406.07524, linear schedule. A step of theirs that unmasks nothing leaves the canvas as it was and
    needs no denoiser call; here it does not occur.
    """

    is_random: ClassVar[bool] = True

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(self.law(step).sample(generator=step.generator))

    def law(self, step: Step) -> NonEmptyBernoulli:
        logit = ancestral_logit(torch.full((), float(step.steps_left), device=step.masked.device))
        return NonEmptyBernoulli(logit.expand(step.masked.shape), step.masked)


@dataclass(frozen=True, kw_only=True)
class RandomSampler(Sampler):
    """K positions uniformly at random. LLaDA "random", arXiv 2502.09992."""

    is_random: ClassVar[bool] = True

    def propose(self, step: Step, state: State) -> Proposal:
        noise = torch.rand(step.masked.shape, device=step.masked.device, generator=step.generator)
        return Proposal(largest(noise, step.masked, step.quota))


@dataclass(frozen=True, kw_only=True)
class LeftToRightSampler(Sampler):
    """The K leftmost positions: the autoregressive order."""

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(step.masked & (step.masked.cumsum(-1) <= step.quota))


@dataclass(frozen=True, kw_only=True)
class TopProbSampler(Sampler):
    """The K positions with the largest c. LLaDA "low_confidence", arXiv 2502.09992."""

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(largest(step.predictions.confidence, step.masked, step.quota))


@dataclass(frozen=True, kw_only=True)
class MarginSampler(Sampler):
    """The K positions with the largest m. Kim et al., arXiv 2502.06768."""

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(largest(step.predictions.margin, step.masked, step.quota))


@dataclass(frozen=True, kw_only=True)
class EntropySampler(Sampler):
    """The K positions with the smallest H. Dream, arXiv 2508.15487."""

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(largest(-step.predictions.entropy, step.masked, step.quota))


@dataclass(frozen=True, kw_only=True)
class ThresholdSampler(Sampler):
    """Every position with c >= threshold, else the one with the largest c. Fast-dLLM, arXiv 2505.22618."""

    threshold: float = 0.9

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(step.predictions.confidence >= self.threshold)


@dataclass(frozen=True, kw_only=True)
class FactorSampler(Sampler):
    """`factor_set` of the confidence c; where it is empty, the position with the largest c. arXiv 2505.22618."""

    factor: float = 1.0

    def __post_init__(self):
        check_range("factor", self.factor, low=0.0)

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(factor_set(step.predictions.confidence, step.masked, self.factor))


@dataclass(frozen=True, kw_only=True)
class EntropyBoundSampler(Sampler):
    """The most positions, by rising H, with sum H - max H <= gamma. EB-sampler, arXiv 2505.24857."""

    gamma: float = 0.1

    def __post_init__(self):
        check_range("gamma", self.gamma, low=0.0)

    def propose(self, step: Step, state: State) -> Proposal:
        entropy = step.predictions.entropy.masked_fill(~step.masked, torch.inf)
        rising, order = entropy.sort(dim=-1, stable=True)
        # sorted, so the largest of the first k is the k-th: the sum without it is the sum of the ones before
        accepted = rising.masked_fill(rising.isinf(), 0.0).cumsum(-1).roll(1, -1)
        accepted[..., 0] = 0.0
        return Proposal(torch.zeros_like(step.masked).scatter(-1, order, accepted <= self.gamma))


@dataclass(frozen=True, kw_only=True)
class KLASSSampler(Sampler):
    """Every position with c > threshold whose prediction was stable, KL(p_t || p_t-1) < epsilon, at each of the last
    `history` steps; else the one with the largest c. KLASS, arXiv 2511.05664.

    The first step has no step before it, so nothing is stable before step history + 1. Their values for GSM8K are
    0.6, 0.015, 2. The state holds the predictions of the step before: [batch, canvas, vocab].
    """

    threshold: float = 0.9
    epsilon: float = 0.01
    history: int = 2

    def __post_init__(self):
        check_range("threshold", self.threshold, low=0.0, high=1.0)
        check_range("epsilon", self.epsilon, low=0.0)
        check_integer("history", self.history, low=1)

    def init_state(self, step: Step) -> State:
        """log p_t-1, and for how many steps each position has been stable, int [batch, canvas]."""
        # -1: the first step compares a prediction with itself, and that counts for nothing
        return step.predictions.log_probs, torch.full_like(step.masked, -1, dtype=torch.long)

    def propose(self, step: Step, state: State) -> Proposal:
        previous, stable = state
        stable = torch.where(step.predictions.kl(previous) < self.epsilon, stable + 1, 0)
        unmask = (step.predictions.confidence > self.threshold) & (stable >= self.history)
        # in place: beside the logits a second tensor of their size fits into memory, a third would not
        return Proposal(unmask, (step.predictions.write_log_probs(previous), stable))


# eq=False: tensors have no single truth value to compare by
@dataclass(frozen=True, kw_only=True, eq=False)
class PositionSampler(Sampler):
    """The K positions i with the largest exp(-decay i) min(-c log f(token), clip). PC-Sampler, arXiv 2508.13021.

    `token` is the most likely one at i, and i counts from 0 at the start of the canvas: early positions and rare tokens
    go first.

    Attributes:
        decay: lambda, 0 or more; their tasks use 0 to 1.
        clip: alpha, above 0.
        frequencies: f, float [vocab], how often each token occurs in a background corpus; by default 1/vocab each,
            with which the second factor is c log(vocab).
    """

    decay: float = 0.25
    clip: float = 10.0
    frequencies: Tensor | None = None

    def __post_init__(self):
        check_range("decay", self.decay, low=0.0)
        check_range("clip", self.clip, low=SMALL)
        f = self.frequencies
        if f is not None and (
            not isinstance(f, Tensor) or f.ndim != 1 or not f.is_floating_point() or not (f >= 0).all()
        ):
            got = f"{f.dtype} {tuple(f.shape)}" if isinstance(f, Tensor) else type(f).__name__
            raise ValueError(f"frequencies must be a float tensor [vocab] of 0 or more, got {got}")

    def propose(self, step: Step, state: State) -> Proposal:
        rarity = -self._log_frequency(step)
        # in logarithms, because exp(-decay i) vanishes on a long canvas
        score = (step.predictions.confidence * rarity).clamp(SMALL, self.clip).log()
        score = score - self.decay * torch.arange(step.masked.shape[-1], device=step.masked.device)
        return Proposal(largest(score, step.masked, step.quota))

    def _log_frequency(self, step: Step) -> Tensor:
        vocab = step.predictions.logits.shape[-1]
        if self.frequencies is None:
            return torch.full_like(step.predictions.confidence, -math.log(vocab))
        if len(self.frequencies) != vocab:
            raise ValueError(f"frequencies must have one entry for each of {vocab} tokens, got {len(self.frequencies)}")
        return self.frequencies.to(step.masked.device)[step.predictions.tokens].log()


@dataclass(frozen=True, kw_only=True)
class DilatedSampler(Sampler):
    """Fixed groups from coarse to fine, one a step: group t holds the positions of the canvas (length B, from 0) that
    stride max(1, floor(B / base^t)) reaches and no group before it. DUS, arXiv 2506.19037.

    ceil(log_base B) steps fill the canvas, whatever the budget; a smaller budget takes the rest at its last step.
    """

    base: int = 2

    def __post_init__(self):
        check_integer("base", self.base, low=2)

    def propose(self, step: Step, state: State) -> Proposal:
        group = torch.zeros(step.masked.shape[-1], device=step.masked.device, dtype=torch.long)
        strides = self.strides(len(group))
        for t in reversed(range(len(strides))):  # the coarser ones last, so that they have the last word
            group[:: strides[t]] = t
        group = group.expand(step.masked.shape).masked_fill(~step.masked, len(strides))
        return Proposal(group == group.amin(-1, keepdim=True))

    def strides(self, length: int) -> list[int]:
        """One stride a step; the last one is 1."""
        strides, power = [], self.base
        while not strides or strides[-1] > 1:
            strides.append(max(1, length // power))
            power *= self.base
        return strides


@dataclass(frozen=True, kw_only=True)
class LearnedOrderSampler(Sampler):
    """The order that a scorer has learned: a draw from its law p_psi(r_t | x_t). arXiv 2602.23968.

    Attributes:
        scorer: the `OrderScorer`; in `generate` it is by default the one that was attached.
        bias: the knob for speed, without retraining: larger unmasks more positions a step (`OrderScorer.law`). In
            [-700, 700].
        greedy: instead of a draw the likeliest positions, about as many as the law draws
            (`SubsetDistribution.greedy`). The same set always; the laws "factor" and "dependent" have one anyway. Not
            for a law of independent positions where these exclude one another: only chance keeps them apart there.
    """

    scorer: "OrderScorer"
    bias: float = 0.0
    greedy: bool = False
    reads_unmasked: ClassVar[bool] = True

    @property
    def needs_hidden_states(self) -> tuple[int, ...]:  # pyrefly: ignore[bad-override]
        """Those that the scorer sees; none, if it looks at predictions only."""
        return self.scorer.config.layers_seen

    @property
    def is_random(self) -> bool:  # pyrefly: ignore[bad-override]
        return self.scorer.is_random and not self.greedy

    def __post_init__(self):
        if not hasattr(self.scorer, "law"):
            raise TypeError(f"scorer must be an OrderScorer, got {type(self.scorer).__name__}")
        check_range("bias", self.bias, low=-MOST, high=MOST)
        if not isinstance(self.greedy, bool):
            raise ValueError(f"greedy must be True or False, got {self.greedy!r}")

    def propose(self, step: Step, state: State) -> Proposal:
        law = self.scorer.law(step, self.scorer(step), bias=self.bias)
        return Proposal(law.greedy() if self.greedy else law.sample(generator=step.generator))


SAMPLERS: dict[str, type[Sampler]] = {
    "iid": IIDSampler,
    "random": RandomSampler,
    "left_to_right": LeftToRightSampler,
    "top_prob": TopProbSampler,
    "margin": MarginSampler,
    "entropy": EntropySampler,
    "threshold": ThresholdSampler,
    "factor": FactorSampler,
    "entropy_bound": EntropyBoundSampler,
    "klass": KLASSSampler,
    "position": PositionSampler,
    "dilated": DilatedSampler,
    "learned_order": LearnedOrderSampler,
    "remdm": ReMDMSampler,
    "wino": WINOSampler,
}


def make_sampler(
    sampler: str | Sampler, config: dict[str, Any] | None = None, *, scorer: "OrderScorer | None" = None
) -> Sampler:
    """The rule of that name with the options in `config`; an instance passes through.

    Raises:
        ValueError: the name is unknown (the names are listed), an option is unknown or out of range, an instance
            comes with a `config`, or `learned_order` has no scorer.
        TypeError: `sampler` is neither a name nor a `Sampler`.
    """
    if isinstance(sampler, Sampler):
        if config:
            raise ValueError(f"sampler_config must be empty when sampler is an instance, got {config}")
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(f"sampler must be a name or a Sampler, got {type(sampler).__name__}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    options = dict(config or {})
    if sampler == "learned_order":
        options.setdefault("scorer", scorer)
        if options["scorer"] is None:
            raise ValueError('sampler "learned_order" needs a scorer: attach(model, scorer=...) with an OrderScorer')
    names = {field.name for field in fields(SAMPLERS[sampler])}
    unknown = sorted(set(options) - names)
    if unknown:
        raise ValueError(f"sampler_config of {sampler!r} must have keys among {sorted(names)}, got {unknown}")
    return SAMPLERS[sampler](**options)
