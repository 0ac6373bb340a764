"""What large vocabularies and long canvases cost beside the denoiser, as ratios measured side by side in one run.

    OMP_NUM_THREADS=1 python examples/bench_long.py
    OMP_NUM_THREADS=1 python examples/bench_long.py --tables scorer --model 100M

Beliefs: `Predictions.from_logits` over the softmax and the log-softmax that it was made of before.

Scorer: what an untrained one with the regret law proposes, as a share of the denoiser's call in the same step, on a
canvas that is all masked. "One" and "all": how many positions the bound lets it look at in pairs; a step of a trained
scorer lies between.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from bench import CLOCK, MASK, MODELS, Timed, denoiser_of, sampler_of, watching
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hf_learned_order.decoding.loop import decode
from hf_learned_order.denoisers.predictions import Predictions, pieces

TABLES = ("beliefs", "scorer")
VOCABULARIES = [(1024, 32_000), (256, 126_464)]  # positions, tokens
BOUNDS = {"one": 1.0, "all": 4.0}  # at a confidence of nearly 0 two doubts cost 2, and three cost 3
ROUNDS = 5


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


def scorer_share(denoiser: Timed, rows: int, canvas: int, bound: float) -> float:
    """Of a decoding of two calls, prompt of one token: a proposal's time over a call's."""
    learned = sampler_of("learned_order", denoiser)
    learned.scorer.config.bound = bound  # pyrefly: ignore[missing-attribute]
    watched, denoiser.seconds = watching(learned), 0.0
    ids = torch.full((rows, 1), MASK + 1)
    output = decode(denoiser, ids, sampler=watched, max_new_tokens=canvas - 1, max_denoising_steps=2)
    calls = int(output.nfe.max())
    return (sum(watched.spent) / len(watched.spent)) / (denoiser.seconds / calls)


def scorer_table(model: str, sizes: Sequence[tuple[int, int]]) -> Table:
    denoiser = denoiser_of(*MODELS[model])
    scorer_share(denoiser, 1, 64, 1.0)  # a warm-up
    view = Table("rows x canvas", *BOUNDS, title=f"scorer, share of the calls of {model}")
    for rows, canvas in sizes:
        found = (scorer_share(denoiser, rows, canvas, bound) for bound in BOUNDS.values())
        view.add_row(f"{rows} x {canvas:,}", *(f"{share:.1%}" for share in found))
    return view


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--model", choices=list(MODELS), default="100M")
    parser.add_argument("--canvas", nargs="+", metavar="ROWSxPOSITIONS", default=["4x1024", "2x2048"])
    options = parser.parse_args(arguments)
    if "beliefs" in options.tables:
        Console().print(beliefs_table(VOCABULARIES))
    if "scorer" in options.tables:
        sizes = [(int(rows), int(canvas)) for rows, _, canvas in (size.partition("x") for size in options.canvas)]
        Console().print(scorer_table(options.model, sizes))


if __name__ == "__main__":
    main()
