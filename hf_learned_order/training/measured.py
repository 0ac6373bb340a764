"""`Measured`: what an objective measured in each batch, as means over rows."""

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor


class Measured:
    """Numbers by name, batch by batch, until their means are asked for. A row counts as a row, in whatever batch."""

    def __init__(self):
        self._batches: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)  # means, and of how many rows

    def add(self, name: str, mean: Tensor, rows: int) -> None:
        """What was measured in one batch of this process."""
        self._batches[name].append((mean.detach(), rows))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over the rows of all processes, which all have to ask; then it is empty."""
        means = {}
        for name, batches in self._batches.items():
            values, rows = zip(*batches, strict=True)
            weights = torch.tensor(rows, dtype=torch.float)
            sums = torch.stack([(torch.stack(values).float().cpu() * weights).sum(), weights.sum()])
            total, count = accelerator.reduce(sums.to(accelerator.device), "sum")
            means[name] = round((total / count).item(), 4)
        self._batches.clear()
        return means
