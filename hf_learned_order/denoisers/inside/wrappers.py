"""What stands around a model: compilers, adapters, and weights that are elsewhere until they are needed."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def uncompiled(model: Any) -> Any:
    """What `torch.compile(model)` wraps, else the model: transformers' own `generate` calls that one too."""
    # by name: the class stands in a module that takes long to import, and PEFT's wrappers have the attribute too
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model


def base_of(model: Any) -> PreTrainedModel:
    """The transformers model within wrappers of PEFT and torch.compile."""
    model = uncompiled(model)
    if hasattr(model, "get_base_model"):
        return uncompiled(model.get_base_model())
    if getattr(model, "peft_config", None) and not isinstance(model, PreTrainedModel):  # PEFT's mixed models
        return uncompiled(model.base_model.model)
    return model


def class_of(model: PreTrainedModel) -> type:
    """The model's class as its authors wrote it: FSDP2 gives the model one of its own, derived from that."""
    kinds = (kind for kind in type(model).__mro__ if issubclass(kind, PreTrainedModel))
    return next(kind for kind in kinds if not kind.__module__.startswith("torch."))


def is_compiled(model: nn.Module) -> bool:
    """Whether a part of it is compiled. The hooks of the first call would be compiled in, and later ones left out."""
    return any(
        module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def device_of(model: nn.Module) -> torch.device:
    """Where token ids go: to the embeddings, or where accelerate brings weights that are offloaded.

    Raises:
        ValueError: there are no weights and nothing that brings them.
    """
    base = base_of(model)
    embeddings = _embeddings(base)
    for module in (model, base, embeddings):
        hook = getattr(module, "_hf_hook", None)  # accelerate's, one or several
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None and torch.device(device).type != "meta":
                return torch.device(device)
    weights = [*embeddings.parameters()] if embeddings is not None else []
    device = next((weight.device for weight in (*weights, *base.parameters())), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError(
            f"model must have its weights, but those of {type(base).__name__} are on the device meta, and no hook of "
            "accelerate brings them in: load it with from_pretrained, or dispatch it"
        )
    return device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of what comes out of the embeddings."""
    base = base_of(model)
    weights = getattr(_embeddings(base), "parameters", list)()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), base.dtype)


def _embeddings(base: PreTrainedModel) -> nn.Module | None:
    try:
        return base.get_input_embeddings()  # pyrefly: ignore[bad-return]
    except (AttributeError, NotImplementedError):  # remote code that does not say
        return None
