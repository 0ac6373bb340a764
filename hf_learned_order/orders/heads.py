"""Heads of a scorer beside the scores themselves."""

import math

import torch
from torch import Tensor, nn

OCTAVES = 16  # counts are told apart to an eighth of an octave, up to 2^16


class CountHead(nn.Module):
    """Log-weights of unmasking 1, 2, ..., canvas positions, from the canvas as a whole; 0 at the start."""

    def __init__(self, size: int):
        super().__init__()
        self.canvas = nn.Linear(size, size)
        # waves in the logarithm of the count: close counts are worth nearly the same, and are learned together
        octave, pace, phase = torch.arange(8 * OCTAVES + 1)[:, None] / 8, 2 * torch.rand(size), torch.rand(size)
        waves = math.sqrt(2) * torch.cos(pace * octave + 2 * math.pi * phase)
        self.sizes = nn.Embedding.from_pretrained(waves, freeze=False)
        self.head = zeroed(nn.Linear(size, 1))

    def forward(self, encoded: Tensor, padding: Tensor | None = None) -> Tensor:
        """[batch, canvas, 1] from [batch, canvas, size]; `padding` bool [batch, canvas] is no part of the canvas."""
        count = torch.arange(1, encoded.shape[1] + 1, device=encoded.device)
        sizes = self.sizes((8 * count.log2()).round().long().clamp(max=8 * OCTAVES)).to(encoded.dtype)
        mean = encoded.mean(1, keepdim=True)
        if padding is not None:
            inside = ~padding[..., None]
            mean = (encoded * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True)
        return self.head(nn.functional.gelu(self.canvas(mean) + sizes))


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with zeros for weights, so that its output is 0 and its gradient is not."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
