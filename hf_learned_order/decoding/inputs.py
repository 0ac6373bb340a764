"""Checks of what the decoding loop is given."""

from typing import Any

import torch
from torch import Tensor

from hf_learned_order.decoding.canvas import Canvas
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.denoisers.denoiser import whole_mask


def start(
    input_ids: Tensor, attention_mask: Tensor, clean: Tensor, given: Tensor | None, *, mask_token_id: int
) -> dict[str, Any]:
    """Where the decoding of a batch of `collator.CanvasCollator` starts, as arguments of `decode`.

    A canvas of masks behind the prompts; or, where parts of the responses are `given`, these and masks to be filled in.
    """
    if given is None:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "max_new_tokens": clean.shape[1]}
    canvas = clean.masked_fill(~given, mask_token_id)
    mask = whole_mask(attention_mask, input_ids, canvas)
    return {"input_ids": torch.cat([input_ids, canvas], 1), "attention_mask": mask, "infill": True}


def check_draft(
    draft: Tensor | None, input_ids: Tensor, sampler: Sampler, *, infill: bool, max_new_tokens: int | None
) -> None:
    if draft is None:
        return
    for name, value in (("infill", infill or None), ("max_new_tokens", max_new_tokens)):
        if value is not None:
            raise ValueError(f"{name} must not be given with a draft, which is the canvas, got {value!r}")
    if draft.ndim != 2 or len(draft) != len(input_ids):
        raise ValueError(f"draft must have the shape [{len(input_ids)}, canvas], got {tuple(draft.shape)}")
    if sampler.remasks:
        raise ValueError(f"sampler must not remask when a draft is given, got {type(sampler).__name__}")


def check_infill(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} must be None with infill=True, which fills the masks of input_ids and adds nothing"
            )


def check_clean(clean: Tensor | None, canvas: Canvas, sampler: Sampler) -> None:
    if clean is None:
        return
    if clean.shape != canvas.masked.shape:
        raise ValueError(f"clean must have the shape {tuple(canvas.masked.shape)}, got {tuple(clean.shape)}")
    if sampler.remasks:
        raise ValueError(
            f"sampler must not remask when clean is given, got {type(sampler).__name__}: its order bounds no likelihood"
        )
