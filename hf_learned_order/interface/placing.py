"""A model and its tokenizer as lm-evaluation-harness names them, on the device that it says."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_learned_order.common.processes import device_for
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer

COMMAND_LINE = ("cuda", "cuda:0")  # the devices that the harness's command line names unless told otherwise


def placed(
    pretrained: str | PreTrainedModel,
    tokenizer: str | PreTrainedTokenizerBase | None,
    processes: Any,
    *,
    device: str | None,
    device_map: Any,
    **how: Any,
) -> tuple[Any, Any]:
    """Model and tokenizer, loaded where only their names are given.

    Args:
        pretrained, tokenizer, device, device_map: see `LearnedOrderLM`.
        processes: accelerate's `PartialState` if there are several.
        how: `dtype` and `trust_remote_code`, where they are loaded.

    Raises:
        ValueError: a model that is loaded already comes without its tokenizer; a device map is given with a device,
            with such a model, or for several processes.
    """
    loads = isinstance(pretrained, str)
    if device in COMMAND_LINE and (device_map is not None or not torch.cuda.is_available()):
        device = None
    if tokenizer is None:
        if not isinstance(pretrained, str):
            raise ValueError("tokenizer must be given with a pretrained model that is loaded already, got None")
        tokenizer = pretrained
    if device_map is not None and (device is not None or not loads):
        raise ValueError(f"device_map must be None with a device or a model that is loaded already, got {device_map!r}")
    place = device_for(processes, device_map)
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer, trust_remote_code=how["trust_remote_code"])
    if isinstance(pretrained, str):
        how |= {} if device_map is None else {"device_map": device_map}
        pretrained = load_denoiser(pretrained, **how).eval()
    if processes is None and (device is not None or not loads):
        place = device
    return pretrained if place is None else pretrained.to(place), tokenizer  # pyrefly: ignore[bad-argument-type]
