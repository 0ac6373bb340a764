"""The unmasking rules, one small class each.

A rule proposes which masked positions to unmask at a step, and may propose to mask unmasked ones again; the decoding
loop (`generation.py`) adds the laws that hold for every rule: nothing outside the masked positions is unmasked and
nothing else remasked, at least one position a step, everything at the last step.

Symbols: `M` masked, `n = |M|`, `c` confidence, `m` margin, `H` entropy, K = ceil(n / steps left).
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_learned_order.distributions import NonEmptyBernoulli, ancestral_logit, largest
from hf_learned_order.predictions import Step

if TYPE_CHECKING:
    from hf_learned_order.scorer import OrderScorer


# What a rule remembers from step to step: tensors with the batch first. The loop drops the rows that finish.
State = tuple[Tensor, ...]


class Proposal(NamedTuple):
    """What a rule says about one step.

    Attributes:
        unmask: bool [batch, canvas]; ignored outside `step.masked`.
        state: what `propose` gets at the next step, without the rows that have finished by then.
        remask: bool [batch, canvas], for rules with `remasks`; ignored where nothing was unmasked by an earlier step.
    """

    unmask: Tensor
    state: State = ()
    remask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A rule. It keeps nothing between steps but its state, so one sampler serves any number of generations at once.

    Attributes:
        needs_hidden_states: the rule reads `step.hidden_states`.
        remasks: the rule may propose to mask an unmasked position again, and reads `step.predictions` there.
    """

    needs_hidden_states: ClassVar[bool] = False
    remasks: ClassVar[bool] = False

    def init_state(self, step: Step) -> State:
        """What the first `propose` gets; `step` is the first one."""
        return ()

    def propose(self, step: Step, state: State) -> Proposal:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class IIDSampler(Sampler):
    """Each masked position with probability 1 / steps left, given that at least one is: ancestral sampling.

    MDLM, arXiv 2406.07524, linear schedule. A step of theirs that unmasks nothing leaves the canvas as it was and
    needs no denoiser call; here it does not occur.
    """

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(self.law(step).sample(generator=step.generator))

    def law(self, step: Step) -> NonEmptyBernoulli:
        logit = ancestral_logit(torch.tensor(float(step.steps_left), device=step.masked.device))
        return NonEmptyBernoulli(logit.expand(step.masked.shape), step.masked)


@dataclass(frozen=True, kw_only=True)
class RandomSampler(Sampler):
    """K positions uniformly at random. LLaDA "random", arXiv 2502.09992."""

    def propose(self, step: Step, state: State) -> Proposal:
        noise = torch.rand(step.masked.shape, device=step.masked.device, generator=step.generator)
        return Proposal(largest(noise, step.masked, step.quota))


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
class LearnedOrderSampler(Sampler):
    """The order that a scorer has learned: a draw from its law p_psi(r_t | x_t). arXiv 2602.23968.

    Attributes:
        scorer: the `OrderScorer`; in `generate` it is by default the one that was attached.
        bias: the knob for speed, without retraining: larger unmasks more positions a step (`OrderScorer.law`).
    """

    scorer: "OrderScorer"
    bias: float = 0.0
    needs_hidden_states: ClassVar[bool] = True

    def __post_init__(self):
        if not hasattr(self.scorer, "law"):
            raise TypeError(f"scorer must be an OrderScorer, got {type(self.scorer).__name__}")
        check_range("bias", self.bias, low=float("-inf"))

    def propose(self, step: Step, state: State) -> Proposal:
        return Proposal(self.scorer.law(step, self.scorer(step), bias=self.bias).sample(generator=step.generator))


SAMPLERS: dict[str, type[Sampler]] = {
    "iid": IIDSampler,
    "random": RandomSampler,
    "top_prob": TopProbSampler,
    "margin": MarginSampler,
    "entropy": EntropySampler,
    "threshold": ThresholdSampler,
    "entropy_bound": EntropyBoundSampler,
    "learned_order": LearnedOrderSampler,
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


def check_range(name: str, value: float, *, low: float, high: float = float("inf")) -> None:
    """Raises `ValueError` unless `value` is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low}, {high}], got {value!r}")
