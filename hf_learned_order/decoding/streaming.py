"""Tokens for a streamer of transformers while a canvas is decoded."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import Tensor
from torch.nn.functional import pad
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.decoding.canvas import Canvas, first, given_layout
from hf_learned_order.decoding.stopping import Stopping


class Stream:
    """Hands a streamer the prompt, then the response from left to right, each token once and when it is final.

    `put` gets int [batch, n], the columns that have become final in every row; together they are the `sequences` of
    the output, without the padding that follows the end of the longest response. A streamer with `put_draft`
    (`TextDiffusionStreamer`) also gets the rest of the canvas after each step, masks included.

    Where masks within the prompts are filled, "prompt" is what stands before the first of them in any row, and
    "response" is all that follows.

    Args:
        streamer: transformers' streamer.
        input_ids: [batch, prompt], as they were given.
        canvas: before decoding.
        infill: the attention mask that came with them, [batch, prompt], where masks within the prompts are filled.
    """

    def __init__(self, streamer: BaseStreamer, input_ids: Tensor, canvas: Canvas, infill: Tensor | None = None):
        self.streamer, self.infill = streamer, infill
        self.count = 0  # columns of the response that were put, with `infill` of the sequences
        if infill is not None:
            self.count = int(first(_given(canvas.masked, infill, before=canvas.start)).min())
            input_ids = input_ids[:, : self.count]
        streamer.put(input_ids.cpu())

    def update(self, canvas: Canvas, stopping: Stopping, *, final: bool = True) -> None:
        """After a step. `final`: what is unmasked now stays, so that settled columns can be put."""
        if self.infill is None:
            masked, tokens, longest = canvas.masked, stopping.response(canvas), int(stopping.length.max())
        else:
            masked = _given(canvas.masked, self.infill, before=canvas.start)
            tokens = _given(canvas.ids, self.infill)
            longest = tokens.shape[1]
        settled = int(first(masked).min())
        end = longest if settled == masked.shape[1] else settled
        tokens = tokens.clone().cpu()  # the canvas goes on changing
        if final and end > self.count:
            self.streamer.put(tokens[:, self.count : end])
            self.count = end
        if hasattr(self.streamer, "put_draft") and settled < masked.shape[1]:
            # pyrefly: ignore[not-callable]
            self.streamer.put_draft(tokens[:, self.count :])

    def end(self) -> None:
        self.streamer.end()


@contextmanager
def ended_on_error(streamer: BaseStreamer | None) -> Iterator[None]:
    """Ends the stream where an error leaves the block: who reads it in another thread would wait for ever."""
    try:
        yield
    except BaseException:
        if streamer is not None:
            with suppress(Exception):  # the first error is the one to tell
                streamer.end()
        raise


def _given(columns: Tensor, attention_mask: Tensor, *, before: int = 0) -> Tensor:
    """Columns of left-padded rows, `before` of them left out, in the layout that `attention_mask` has."""
    return given_layout(pad(columns, (before, 0)), attention_mask)
