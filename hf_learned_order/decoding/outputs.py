"""What decoding returns."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from hf_learned_order.decoding.canvas import Canvas, given_layout
from hf_learned_order.decoding.stopping import Stopping


# every field is always there, `order` unless it is not wanted; ModelOutput asks for the default None
@dataclass
class LearnedOrderOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns.

    Attributes:
        sequences: [batch, prompt + canvas], the prompt as it was given and the response; padding after its end. With
            `infill`, `input_ids` with the masks filled.
        order: int [batch, canvas], the step, from 1, at which a position was (last) unmasked; 0 where an early end made
            it unnecessary. With `infill` one number for each token of `input_ids`, 0 where there was no mask.
        length: int [batch], tokens of the response, what ended it included; the canvas where nothing did. With `infill`
            the tokens that were filled in.
        nfe: int [batch], denoiser calls made while the sequence still had a masked position. With guidance a step
            takes two.
        canvases: int [batch], rows of the sequence in these calls: as `nfe`, but with `verify` a call is about several.
        tokens_per_forward: float [batch], `length` a denoiser call.
        log_likelihood: float [batch], nats: log p_theta of each token when it was (last) unmasked, summed. With a rule
            that remasks it bounds nothing.
        token_log_probs: float, shape of `order`, nats: its terms; 0 where `order` is 0.
    """

    sequences: Tensor = None  # pyrefly: ignore[bad-assignment]
    order: Tensor = None  # pyrefly: ignore[bad-assignment]
    length: Tensor = None  # pyrefly: ignore[bad-assignment]
    nfe: Tensor = None  # pyrefly: ignore[bad-assignment]
    canvases: Tensor = None  # pyrefly: ignore[bad-assignment]
    tokens_per_forward: Tensor = None  # pyrefly: ignore[bad-assignment]
    log_likelihood: Tensor = None  # pyrefly: ignore[bad-assignment]
    token_log_probs: Tensor = None  # pyrefly: ignore[bad-assignment]


def output_of(
    canvas: Canvas,
    stopping: Stopping,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    infill: bool,
    nfe: Tensor,
    canvases: Tensor,
) -> LearnedOrderOutput:
    """What a decoded canvas holds, in the layout of the prompts as they were given."""
    response, length = stopping.response(canvas), stopping.length
    sequences = torch.cat([input_ids, response], 1)
    order, token_log_probs = canvas.order, canvas.token_log_probs
    if infill:
        sequences = given_layout(canvas.ids, attention_mask)
        before = (canvas.start, 0)  # what stands before the first column that can be filled
        order, token_log_probs = (given_layout(pad(part, before), attention_mask) for part in (order, token_log_probs))
        length = (order > 0).sum(-1)
    return LearnedOrderOutput(
        sequences=sequences,
        order=order,
        length=length,
        nfe=nfe,
        canvases=canvases,
        tokens_per_forward=length / nfe.clamp(min=1),  # a row without masks needs no call
        log_likelihood=canvas.token_log_probs.sum(-1),
        token_log_probs=token_log_probs,
    )
