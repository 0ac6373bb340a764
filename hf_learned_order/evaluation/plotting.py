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

LEARNED, NAMED = "#0072b2", ("#d55e00", "#009e73", "#cc79a7")  # can be told apart without full colour vision
OTHERS = "#999999"  # legible on white and on black


def trade_off(results: Sequence[Result], path: str | Path, *, title: str = "", dark: bool = False) -> None:
    """Accuracy against mean NFE, a panel per task and one line per sampler, written to `path` as PNG.

    The learned order and the three rules that come nearest to it are in colour, named at their ends, with 95 %
    intervals over problems; the other rules are grey.
    """
    panels: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        panels.setdefault(result.task, {}).setdefault(result.sampler, []).append(result)
    with pyplot.style.context("dark_background" if dark else "default"):
        figure, grid = pyplot.subplots(
            ncols=len(panels), figsize=(7 * len(panels), 4.5), layout="constrained", squeeze=False
        )
        for axes, (task, lines) in zip(grid[0], panels.items(), strict=True):
            _panel(axes, lines)
            axes.set_title(title or task)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def _panel(axes: Any, lines: dict[str, list[Result]]) -> None:
    """The lines of one task."""
    rules = [name for name in lines if not name.startswith("learned")]
    best = sorted(rules, key=lambda name: _height(lines[name], lines), reverse=True)[: len(NAMED)]
    colours = dict(zip(best, NAMED, strict=False))
    ends = []
    for name, line in lines.items():
        line = sorted(line, key=lambda row: row.nfe)
        calls, right = [row.nfe for row in line], [100 * row.accuracy for row in line]
        learned = name.startswith("learned")
        colour = LEARNED if learned else colours.get(name, OTHERS)
        named = learned or name in colours
        axes.plot(
            calls,
            right,
            label=name,
            color=colour,
            marker="o",
            markersize=4 if named else 2.5,
            linewidth=2.8 if learned else 1.6 if named else 0.9,
            linestyle="--" if learned and name != "learned_order" else "-",
            zorder=3 if learned else 2 if named else 1,
        )
        if named:
            half = [196 * (row.accuracy * (1 - row.accuracy) / max(row.count, 1)) ** 0.5 for row in line]
            low, high = ([y + sign * h for y, h in zip(right, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(calls, low, high, color=colour, alpha=0.12, linewidth=0)
            ends.append((right[-1], calls[-1], name, colour))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("denoiser calls per sequence (mean, logarithmic)")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _name_ends(axes, ends, others=len(colours) < len(rules))


def _height(line: Sequence[Result], lines: dict[str, list[Result]]) -> float:
    """The mean over all targets of what a rule gets right at that target or, where it has none, at the next below."""
    targets = sorted({row.target for rows in lines.values() for row in rows})
    return sum(max((row.accuracy for row in line if row.target <= target), default=0.0) for target in targets)


def _name_ends(axes: Any, ends: list[tuple[float, float, str, str]], *, others: bool) -> None:
    """Each name beside the last point of its line: at the right edge kept clear of the name below it."""
    low, high = axes.get_ylim()
    last, place = max((calls for _, calls, _, _ in ends), default=1.0), -float("inf")
    for height, calls, name, colour in sorted(ends):
        weight = "bold" if name.startswith("learned") else "normal"
        style: dict[str, Any] = {"color": colour, "fontsize": 9, "fontweight": weight, "textcoords": "offset points"}
        if calls < 0.8 * last:
            above = name.startswith("learned")
            where = {"xytext": (-6, 6), "ha": "right"} if above else {"xytext": (6, -10), "ha": "left"}
            axes.annotate(name, (calls, height), **where, **style)
            continue
        place = max(height, place + 0.055 * (high - low))
        spot = (axes.get_xlim()[1], place)
        axes.annotate(name, spot, xytext=(4, 0), va="center", annotation_clip=False, **style)
    if others:
        axes.text(1.02, 0.02, "other rules", color=OTHERS, fontsize=9, transform=axes.transAxes)


def order_map(maps: Sequence[OrderMap], path: str | Path, *, title: str = "") -> None:
    """At which step each token was unmasked: one line of coloured cells a map, written to `path` as PNG.

    Tokens that were no mask have no colour; a red line is under those that are known to be wrong.

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
        cells = zip(starts, widths, one.order, one.tokens, strict=False)  # the widths are the longest's
        for place, (start, width, step, text) in enumerate(cells):
            face = colours(step - 1) if step else "none"
            axes.add_patch(pyplot.Rectangle((start, row), width, 1, facecolor=face, edgecolor="white"))
            if one.wrong and one.wrong[place]:
                axes.plot([start + 0.1, start + width - 0.1], [row + 0.92] * 2, color="red", linewidth=2)
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
