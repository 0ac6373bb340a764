"""Tokens for a streamer of transformers while a canvas is decoded."""

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from hf_learned_order.canvas import Canvas, first
from hf_learned_order.stopping import Stopping


class Stream:
    """Hands a streamer the prompt, then the response from left to right, each token once and when it is final.

    `put` gets int [batch, n], the columns that have become final in every row; together they are the `sequences` of
    the output, without the padding that follows the end of the longest response. A streamer with `put_draft`
    (`TextDiffusionStreamer`) also gets the rest of the canvas after each step, masks included.
    """

    def __init__(self, streamer: BaseStreamer, input_ids: Tensor):
        self.streamer = streamer
        self.count = 0  # columns of the canvas that were put
        streamer.put(input_ids.cpu())

    def update(self, canvas: Canvas, stopping: Stopping, *, final: bool = True) -> None:
        """After a step. `final`: what is unmasked now stays, so that settled columns can be put."""
        settled = int(first(canvas.masked).min())
        end = int(stopping.length.max()) if settled == canvas.length else settled
        tokens = stopping.response(canvas).clone().cpu()  # the canvas goes on changing
        if final and end > self.count:
            self.streamer.put(tokens[:, self.count : end])
            self.count = end
        if hasattr(self.streamer, "put_draft") and settled < canvas.length:
            # pyrefly: ignore[not-callable]
            self.streamer.put_draft(tokens[:, self.count :])

    def end(self) -> None:
        self.streamer.end()
