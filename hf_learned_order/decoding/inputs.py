"""What the decoding loop is given: checks, and the canvas that is made of it."""

from typing import Any

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_positive, check_room
from hf_learned_order.decoding.canvas import Canvas, left_padded
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.denoisers.calls import whole_mask
from hf_learned_order.denoisers.denoiser import Denoiser

DEFAULT_LENGTH = 128  # of a canvas


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


def canvas_of(
    denoiser: Denoiser,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    length: int | None,
    draft: Tensor | None,
    infill: bool,
) -> Canvas:
    """`length` masks behind the prompts, or what a draft has there; with `infill`, the masks within them."""
    length = 0 if infill else DEFAULT_LENGTH if length is None else length
    if draft is not None:
        length = draft.shape[1]
    if not infill:
        check_positive("max_new_tokens", length)
    family, mask_token_id = denoiser.family, denoiser.mask_token_id
    check_room("prompt", attention_mask, length, limit=denoiser.max_length, before=family.tokens_before)
    prompt, mask = left_padded(input_ids, attention_mask)
    if infill:
        return Canvas.within(prompt, mask, start=family.shift, mask_token_id=mask_token_id)
    return Canvas.behind(prompt, mask, length=length, mask_token_id=mask_token_id, draft=draft)


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


def check_infill(denoiser: Denoiser, **arguments: object) -> None:
    if denoiser.family.causal_context:
        raise ValueError(
            "infill must be False with a model that has a causal context: it sees nothing behind the current block"
        )
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


def check_negative_prompt(denoiser: Denoiser, negative_prompt_ids: Tensor | None) -> None:
    family = denoiser.family
    if family.block_size is not None and not family.causal_context and negative_prompt_ids is not None:
        raise ValueError(
            "negative_prompt_ids must be None with a block-causal model: its blocks are counted from the first token, "
            "so the canvas would be divided in another way behind another prompt"
        )
