"""Where responses end: at the first EOS, or where a stopping criterion of transformers fires."""

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from hf_learned_order.decoding.canvas import Canvas, first


class Stopping:
    """Ends rows as soon as what is left of them cannot matter.

    Only the settled part of a row counts, that before its first masked position, for what lies behind may still
    change what comes first. A criterion is asked once for each token of it, in order, with the prompt and the response
    up to this token, as in decoding from left to right; the response ends with the token at which one fires.

    Args:
        canvas: the batch.
        eos_token_id: what ends a response, one or several; None for nothing.
        criteria: more that ends one.
        pad_token_id: what stands behind the end; by default the first of `eos_token_id`.

    Raises:
        ValueError: there are criteria, but nothing to put behind the end.
    """

    def __init__(
        self,
        canvas: Canvas,
        *,
        eos_token_id: int | list[int] | None,
        criteria: StoppingCriteriaList | None,
        pad_token_id: int | None,
    ):
        eos = [] if eos_token_id is None else eos_token_id
        self.eos = torch.tensor(eos, dtype=torch.long, device=canvas.ids.device).reshape(-1)
        self.criteria = criteria or None
        if self.criteria is not None and len(self.eos) == 0 and pad_token_id is None:
            raise ValueError("pad_token_id must be given with stopping_criteria and no eos_token_id, got None")
        self.pad_token_id = pad_token_id
        self.length = torch.full_like(canvas.steps, canvas.length)  # of each response, its last token included
        self._asked = torch.zeros_like(canvas.steps)

    def update(self, canvas: Canvas) -> None:
        """After a step: nothing of a row that has ended is left to unmask."""
        if len(self.eos) == 0 and self.criteria is None:
            return
        prefix = first(canvas.masked)
        if len(self.eos):
            end = first(torch.isin(canvas.tokens, self.eos))
            self.length = torch.where(end < prefix, torch.minimum(self.length, end + 1), self.length)
        if self.criteria is not None:
            self._ask(canvas, prefix)
        canvas.masked &= (self.length > prefix)[:, None]

    def response(self, canvas: Canvas) -> Tensor:
        """int [batch, canvas]: the tokens, padding behind the end of a response."""
        if len(self.eos) == 0 and self.criteria is None:
            return canvas.tokens
        position = torch.arange(canvas.length, device=canvas.ids.device)
        # one of the two is there when something may end a response
        pad = self.eos[0] if self.pad_token_id is None else self.pad_token_id
        return torch.where(position < self.length[:, None], canvas.tokens, pad)

    def _ask(self, canvas: Canvas, prefix: Tensor) -> None:
        self._asked = torch.minimum(self._asked, prefix)  # what was masked again is asked about again
        known = torch.minimum(prefix, self.length)
        pending = self._asked < known
        if not pending.any():
            return
        for count in range(int(self._asked[pending].min()) + 1, int(known.max()) + 1):
            rows = ((self._asked < count) & (count <= torch.minimum(known, self.length))).nonzero().squeeze(-1)
            if len(rows):
                # pyrefly: ignore[not-callable] (`update` has looked)
                fired = self.criteria(canvas.ids[rows, : canvas.start + count], None)
                self.length[rows[fired]] = count
        self._asked = torch.maximum(self._asked, known)
