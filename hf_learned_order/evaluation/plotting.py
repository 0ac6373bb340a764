"""Pictures: the trade-off curve and the order map. Needs the extra `plot` (matplotlib)."""

from collections.abc import Sequence
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import ListedColormap

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.scheduled import EntropySampler
from hf_learned_order.evaluation.comparison import knob
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.order_maps import OrderMap, ink, palette, steps_of, visible
from hf_learned_order.evaluation.results import Result
from hf_learned_order.orders.scorer import OrderScorer


def trade_off(results: Sequence[Result], path: str | Path, *, title: str = "") -> None:
    """Accuracy against mean NFE, a panel a task and one line a sampler, written to `path` as PNG."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for result in results:
        line = panels.setdefault(result.task, {}).setdefault(result.sampler, [])
        line.append((result.nfe, 100 * result.accuracy))
    figure, grid = pyplot.subplots(
        ncols=len(panels), figsize=(7 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for axes, (task, lines) in zip(grid[0], panels.items(), strict=True):
        for name, points in lines.items():
            learned = name.startswith("learned")
            style: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if learned else {"linewidth": 1.2, "alpha": 0.8}
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("denoiser calls a sequence (mean NFE)")
        axes.set_ylabel("right answers, %")
        axes.set_title(title or task)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def order_map(maps: Sequence[OrderMap], path: str | Path, *, title: str = "") -> None:
    """At which step each token was unmasked: one line of coloured cells a map, written to `path` as PNG.

    Tokens that were no mask have no colour.

    Raises:
        ValueError: there is no map.
    """
    steps = steps_of(maps)
    columns = zip_longest(*(one.tokens for one in maps), fillvalue="")
    widths = [max(1.0, *(0.4 * len(visible(text)) + 0.4 for text in column)) for column in columns]
    starts = [0.0, *accumulate(widths)]
    figure, axes = pyplot.subplots(figsize=(0.24 * starts[-1] + 2.2, 0.42 * len(maps) + 1.1), layout="constrained")
    colours = ListedColormap(palette(steps))
    for row, one in enumerate(maps):
        for start, width, step, text in zip(starts, widths, one.order, one.tokens, strict=False):  # the longest's
            face = colours(step - 1) if step else "none"
            axes.add_patch(pyplot.Rectangle((start, row), width, 1, facecolor=face, edgecolor="white"))
            axes.text(
                start + width / 2,
                row + 0.5,
                visible(text),
                ha="center",
                va="center",
                fontsize=8,
                color=ink(step, steps),
                family="monospace",
                parse_math=False,
            )
    axes.set(xlim=(0, starts[-1]), ylim=(len(maps), 0), xticks=[], title=title)
    labels = [f"{one.label}, {one.nfe} calls" for one in maps]
    axes.set_yticks([i + 0.5 for i in range(len(maps))], labels, fontsize=8)
    scale = pyplot.cm.ScalarMappable(pyplot.Normalize(0.5, steps + 0.5), colours)
    figure.colorbar(scale, ax=axes, label="step", ticks=range(1, steps + 1, max(1, steps // 8)))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def order_map_of(
    evaluator: Evaluator, scorers: Sequence[OrderScorer], path: str | Path, *, greedy: bool = False, count: int = 3
) -> None:
    """The order map of `count` problems of a data set, by entropy at 4 steps and by the first scorer at like NFE.

    As in `comparison.compare`, with `greedy` it takes the likeliest positions, and it keeps to the budget that it was
    trained for.
    """
    middle, end = len(evaluator.dataset) // 2, len(evaluator.dataset)
    dataset = evaluator.dataset.select(range(middle, min(middle + count, end)))
    few = Evaluator(
        evaluator.denoiser,
        evaluator.tokenizer,
        dataset,  # pyrefly: ignore[bad-argument-type] (a Dataset's selection is a Dataset)
        canvas_length=evaluator.canvas_length,
    )
    rules: list[tuple[str, Sampler, int | None]] = [("entropy", EntropySampler(), 4)]
    make = knob("learned_order", scorers[0], greedy=greedy) if scorers else None
    if make is not None:
        budget = scorers[0].config.max_denoising_steps
        rules.append(("learned", make(few.tune_knob(make, 4.0, max_denoising_steps=budget)), budget))
    maps = []
    for label, sampler, budget in rules:
        for output, _ in few.outputs(sampler, max_denoising_steps=budget):
            maps += OrderMap.of(output, evaluator.tokenizer, label=label)
    order_map(maps, path, title="Step at which each token was unmasked")
