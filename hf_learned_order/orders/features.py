"""What a scorer sees of each position of a canvas, beside the denoiser's hidden states.

Symbols: `c` confidence, `m` margin, `H` entropy, `n = |M|`, `L` canvas length, without padding.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_learned_order.denoisers.predictions import Step

# feature -> its columns: c; m; H, log H; n / L; n / L / steps left, log steps left; place in the canvas, its logarithm
FEATURES = {"confidence": 1, "margin": 1, "entropy": 2, "mask_fraction": 1, "budget": 2, "position": 2}


def width_of(names: Iterable[str]) -> int:
    """Columns of `features_of`: those of the features, and one for whether a position is masked."""
    return 1 + sum(FEATURES[name] for name in names)


def features_of(step: Step, names: Iterable[str]) -> Tensor:
    """What predictions, canvas and budget say at each position, [batch, canvas, columns], all of order 1."""
    predictions, masked = step.predictions, step.masked.float()
    inside = torch.ones_like(masked) if step.padding is None else (~step.padding).float()
    length = inside.sum(-1, keepdim=True)
    share = masked.sum(-1, keepdim=True) / length
    left = torch.ones_like(share) * step.steps_left  # a number, or a tensor of one while a scorer is exported
    place = inside.cumsum(-1) - 1
    known = {
        "confidence": [predictions.confidence],
        "margin": [predictions.margin],
        "entropy": [predictions.entropy, (predictions.entropy + 1e-4).log() / 4],
        "masked": [masked],
        "mask_fraction": [share],
        "budget": [share / left, left.log()],
        "position": [place / length, place.clamp(min=0.0).log1p() / 4],
    }
    chosen = {"masked", *names}
    columns = [column.expand_as(masked) for name, columns in known.items() if name in chosen for column in columns]
    return torch.stack(columns, -1)
