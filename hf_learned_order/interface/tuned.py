"""A denoiser that was tuned along with a scorer: told from the one before, and brought up to it."""

from os import PathLike
from typing import Any

from torch import nn

from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.training.saved import ADAPTER_FOLDER


def bring_up(model: nn.Module, config: OrderScorerConfig, source: str | PathLike, **place: Any) -> None:
    """Load the LoRA adapter of `source` into `model`, in place, where the scorer was trained along with one.

    A model that has an adapter already stays as it is.

    Args:
        model: the denoiser.
        config: the scorer's.
        source: the scorer's folder or repository.
        place: its `revision` and `token`.

    Raises:
        ValueError: every weight of the denoiser was tuned, and `model` is the one from before.
    """
    if config.denoiser_tuning == "adapter" and not has_adapter(model):
        # pyrefly: ignore[not-callable] (transformers' own; it keeps the object what it is)
        model.load_adapter(str(source), adapter_kwargs={"subfolder": ADAPTER_FOLDER, **place})
    else:
        check_tuned(model, config, source)


def check_tuned(model: nn.Module, config: OrderScorerConfig, source: str | PathLike) -> None:
    """Raises `ValueError` if `model` is the denoiser from before it was tuned along with the scorer of `source`."""
    if config.denoiser_tuning is None or has_adapter(model):
        return
    before = getattr(model.config, "name_or_path", None) or None  # pyrefly: ignore[missing-attribute]
    if config.denoiser_tuning == "adapter" or (before and before == config.base_model_name_or_path):
        raise ValueError(
            f"model must be the denoiser that was tuned along with the scorer of {source}, "
            f"but it is the one from before: load_model({str(source)!r}) loads both"
        )


def has_adapter(model: nn.Module) -> bool:
    """Whether it holds a PEFT adapter, by transformers' own way or by a wrapper."""
    return bool(getattr(model, "peft_config", None))
