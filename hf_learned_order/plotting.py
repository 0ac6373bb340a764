"""Pictures: the trade-off curve and the order map. Needs the extra `plot` (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from torch import Tensor

from hf_learned_order.evaluation import Evaluator, knob
from hf_learned_order.results import Result
from hf_learned_order.samplers import EntropySampler, Sampler
from hf_learned_order.scorer import OrderScorer


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


def order_map(
    orders: Sequence[Tensor],
    tokens: Sequence[Sequence[str]],
    labels: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """At which step each token was unmasked: one line of coloured cells a sequence, written to `path` as PNG.

    Args:
        orders: int [canvas] each; 0 where a position was not needed (not drawn).
        tokens: the text of each position.
        labels: what stands before each line.
    """
    width = max(int((order > 0).nonzero().max()) + 1 for order in orders)
    steps = max(int(order.max()) for order in orders)
    figure, axes = pyplot.subplots(figsize=(0.24 * width + 2.2, 0.42 * len(orders) + 1.1), layout="constrained")
    colours = pyplot.get_cmap("viridis_r", steps)
    for row, (order, texts) in enumerate(zip(orders, tokens, strict=True)):
        for column, (step, text) in enumerate(zip(order.tolist(), texts, strict=True)):
            if step == 0:
                continue
            axes.add_patch(pyplot.Rectangle((column, row), 1, 1, facecolor=colours(step - 1), edgecolor="white"))
            ink = "white" if step > steps / 2 else "black"
            axes.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink, family="monospace"
            )
    axes.set(xlim=(0, width), ylim=(len(orders), 0), xticks=[], title=title)
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels, fontsize=8)
    scale = pyplot.cm.ScalarMappable(pyplot.Normalize(0.5, steps + 0.5), colours)
    figure.colorbar(scale, ax=axes, label="step", ticks=range(1, steps + 1, max(1, steps // 8)))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def order_map_of(evaluator: Evaluator, scorers: Sequence[OrderScorer], path: str | Path, *, count: int = 3) -> None:
    """The order map of `count` problems of a data set, by entropy at 4 steps and by the first scorer at like NFE."""
    tokenizer = evaluator.tokenizer
    middle, end = len(evaluator.dataset) // 2, len(evaluator.dataset)
    dataset = evaluator.dataset.select(range(middle, min(middle + count, end)))
    # pyrefly: ignore[bad-argument-type] (a Dataset's selection is a Dataset)
    few = Evaluator(evaluator.denoiser, tokenizer, dataset, canvas_length=evaluator.canvas_length)
    rules: list[tuple[str, Sampler, int | None]] = [("entropy", EntropySampler(), 4)]
    make = knob("learned_order", scorers[0]) if scorers else None
    if make is not None:
        rules.append(("learned", make(few.tune_knob(make, 4.0)), None))
    orders, tokens, labels = [], [], []
    for name, sampler, budget in rules:
        for output, _ in few.outputs(sampler, max_denoising_steps=budget):
            canvases = output.sequences[:, -evaluator.canvas_length :]
            for order, canvas, nfe in zip(few.order_of(output), canvases, output.nfe.tolist(), strict=True):
                texts = tokenizer.batch_decode(canvas[:, None])
                orders.append(order)
                tokens.append(["" if text == tokenizer.eos_token else text for text in texts])
                labels.append(f"{name}, {nfe} calls")
    order_map(orders, tokens, labels, path, title="Step at which each token was unmasked")
