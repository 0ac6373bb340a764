"""Which responses of a decoded batch are right."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_learned_order.decoding.canvas import through_first
from hf_learned_order.tasks.answers import judged


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Right is the published response, token for token, or what `is_right` says.

    Attributes:
        eos_token_id: a response ends with its first EOS; None: with its canvas.
        is_right: from responses int [n, canvas] (EOS behind the first one) and their answers int [n, width], rows of
            the `answer` of a batch, to bool [n]; `answers.judged` is one. None: only the published response is right.
    """

    eos_token_id: int | None
    is_right: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def of_text(cls, tokenizer: PreTrainedTokenizerBase, is_right: Callable[[str, str], bool] | None) -> "Judge":
        """One that asks `is_right`, a task's, about the text of a response and its row's answer."""
        judge = None if is_right is None else partial(judged, tokenizer=tokenizer, is_right=is_right)
        return cls(eos_token_id=tokenizer.eos_token_id, is_right=judge)

    def response(self, tokens: Tensor) -> Tensor:
        """bool, shape of `tokens` [..., canvas]: up to the first EOS, it included; the rest is no part of it."""
        if self.eos_token_id is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return through_first(tokens == self.eos_token_id)

    def right(self, tokens: Tensor, clean: Tensor, answer: Tensor | None) -> Tensor:
        """bool [n]: which of the responses [n, canvas] are right, whatever stands behind their ends.

        Raises:
            ValueError: there is an `is_right` and no `answer`.
        """
        if self.is_right is None:
            return ((tokens == clean) | ~self.response(clean)).all(-1)
        if answer is None:
            raise ValueError(
                "answer must be given where responses are judged (collator.CanvasCollator(with_answers=True))"
            )
        if self.eos_token_id is not None:
            tokens = tokens.masked_fill(~self.response(tokens), self.eos_token_id)
        return self.is_right(tokens, answer)
