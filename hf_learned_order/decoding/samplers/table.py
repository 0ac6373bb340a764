"""The rules by name."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.remasking import ReMDMSampler, WINOSampler

if TYPE_CHECKING:
    from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.decoding.samplers.adaptive import (
    EntropyBoundSampler,
    FactorSampler,
    FrechetSampler,
    KLASSSampler,
    LocalLeapSampler,
    ThresholdSampler,
)
from hf_learned_order.decoding.samplers.dapd import DAPDSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.random_sizes import RandomSizesSampler
from hf_learned_order.decoding.samplers.scheduled import (
    DilatedSampler,
    EntropySampler,
    IIDSampler,
    LeftToRightSampler,
    MarginSampler,
    PositionSampler,
    RandomSampler,
    TopProbSampler,
)

SAMPLERS: dict[str, type[Sampler]] = {
    "iid": IIDSampler,
    "random": RandomSampler,
    "left_to_right": LeftToRightSampler,
    "top_prob": TopProbSampler,
    "margin": MarginSampler,
    "entropy": EntropySampler,
    "threshold": ThresholdSampler,
    "factor": FactorSampler,
    "frechet": FrechetSampler,
    "local_leap": LocalLeapSampler,
    "entropy_bound": EntropyBoundSampler,
    "klass": KLASSSampler,
    "position": PositionSampler,
    "dapd": DAPDSampler,
    "dilated": DilatedSampler,
    "random_sizes": RandomSizesSampler,
    "learned_order": LearnedOrderSampler,
    "remdm": ReMDMSampler,
    "wino": WINOSampler,
}
# what LLaDA, Dream, dLLM and SDAR call them
ELSEWHERE = {
    "confidence": "top_prob",
    "entropy_bounded": "entropy_bound",
    "low_confidence": "top_prob",
    "low_confidence_dynamic": "threshold",
    "low_confidence_static": "top_prob",
    "maskgit_plus": "top_prob",
    "origin": "iid",
    "sequential": "left_to_right",
    "topk_margin": "margin",
    **{name: name for name in ("random", "entropy")},
}


def make_sampler(
    sampler: str | Sampler, config: dict[str, Any] | None = None, *, scorer: "OrderScorer | None" = None
) -> Sampler:
    """The rule of that name with the options in `config`; an instance passes through.

    Raises:
        ValueError: the name is unknown (the names are listed, and what another library calls so is named), an option
            is unknown or out of range, an instance comes with a `config`, or `learned_order` has no scorer.
        TypeError: `sampler` is neither a name nor a `Sampler`.
    """
    if isinstance(sampler, Sampler):
        if config:
            raise ValueError(f"sampler_config must be empty when sampler is an instance, got {config}")
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(f"sampler must be a name or a Sampler, got {type(sampler).__name__}")
    if sampler not in SAMPLERS:
        hint = f", which is {ELSEWHERE[sampler]!r} here" if sampler in ELSEWHERE else ""
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}{hint}")
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
