"""Learned unmasking orders for masked diffusion language models.

    model = attach(AutoModelForMaskedLM.from_pretrained(...), scorer="user/scorer")
    model.generate(**inputs, sampler="learned_order", max_new_tokens=64, max_denoising_steps=8)

The public names load on first use, so that `import hf_learned_order` costs nothing.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "attach": "integration",
    "detach": "integration",
    "load_model": "integration",
    "decode": "generation",
    "LearnedOrderOutput": "generation",
    "Denoiser": "denoisers",
    "Family": "families",
    "load_denoiser": "denoisers",
    "register_family": "families",
    "OrderScorer": "scorer",
    "OrderScorerConfig": "scorer",
    "SAMPLERS": "samplers",
    "Sampler": "rules",
    "Proposal": "rules",
    "IIDSampler": "samplers",
    "RandomSampler": "samplers",
    "LeftToRightSampler": "samplers",
    "TopProbSampler": "samplers",
    "MarginSampler": "samplers",
    "EntropySampler": "samplers",
    "ThresholdSampler": "samplers",
    "FactorSampler": "samplers",
    "EntropyBoundSampler": "samplers",
    "KLASSSampler": "samplers",
    "PositionSampler": "samplers",
    "DilatedSampler": "samplers",
    "LearnedOrderSampler": "samplers",
    "ReMDMSampler": "remasking",
    "WINOSampler": "remasking",
    "Predictions": "predictions",
    "Step": "predictions",
    "OrderELBO": "objective",
    "CleanPosterior": "posteriors",
    "OrderTrainer": "trainer",
    "OrderTrainingArguments": "arguments",
    "Card": "cards",
    "push_folder": "hub",
    "Evaluator": "evaluation",
    "compare": "comparison",
    "OrderMap": "order_maps",
}
__all__ = list(_MODULES)  # pyrefly: ignore


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
