"""Models with a causal context: the current block sees all of itself, and of what comes before it a causal reading.

The same weights read a token in two ways: causally, as context of later blocks, and in both directions, as part of the
current block. While one block is current each token is needed in one way only. Where a canvas of several blocks is read
at once, in training, the tokens of all blocks but the last go in twice: first as context, then as blocks.

    columns      0 .. start .. last | start .. length
    read as      context            | blocks

The first token of a block is predicted as an autoregressive model does, from the context that ends before it; so the
block needs no call to begin with but the one that reads what was finished.
Source: Nemotron-Labs-Diffusion, `generate` with `causal_context=True`, and the block mask of its training.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What the model is sent of a sequence.

    Attributes:
        columns: int [sent], which column of the sequence each is.
        seen: bool [batch, sent, sent], who (the second) sees whom (the third).
        places: int [length - start], where among the sent ones the logits of each position from `start` on are.
    """

    columns: Tensor
    seen: Tensor
    places: Tensor


def reading(attention_mask: Tensor, positions: Tensor, start: int, block_size: int) -> Reading:
    """The context of the last block, then every block from `start` on.

    Args:
        attention_mask: [batch, length], 0 at padding, which is on the left.
        positions: int [batch, length], counted from the first real token of each row.
        start: the column where the first block begins.
        block_size: columns of a block; the last one may have fewer.

    Raises:
        ValueError: `start` is 0: the first token of a block is predicted from the one before it.
    """
    length, device = attention_mask.shape[1], attention_mask.device
    if start == 0:
        raise ValueError("start must be at least 1 with a causal context: a block begins behind some token, got 0")
    place = torch.arange(length - start, device=device)
    last = start + (length - start - 1) // block_size * block_size  # where the last block begins
    columns = torch.cat([torch.arange(last, device=device), place + start])
    block = torch.cat([place.new_full((last,), -1), place // block_size])  # -1: read as context
    begins = torch.cat([place.new_zeros(last), start + place // block_size * block_size])

    of_block = (block[:, None] == block) & (block >= 0)
    before = (columns < begins[:, None]) & (block == -1)  # what a block sees of the context
    at = positions[:, columns]
    # by position, so that padding sees what the first token sees and no softmax is over nothing
    causal = (at[:, None, :] <= at[:, :, None]) & (block[:, None] == -1) & (block == -1)
    seen = (causal | before | of_block) & attention_mask.bool()[:, None, columns]

    places = torch.where(place % block_size == 0, place + start - 1, place + last)
    return Reading(columns, seen, places)
