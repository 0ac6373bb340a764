r"""Whole trade-off curves of a task: every rule at settings of its own, and nothing is tuned.

    python examples/bench_curves.py --model runs/sudoku-denoiser --scorer runs/scorer-0 runs/scorer-1 --task sudoku

Each point is one rule at one setting on the test problems: the share that is right, and the mean NFE. What the table
shows at an NFE lies on the line between the points on either side. Points are added to a file; the same command goes on
with those that are missing, and several commands may share the file. What has to be chosen is
chosen with `--split validation`. A scorer whose law draws has the step budget as its setting.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from curves import between_points
from rich.console import Console
from rich.table import Table

from hf_learned_order.decoding.samplers.adaptive import (
    EntropyBoundSampler,
    FactorSampler,
    FrechetSampler,
    KLASSSampler,
    LocalLeapSampler,
    ThresholdSampler,
)
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.dapd import DAPDSampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.remasking import WINOSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.plotting import trade_off
from hf_learned_order.evaluation.problems import evaluator_of
from hf_learned_order.evaluation.results import Result
from hf_learned_order.orders.scorer import OrderScorer

BOUNDS = (30.0, 12.0, 6.0, 4.0, 3.0, 2.0, 1.4, 1.0, 0.7, 0.4, 0.3, 0.2, 0.13, 0.08, 0.05, 0.025, 0.005)
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
BOUNDED: dict[str, Callable[[float], Sampler]] = {
    "entropy_bound": lambda bound: EntropyBoundSampler(gamma=bound),
    "factor": lambda bound: FactorSampler(factor=bound),
    "frechet": lambda bound: FrechetSampler(margin=1 - bound),
}
SURE: dict[str, Callable[[float], Sampler]] = {
    "threshold": lambda confidence: ThresholdSampler(threshold=confidence),
    "local_leap": lambda confidence: LocalLeapSampler(threshold=confidence, relaxed=max(0.0, 2.5 * confidence - 1.5)),
    "dapd": lambda confidence: DAPDSampler(threshold=10 ** (-4 * confidence), confidence=confidence),
    "klass": lambda confidence: KLASSSampler(threshold=confidence),
    "wino": lambda confidence: WINOSampler(draft=confidence),
}
COUNTED = ("top_prob", "margin", "entropy", "iid", "random_sizes", "remdm")
BUDGETS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 30)


def points(
    name: str,
    scorers: list[str],
    bounds: Sequence[float],
    budgets: Sequence[int] = BUDGETS,
    *,
    greedy: bool = False,
) -> Iterator[tuple[str, Sampler, int | None]]:
    """A label, the rule and its step budget, for each setting of a rule."""
    if name == "learned_order":
        for path in scorers:
            yield from points_of_scorer(path, bounds, budgets, greedy=greedy)
    elif name in COUNTED:
        for budget in budgets:
            yield f"{name} T={budget}", make_sampler(name), budget
    else:
        made = map(BOUNDED[name], bounds) if name in BOUNDED else map(SURE[name], CONFIDENCES)
        for sampler in made:
            yield repr(sampler), sampler, None


def points_of_scorer(
    path: str, bounds: Sequence[float], budgets: Sequence[int], *, greedy: bool
) -> Iterator[tuple[str, Sampler, int | None]]:
    """The bound of the regret law, the step budget of one that draws."""
    scorer = OrderScorer.from_pretrained(path).eval()
    if scorer.is_random:
        label = f"{path},greedy" if greedy else path
        for budget in budgets:
            if budget <= (scorer.config.max_denoising_steps or budget):
                yield f"{label} T={budget}", LearnedOrderSampler(scorer=scorer, greedy=greedy), budget
        return
    for bound in bounds:
        bias = float(np.log(bound / scorer.config.bound))
        yield f"{path} {bound}", LearnedOrderSampler(scorer=scorer, bias=bias), None


def table(rows: list[dict], nfes: list[float], column: str, title: str) -> Table:
    """A column of the rows over NFE; of scorers the mean, and behind it the standard deviation."""
    curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[column] is not None:
            curves[row["sampler"]][row["curve"]].append((row["nfe"], row[column]))
    out = Table("rule", *(f"{nfe:g}" for nfe in nfes), title=title)
    for name, of_one in curves.items():
        values = np.array([between_points(curve, nfes) for curve in of_one.values()])
        cells = [
            "-" if np.isnan(v).any() else f"{v.mean():.3f}" + (f" ±{v.std(ddof=1):.3f}" if len(v) > 1 else "")
            for v in values.T
        ]
        out.add_row(name, *cells)
    return out


def drawn(row: dict, count: int) -> Result:
    """A point of the figure; each scorer has a line of its own."""
    name = " ".join(filter(None, (row["sampler"], Path(row["curve"]).name)))
    unseen: dict[str, Any] = {"budget": 0, "nfe_min": 0, "nfe_max": 0, "bound": None}
    return Result(sampler=name, accuracy=row["right"], nfe=row["nfe"], count=count, **unseen)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the denoiser")
    parser.add_argument("--scorer", nargs="*", default=[], help="one or more that differ in seed")
    parser.add_argument("--task", default="sudoku")
    parser.add_argument("--dataset_name", help="GSM8K on the Hub, for its tasks")
    parser.add_argument("--train_file", help="GSM8K's train.jsonl, instead of dataset_name")
    parser.add_argument("--test_file", help="GSM8K's test.jsonl")
    parser.add_argument("--without_prompts", help="a file of prompts, one a line, that are left out")
    parser.add_argument("--samplers", nargs="+", default=["learned_order", *BOUNDED, *SURE, *COUNTED])
    parser.add_argument(
        "--bounds", nargs="+", type=float, default=BOUNDS, help="of the rules and scorers that have one"
    )
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=BUDGETS, help="of the rules and scorers that have none: step budgets"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--greedy", action="store_true", help="of scorers whose law draws, the likeliest positions")
    parser.add_argument("--max_denoising_steps", type=int, help="step budget of rules with a knob, None: as they need")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--limit", type=int, default=400, help="problems")
    parser.add_argument("--nfe", nargs="+", type=float, default=[3, 4, 5, 6, 7, 8.5, 10, 12, 16, 30])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bound", action="store_true", help="measure the bound, which costs as much again")
    parser.add_argument("--output", default="runs/curves.jsonl", help="where points are added")
    parser.add_argument("--figure", help="where to draw the share that is right over the NFE, a PNG")
    return parser.parse_args()


def loaded(options: argparse.Namespace) -> tuple[Evaluator, str]:
    """The model on its problems, and what their split is called."""
    tokenizer = load_tokenizer(options.model)
    how: dict[str, Any] = {"attn_implementation": "eager"} if "dapd" in options.samplers else {}
    model = load_denoiser(options.model, dtype=options.dtype, **how).eval()
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
    evaluator = evaluator_of(
        options.task,
        denoiser,
        tokenizer,
        split=options.split,
        count=options.limit,
        where={name: getattr(options, name) for name in ("dataset_name", "train_file", "test_file")},
        without=options.without_prompts,
        temperature=options.temperature,
    )
    return evaluator, f"{options.split} without {options.without_prompts}" if options.without_prompts else options.split


def measure(options: argparse.Namespace, evaluator: Evaluator, split: str, path: Path) -> None:
    """Adds the points that are missing to the file."""
    there = {row["label"] for row in map(json.loads, path.read_text().splitlines())}
    for name in options.samplers:
        settings = points(name, options.scorer, options.bounds, options.budgets, greedy=options.greedy)
        for setting, sampler, budget in settings:
            if budget is None and options.max_denoising_steps is not None:
                budget = options.max_denoising_steps
                setting = f"{setting} T={budget}"
            label = f"{options.task} {split} {options.temperature} {setting}"
            if label in there:
                continue
            result = evaluator.measure(sampler, name=name, max_denoising_steps=budget, with_bound=options.bound)
            curve = setting.split()[0] if name == "learned_order" else ""
            row = {"label": label, "sampler": name, "curve": curve, "temperature": options.temperature}
            row |= {"nfe": result.nfe, "right": result.accuracy, "bound": result.bound, "task": options.task}
            row["split"] = split
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    options = arguments()
    evaluator, split = loaded(options)
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    measure(options, evaluator, split, path)
    rows = list(map(json.loads, path.read_text().splitlines()))
    rows = [row for row in rows if (row["task"], row["split"]) == (options.task, split)]
    count = len(evaluator.dataset)
    for temperature in sorted({row["temperature"] for row in rows}):
        mine = [row for row in rows if row["temperature"] == temperature]
        title = f"{options.task}, {count} {split} problems, temperature {temperature:g}"
        Console(width=150).print(table(mine, options.nfe, "right", f"{title}: right"))
        if any(row["bound"] is not None for row in mine):
            Console(width=150).print(table(mine, options.nfe, "bound", f"{title}: bound, nats"))
        if options.figure and temperature == options.temperature:
            trade_off([drawn(row, count) for row in mine], options.figure, title=title)


if __name__ == "__main__":
    main()
