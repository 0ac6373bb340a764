"""The denoiser as a run needs it: frozen, with an adapter to be trained, or whole; and what is noted of it before."""

from typing import Any

from hf_learned_order.denoisers.adapters import has_adapter
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.probe import probe
from hf_learned_order.orders.configuration import OrderScorerConfig
from hf_learned_order.orders.tuned import check_tuned


def to_be_trained_with(
    denoiser: Denoiser, config: OrderScorerConfig, *, peft_config: Any = None, whole: bool = False
) -> Denoiser:
    """The denoiser with what is to be trained of it; the scorer's `config` says which one it is from now on.

    Args:
        denoiser: the model, whose `requires_grad` is set; it gets the adapter.
        config: the scorer's.
        peft_config: of the adapter to be trained along.
        whole: whether every weight is trained along.

    Raises:
        ValueError: a denoiser was tuned along with the scorer before, and this is the one from before that.
    """
    model = denoiser.model
    check_tuned(denoiser, config, config.name_or_path or None)
    own = has_adapter(model)
    if name := getattr(model.config, "_name_or_path", None):
        config.base_model_name_or_path = name
        config.base_model_revision = getattr(model.config, "_commit_hash", None)
    config.denoiser_tuning = "adapter" if own or peft_config is not None else "denoiser" if whole else None
    config.denoiser_probe = probe(denoiser)
    config.base_model_probe = _probe_of_base(denoiser) if config.denoiser_tuning else None
    model.requires_grad_(whole)
    if peft_config is None:
        return denoiser
    from peft import get_peft_model

    # pyrefly: ignore[bad-argument-type] (PEFT's wrapper is no PreTrainedModel)
    return Denoiser(get_peft_model(model, peft_config), mask_token_id=denoiser.mask_token_id, family=denoiser.family)


def _probe_of_base(denoiser: Denoiser) -> str | None:
    """`probe`, of a model with an adapter of its own without that; its parameters need gradients afterwards."""
    if not has_adapter(denoiser.model):
        return probe(denoiser)
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [each for each in denoiser.modules() if isinstance(each, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        return probe(denoiser)
    finally:
        for layer in layers:
            layer.enable_adapters(True)
