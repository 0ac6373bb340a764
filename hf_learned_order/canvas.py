"""The canvas: the window of mask tokens behind a prompt, where a response appears. Shared by decoding and training."""

import torch
from torch import Tensor


def left_padded(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with all padding moved to the left, so that every prompt ends where its canvas begins."""
    mask, order = attention_mask.long().sort(dim=-1, stable=True)
    return input_ids.gather(-1, order), mask


def settled(eos: Tensor, masked: Tensor) -> Tensor:
    """bool [batch]: the row has an unmasked EOS (bool `eos` [batch, canvas]) and nothing masked before the first one.

    What follows the first EOS is no part of the response, so such a row is finished.
    """
    eos = eos & ~masked
    first_eos = eos.to(torch.uint8).argmax(-1)
    first_mask = torch.where(masked.any(-1), masked.to(torch.uint8).argmax(-1), eos.shape[-1])
    return eos.any(-1) & (first_eos < first_mask)
