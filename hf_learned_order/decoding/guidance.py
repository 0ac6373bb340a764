"""Classifier-free guidance: logits = unconditional + scale * (conditional - unconditional).

`scale` is transformers' `guidance_scale`: 1 is no guidance. LLaDA's `cfg_scale` is `scale - 1`.
Source: Ho and Salimans, arXiv 2207.12598; for masked diffusion Nie et al., arXiv 2410.18514.
"""

import torch
from torch import Tensor

from hf_learned_order.common.checks import check_ids, check_room
from hf_learned_order.decoding.canvas import Canvas, left_padded
from hf_learned_order.denoisers.attention import check_padding
from hf_learned_order.denoisers.caches import WindowedDenoiser


class Guidance:
    """The unconditional call and how it is combined with the conditional one.

    Args:
        scale: 0 or more.
        canvas: the batch. What it holds before decoding is the condition.
        denoiser: the model, with a cache of its own if there is one: the conditional call keeps other keys and values.
        negative_prompt_ids: int [batch, n], stands in the prompt's place in the unconditional call. By default the
            prompt itself does, each token of it replaced by the mask token, as in LLaDA.
        negative_prompt_attention_mask: [batch, n], 0 at padding, on either side.

    Raises:
        ValueError: there is nothing to guide away from, or the negative prompt does not fit.
    """

    def __init__(
        self,
        scale: float,
        canvas: Canvas,
        denoiser: WindowedDenoiser,
        negative_prompt_ids: Tensor | None,
        negative_prompt_attention_mask: Tensor | None,
    ):
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale >= 0:
            raise ValueError(f"guidance_scale must be a number, 0 or more, got {scale!r}")
        self.scale, self.denoiser, self.canvas = scale, denoiser, canvas
        self.negative = None
        self.known = canvas.attention_mask != 0
        self.known[:, canvas.start :] &= ~canvas.masked
        if negative_prompt_ids is not None:
            self.negative = self._checked(negative_prompt_ids, negative_prompt_attention_mask)
        elif not self.known.any(-1).all():
            raise ValueError("guidance_scale needs a prompt in each row, or negative_prompt_ids, but a row has none")

    @classmethod
    def of(
        cls, scale: float | None, canvas: Canvas, denoiser: WindowedDenoiser, ids: Tensor | None, mask: Tensor | None
    ) -> "Guidance | None":
        """Of the same arguments in this order, or None where `scale` is 1 or None.

        Raises:
            ValueError: a negative prompt would not be used, or its mask has no ids.
        """
        if mask is not None and ids is None:
            raise ValueError("negative_prompt_ids must be given with negative_prompt_attention_mask, got None")
        if scale is not None and scale != 1:
            return cls(scale, canvas, denoiser, ids, mask)
        if ids is not None:
            raise ValueError(f"guidance_scale must be given and not be 1 with negative_prompt_ids, got {scale!r}")
        return None

    def __call__(
        self,
        seen: Canvas,
        rows: Tensor,
        window: slice,
        group: int,
        at: tuple[Tensor, Tensor],
        conditional: Tensor,
    ) -> Tensor:
        """Guided logits [n, vocab] in float32, from the `conditional` ones, of the positions `at` of the window.

        `seen` is what the conditional call was about, `rows` the row of the batch of each of its rows.
        """
        if self.negative is None:
            ids = seen.ids.masked_fill(self.known[rows], seen.mask_token_id)
            mask, start = seen.attention_mask, seen.start
        else:
            prompt, prompt_mask = (part[rows] for part in self.negative)
            ids = torch.cat([prompt, seen.tokens], 1)
            mask = torch.cat([prompt_mask, seen.attention_mask[:, seen.start :]], 1)
            start = prompt.shape[1]
        columns = slice(start + window.start, start + window.stop)
        unconditional = self.denoiser(ids, mask, columns, rows=rows, group=group, at=at)[0].float()
        # in place: the logits of two calls are held already
        return conditional.float().sub_(unconditional).mul_(self.scale).add_(unconditional)

    def _checked(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        mask = check_ids("negative_prompt_ids", ids, mask, vocab_size=self.denoiser.denoiser.vocab_size)
        check_padding(self.denoiser.denoiser, mask)
        if len(ids) != len(self.canvas.ids):
            raise ValueError(f"negative_prompt_ids must have {len(self.canvas.ids)} rows, as input_ids, got {len(ids)}")
        limit, before = self.denoiser.denoiser.max_length, self.denoiser.denoiser.family.tokens_before
        check_room("negative prompt", mask, self.canvas.length, limit=limit, before=before)
        return left_padded(ids, mask)
