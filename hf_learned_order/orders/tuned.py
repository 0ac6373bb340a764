"""A denoiser that was tuned along with a scorer, or has an adapter: told from the one before, and brought up to it.

The scorer's configuration holds what its denoiser said to a few tokens (`denoisers.probe`), and what the one from
before said. So a denoiser is known by what it computes, under whatever name it was saved, its adapter merged or not.
"""

import warnings
from os import PathLike
from typing import Any

from torch import nn

from hf_learned_order.denoisers.adapters import has_adapter, put_adapter
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.probe import distance, probe
from hf_learned_order.orders.configuration import OrderScorerConfig

ADAPTER_FOLDER, DENOISER_FOLDER = "adapter", "denoiser"  # beside the scorer's files
FOLDERS = {"adapter": ADAPTER_FOLDER, "denoiser": DENOISER_FOLDER}  # of `OrderScorerConfig.denoiser_tuning`
FAR = 0.25  # nats; rounding to bfloat16 is a tenth of it


def bring_up(denoiser: Denoiser, config: OrderScorerConfig, source: str | PathLike | None, **place: Any) -> None:
    """Load the adapter of `source` into the model, in place, where the scorer was trained with one.

    A model that has that adapter already, merged or not, stays as it is.

    Args:
        denoiser: the model.
        config: the scorer's.
        source: the scorer's folder or repository; None for one that is in memory, which brings no adapter.
        place: its `revision` and `token`.

    Raises:
        ValueError: this is the denoiser from before, or it has an adapter that is not the scorer's.
    """
    wanted = config.denoiser_tuning == "adapter" and source is not None
    if wanted and not has_adapter(denoiser.model) and not is_tuned(probe(denoiser), config):
        put_adapter(denoiser.model, source, subfolder=ADAPTER_FOLDER, **place)  # pyrefly: ignore[bad-argument-type]
    check_tuned(denoiser, config, source)


def check_tuned(denoiser: Denoiser, config: OrderScorerConfig, source: str | PathLike | None = None) -> None:
    """Raises `ValueError` if this is the denoiser from before it was tuned along with the scorer of `source`.

    Without a `source`, whose model may have been trained under the name that it has, names say nothing. Warns where it
    predicts otherwise than the one that the scorer was trained with.
    """
    found = None if config.denoiser_probe is None else probe(denoiser)
    tuned = is_tuned(found, config)
    if tuned is None:
        tuned = source is None or has_adapter(denoiser.model) or not _is_before(denoiser.model, config)
    source = source or config.name_or_path or "this model"
    if not tuned:
        raise ValueError(
            f"model must be the denoiser that was tuned along with the scorer of {source}, "
            f"but it is the one from before: load_model({str(source)!r}) loads both"
        )
    if found is not None and (off := distance(found, config.denoiser_probe or "")) > FAR:
        warnings.warn(
            f"the scorer of {source} was trained with {config.base_model_name_or_path or 'a denoiser'} as it predicted "
            f"then, but this model predicts otherwise: log-probabilities differ by {off:.2g} nats on average",
            stacklevel=3,
        )


def is_tuned(found: str | None, config: OrderScorerConfig) -> bool | None:
    """Whether the probe `found` is of the denoiser that the scorer was trained with; False: of its base model.

    None: of neither; or that one was its base model itself, or nothing was noted of it.
    """
    if found is None or config.denoiser_probe is None or config.base_model_probe is None:
        return None
    after, before = distance(found, config.denoiser_probe), distance(found, config.base_model_probe)
    return True if after < before / 2 else False if before < after / 2 else None


def _is_before(model: nn.Module, config: OrderScorerConfig) -> bool:
    """Whether a model that has no adapter is the one from before, by its name."""
    before = getattr(model.config, "name_or_path", None) or None  # pyrefly: ignore[missing-attribute]
    by_name = bool(before) and before == config.base_model_name_or_path
    return config.denoiser_tuning == "adapter" or (config.denoiser_tuning == "denoiser" and by_name)
