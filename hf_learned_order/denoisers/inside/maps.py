"""Attention maps of a model, for the rules that read them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

LAST = 0.3  # share of the layers: DAPD, arXiv 2603.12996


def check_maps(model: PreTrainedModel, *, whole: bool) -> None:
    """Raises `ValueError` unless the model can return its attention; `whole`: a call is about the whole sequence."""
    if not whole:
        raise ValueError(
            "sampler must not read attention maps with a kv_cache or a causal context, whose calls show a part of the "
            "sequence only: leave kv_cache out, or take another sampler"
        )
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation not in (None, "eager"):
        raise ValueError(
            f"sampler must not read attention maps with {type(model).__name__} as it is loaded: its "
            f'attn_implementation must be "eager", got {implementation!r}; load it with '
            'load_denoiser(..., attn_implementation="eager"), or call model.set_attn_implementation("eager")'
        )


def mean_attention(model: PreTrainedModel, maps: Sequence[Tensor] | None) -> Tensor:
    """[batch, length, length]: the mean over the heads of the last 30 % of the layers, one layer at least.

    Raises:
        ValueError: the model returned no maps [batch, heads, length, length].
    """
    if not maps or any(getattr(of_layer, "ndim", 0) != 4 for of_layer in maps):
        raise ValueError(
            f"sampler must not read attention maps with {type(model).__name__}: it returns none with "
            "output_attentions=True; take another sampler"
        )
    last = maps[-math.ceil(LAST * len(maps)) :]
    return torch.stack([of_layer.float().mean(1) for of_layer in last]).mean(0)
