"""The canvas: the window of mask tokens behind a prompt, where a response appears. Shared by decoding and training."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_positive


def stacked(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ragged lists of ids as a batch with padding on the left: ids and attention mask, int [batch, width]."""
    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    # without the type, prompts that are all empty would be of floats
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def left_padded(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows with all padding moved to the left, so that every prompt ends where its canvas begins.

    What `attention_mask` says of a canvas behind the prompts stays as it is.
    """
    width = input_ids.shape[-1]
    mask, order = attention_mask[..., :width].long().sort(dim=-1, stable=True)
    return input_ids.gather(-1, order), torch.cat([mask, attention_mask[..., width:].long()], -1)


def padding_behind(prompt: Tensor, attention_mask: Tensor) -> Tensor | None:
    """bool [batch, canvas]: what is no part of its row, where `attention_mask` says something of the canvas, too."""
    behind = attention_mask[:, prompt.shape[1] :]
    return behind == 0 if behind.shape[1] else None


def given_layout(values: Tensor, attention_mask: Tensor) -> Tensor:
    """Undoes `left_padded`: columns [batch, length] of left-padded rows, back where `attention_mask` has them."""
    return values.gather(-1, attention_mask.long().argsort(dim=-1, stable=True).argsort(dim=-1))


def first(flags: Tensor) -> Tensor:
    """int [batch]: where the first True of each row of `flags` [batch, canvas] stands; the row's length without one."""
    return torch.where(flags.any(-1), flags.to(torch.uint8).argmax(-1), flags.shape[-1])


def through_first(flags: Tensor) -> Tensor:
    """bool, shape of `flags` [..., canvas]: up to the first True, it included; everything where there is none."""
    return flags.cumsum(-1) - flags.long() == 0


def settled(eos: Tensor, masked: Tensor) -> Tensor:
    """bool [batch]: the row has an unmasked EOS (bool `eos` [batch, canvas]) and nothing masked before the first one.

    What follows the first EOS is no part of the response, so such a row is finished.
    """
    return first(eos) < first(masked)


class Part(NamedTuple):
    """What is decoded together: a block of the canvas in some of its rows.

    Attributes:
        rows: int [n].
        window: the block, counted from `Canvas.start`.
        steps: the steps that it may take.
        group: a number; parts that share it have the same rows.
    """

    rows: Tensor
    window: slice
    steps: int
    group: int


@dataclass(kw_only=True)
class Canvas:
    """A batch while it is decoded. Rows are written in place.

    Attributes:
        ids: int [batch, start + length], prompt and canvas, padding on the left.
        attention_mask: [batch, start + length], 0 at padding.
        start: the column where the canvas begins.
        masked: bool [batch, length], the positions that are still to be unmasked; nothing else is ever touched.
        mask_token_id: what a masked position holds.
        order: int [batch, length], the step of the row, from 1, that unmasked a position; 0 where none did.
        token_log_probs: [batch, length], log p_theta of each token when it was unmasked.
        steps: int [batch], the steps that each row took part in.
        padding: bool [batch, length], positions that are no part of their row: the canvas lies within prompts of
            different lengths; None where there are none.
    """

    ids: Tensor
    attention_mask: Tensor
    start: int
    masked: Tensor
    mask_token_id: int
    order: Tensor = field(init=False)
    token_log_probs: Tensor = field(init=False)
    steps: Tensor = field(init=False)
    padding: Tensor | None = field(init=False)

    def __post_init__(self):
        self.order = torch.zeros_like(self.masked, dtype=torch.long)
        self.token_log_probs = torch.zeros_like(self.masked, dtype=torch.float)
        self.steps = self.order.new_zeros(len(self.masked))
        padding = self.attention_mask[:, self.start :] == 0
        self.padding = padding if padding.any() else None

    @classmethod
    def behind(
        cls,
        prompt: Tensor,
        attention_mask: Tensor,
        *,
        length: int,
        mask_token_id: int,
        draft: Tensor | None = None,
    ) -> "Canvas":
        """`length` masks behind each prompt [batch, prompt], which is padded on the left; or a `draft` with some left.

        Raises:
            ValueError: a prompt holds the mask token itself.
        """
        if ((prompt == mask_token_id) & attention_mask.bool()).any():
            raise ValueError(f"input_ids must not hold the mask token {mask_token_id} unless infill=True, but it does")
        if draft is None:
            draft = prompt.new_full((len(prompt), length), mask_token_id)
        masked = draft == mask_token_id
        return cls(
            ids=torch.cat([prompt, draft], 1),
            attention_mask=torch.cat([attention_mask, torch.ones_like(draft, dtype=attention_mask.dtype)], 1),
            start=prompt.shape[1],
            masked=masked,
            mask_token_id=mask_token_id,
        )

    @classmethod
    def within(cls, ids: Tensor, attention_mask: Tensor, *, start: int, mask_token_id: int) -> "Canvas":
        """The masks of `ids` [batch, length], which is padded on the left.

        `start` is 1 for a model that predicts a token from the one before it: the first one cannot be filled.

        Raises:
            ValueError: there is no mask, or one at a place that cannot be filled.
        """
        masked = (ids == mask_token_id) & attention_mask.bool()
        if not masked.any():
            raise ValueError(f"input_ids must hold the mask token {mask_token_id} when infill=True, but it does not")
        alone = masked[:, 0].clone()
        alone |= (masked[:, 1:] & (attention_mask[:, :-1] == 0)).any(-1)
        if start and alone.any():
            raise ValueError("input_ids must not begin with the mask token: this model predicts from the token before")
        return cls(
            ids=ids.clone(),
            attention_mask=attention_mask,
            start=start,
            masked=masked[:, start:],
            mask_token_id=mask_token_id,
        )

    @property
    def length(self) -> int:
        return self.masked.shape[1]

    @property
    def tokens(self) -> Tensor:
        """int [batch, length], a view of `ids`."""
        return self.ids[:, self.start :]

    @property
    def visible(self) -> Tensor:
        """int [batch, start + length]: what logits processors see of prompts and canvas, padding as the mask token."""
        return self.ids.masked_fill(self.attention_mask == 0, self.mask_token_id)

    def select(self, rows: Tensor) -> "Canvas":
        """A copy of these rows, int [n], in their order; a row may come more than once."""
        chosen = copy(self)
        for name in ("ids", "attention_mask", "masked", "order", "token_log_probs", "steps", "padding"):
            value = getattr(self, name)
            setattr(chosen, name, None if value is None else value[rows])
        return chosen

    def write(
        self, rows: Tensor, window: slice, tokens: Tensor, log_probs: Tensor, unmask: Tensor, remask: Tensor
    ) -> None:
        """One step of `rows`: `tokens` at `unmask`, the mask token at `remask`, all [len(rows), window]."""
        at = (rows, window)
        self.steps[rows] += 1
        tokens = tokens.to(self.ids.dtype)
        self.tokens[at] = torch.where(unmask, tokens, self.tokens[at]).masked_fill(remask, self.mask_token_id)
        self.token_log_probs[at] = torch.where(unmask, log_probs, self.token_log_probs[at]).masked_fill(remask, 0.0)
        number = self.steps[rows, None]
        self.order[at] = torch.where(unmask, number, self.order[at]).masked_fill(remask, 0)
        self.masked[at] = self.masked[at] & ~unmask | remask

    def windows(self, block_length: int | None, steps: int | None) -> list[tuple[slice, int]]:
        """The blocks of the canvas, from left to right, and the steps of each; one of everything without a length.

        `steps` are divided evenly, the first blocks take what is over; by default each gets one for each position that
        is masked in it, in the row that has most.

        Raises:
            ValueError: `block_length` does not divide the canvas, or there are fewer steps than blocks.
        """
        length = self.length
        if block_length is not None:
            check_positive("block_length", block_length)
            if self.length % block_length:
                raise ValueError(f"block_length must divide max_new_tokens {self.length}, got {block_length}")
            length = block_length
        slices = [slice(start, start + length) for start in range(0, self.length, length)]
        every = torch.arange(len(self.masked), device=self.ids.device)
        return list(zip(slices, self._shares(every, slices, steps), strict=True))

    def plan(
        self,
        block_length: int | None,
        steps: int | None,
        *,
        block_size: int | None,
        causal_context: bool = False,
        infill: bool = False,
    ) -> list[Part]:
        """What is decoded together, one after the other, blocks from left to right.

        With a canvas behind the prompts these are all rows and `windows`. On a block-causal model, and in blocks within
        a prompt, a row has its blocks on a grid that starts at its first token, so rows go together where their grids
        agree; a block without a mask is left out.

        Args:
            block_length: as in `windows`; on a block-causal model its `block_size` or None. With `infill` any.
            steps: as in `windows`, each row's divided among its own blocks.
            block_size: of a block-causal model, else None.
            causal_context: blocks begin with the canvas. The context says the first token of a block, so a block of
                two steps or more has a part of one position before it.
            infill: the canvas lies within the prompts.

        Raises:
            ValueError: `block_length` is not the model's, or as `windows`.
        """
        every = torch.arange(len(self.masked), device=self.ids.device)
        size = block_size or (block_length if infill else None)
        if size is None:
            return [Part(every, window, share, 0) for window, share in self.windows(block_length, steps)]
        if block_size is None:
            check_positive("block_length", size)
        elif block_length not in (None, block_size):
            raise ValueError(
                f"block_length must be None or {block_size}, the block in which this block-causal model attends, "
                f"got {block_length!r}"
            )
        groups: dict[tuple[tuple[int, int, bool], ...], list[int]] = {}
        padding, masked = (self.attention_mask == 0).sum(-1).tolist(), self.masked.cpu()
        for row, pad in enumerate(padding):
            grid = range(0 if causal_context else (pad - self.start) % size, self.length, size)
            blocks = pairwise(sorted({0, *grid, self.length}))
            mine = tuple(
                (start, stop, causal_context and bool(masked[row, start]))
                for start, stop in blocks
                if masked[row, start:stop].any()
            )
            groups.setdefault(mine, []).append(row)
        parts = []
        for group, (blocks, members) in enumerate(groups.items()):
            rows, slices = every[members], [slice(start, stop) for start, stop, _ in blocks]
            shares = self._shares(rows, slices, steps)
            for window, share, (start, _, leads) in zip(slices, shares, blocks, strict=True):
                if leads and share > 1:
                    parts.append(Part(rows, slice(start, start + 1), 1, group))
                    share -= 1
                parts.append(Part(rows, window, share, group))
        return sorted(parts, key=lambda part: part.window.start)  # so that a streamer need not wait for the last row

    def _shares(self, rows: Tensor, slices: list[slice], steps: int | None) -> list[int]:
        """The steps of each block of `rows`."""
        if steps is None:
            return [int(self.masked[rows, window].sum(-1).max()) for window in slices]
        check_positive("max_denoising_steps", steps)
        if steps < len(slices):
            raise ValueError(
                f"max_denoising_steps must be at least one for each of the {len(slices)} blocks, got {steps}"
            )
        share, over = divmod(steps, max(len(slices), 1))
        return [share + (number < over) for number in range(len(slices))]
