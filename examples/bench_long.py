"""What the statistics of a large vocabulary cost, over what they cost before, side by side.

    OMP_NUM_THREADS=1 python examples/bench_long.py

Beliefs: `Predictions.from_logits` over the softmax and the log-softmax that it was made of before.
"""

from collections.abc import Callable, Sequence

import torch
from bench import CLOCK, MASK
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hf_learned_order.denoisers.predictions import Predictions, pieces

VOCABULARIES = [(1024, 32_000), (256, 126_464)]  # positions, tokens
ROUNDS = 1


def best(*calls: Callable[[], object]) -> list[float]:
    """Seconds of each, the least of some rounds in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for times, call in zip(found, calls, strict=True):
            start = CLOCK()
            call()
            times.append(CLOCK() - start)
    return [min(times) for times in found]


def beliefs_before(logits: Tensor) -> list[tuple[Tensor, ...]]:
    found: list[tuple[Tensor, ...]] = []
    for piece in pieces(len(logits), logits):
        scores = logits[piece].to(torch.float, copy=True)
        scores[:, MASK] = -torch.inf
        log_probs = scores.log_softmax(-1)
        peak, token = log_probs.max(-1)
        second = log_probs.scatter(-1, token[:, None], -torch.inf).amax(-1)
        entropy = -(scores.softmax(-1) * log_probs.clamp(min=-200.0)).sum(-1)
        found.append((peak, second, entropy, token))
    return found


def beliefs_table(sizes: Sequence[tuple[int, int]]) -> Table:
    view = Table("positions x vocabulary", "over before", title="beliefs")
    for positions, vocabulary in sizes:
        logits = torch.randn(1, positions, vocabulary, generator=torch.Generator().manual_seed(0))
        calls = [lambda x=logits: beliefs_before(x[0]), lambda x=logits: Predictions.from_logits(x, MASK)]
        old, new = best(*calls)
        view.add_row(f"{positions} x {vocabulary:,}", f"{new / old:.2f}")
    return view


@torch.no_grad()
def main() -> None:
    Console().print(beliefs_table(VOCABULARIES))


if __name__ == "__main__":
    main()
