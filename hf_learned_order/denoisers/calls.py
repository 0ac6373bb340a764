"""One call of a denoiser about canvases behind their prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.predictions import Predictions


def whole_mask(attention_mask: Tensor, prompt: Tensor, canvas: Tensor) -> Tensor:
    """[batch, prompt + canvas]: `attention_mask` [batch, prompt] and ones for the canvas; or as it is, if of both."""
    if attention_mask.shape[1] > prompt.shape[1]:
        return attention_mask
    return torch.cat([attention_mask, attention_mask.new_ones(canvas.shape)], 1)


def predict(
    denoiser: Denoiser,
    prompt: Tensor,
    prompt_mask: Tensor,
    canvas: Tensor,
    *,
    hidden_states: bool | Sequence[int],
) -> tuple[Predictions, Tensor | None]:
    """One call: predictions and, if wanted, hidden states of the canvas [batch, canvas] behind a left-padded prompt.

    `prompt_mask` as in `whole_mask`.
    """
    rows, length = canvas.shape
    row = torch.arange(rows, device=canvas.device).repeat_interleave(length)
    position = torch.arange(length, device=canvas.device).repeat(rows)
    logits, hidden = denoiser(
        torch.cat([prompt, canvas], 1),
        whole_mask(prompt_mask, prompt, canvas),
        prompt.shape[1],
        hidden_states=hidden_states,
        at=(row, position),  # the head is not asked for the prompt
    )
    predictions = Predictions.from_logits(logits, denoiser.mask_token_id, at=(row, position), shape=(rows, length))
    return predictions, hidden
