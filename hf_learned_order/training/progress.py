"""What is seen of a training while it runs: means of what an objective measured, and the progress bar."""

import statistics
from collections import defaultdict, deque

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_callback import ProgressCallback

WINDOW = 10  # logs that a trend is seen in


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


class OrderProgress(ProgressCallback):
    """transformers' bar, with the last `bound` (of an objective without one, `loss`) and `nfe`, and their trends."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
        if state.is_world_process_zero and self.training_bar is None and logs and state.global_step:
            # behind the training there is no bar to write above
            print({name: round(value, 4) if isinstance(value, float) else value for name, value in logs.items()})
        if state.is_world_process_zero and self.training_bar is not None and logs is not None and "loss" in logs:
            self.training_bar.set_postfix_str(self.text(logs))

    def text(self, logs: dict[str, float]) -> str:
        """What stands behind the bar after these logs."""
        parts = []
        for name in ("bound" if "bound" in logs else "loss", "nfe"):
            if name in logs:
                self.seen[name].append(logs[name])
                parts.append(f"{name} {logs[name]:.4g} {trend(self.seen[name])}")
        return ", ".join(parts)


def trend(values: deque[float]) -> str:
    """An arrow: whether the later half of the values is above or below the earlier one by more than they scatter."""
    half = len(values) // 2
    if half < 2:
        return "→"
    early, late = list(values)[:half], list(values)[-half:]
    change = statistics.mean(late) - statistics.mean(early)
    noise = ((statistics.variance(early) + statistics.variance(late)) / half) ** 0.5
    return "→" if abs(change) <= 2 * noise else "↑" if change > 0 else "↓"
