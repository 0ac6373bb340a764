"""What was measured, as a card shows it: rows, verdict, evaluation metadata."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult

from hf_learned_order.evaluation.results import Result, load_results
from hf_learned_order.sharing.markdown import code

if TYPE_CHECKING:
    from hf_learned_order.sharing.cards import Card

LEARNED = "learned_order"
DATASET = "openai/gsm8k"


def is_learned(row: Result) -> bool:
    """Whether a row is of the learned order, tuned in its step budget too or not."""
    return row.sampler.partition(",")[0] == LEARNED


def eval_result(row: Result, card: "Card") -> EvalResult:
    """A row as an entry of `model-index`."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=card.dataset or card.task,
        dataset_name=f"{card.dataset} ({card.task})" if card.dataset else card.task,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"right answers, %, {calls(row)}",
        metric_value=percent(row),
    )


def percent(row: Result) -> float:
    return round(100 * row.accuracy, 2)


def calls(row: Result) -> str:
    runs = f", mean of {row.runs} runs" if row.runs > 1 else ""
    return f"{row.sampler}, {row.nfe:.2f} denoiser calls on average ({row.nfe_min}-{row.nfe_max}){runs}"


def table_rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """The cells of the card's table, by target and falling accuracy."""
    best = {row.target: max(r.accuracy for r in results if r.target == row.target) for row in results}
    rows = []
    for row in sorted(results, key=lambda row: (row.target, -row.accuracy)):
        right = f"{100 * row.accuracy:.1f}" + (f" ± {100 * row.spread:.1f}" if row.runs > 1 else "")
        rows.append(
            {
                "target": f"{row.target:g}",
                "sampler": code(row.sampler),
                "setting": code(row.setting or f"T={row.budget}"),
                "nfe": f"{row.nfe:.2f} ({row.nfe_min}-{row.nfe_max})",
                "right": f"**{right}**" if row.accuracy == best[row.target] else right,
                "runs": str(row.runs),
                "bound": "" if row.bound is None else f"{row.bound:.2f}",
            }
        )
    return rows


def verdict(results: Sequence[Result]) -> str:
    """At which target NFE the learned order is ahead of every other rule, level or behind, in a sentence each."""
    places: dict[str, list[str]] = {"ahead of": [], "level with": [], "behind": []}
    for target in sorted({row.target for row in results}):
        rows = [row for row in results if row.target == target]
        own = [row.accuracy for row in rows if is_learned(row)]
        others = [row for row in rows if not is_learned(row)]
        if own and others:
            best = max(others, key=lambda row: row.accuracy)
            difference = max(own) - best.accuracy
            place = "ahead of" if difference > 0 else "behind" if difference < 0 else "level with"
            places[place].append(f"{target:g} ({code(best.sampler)})")
    return " ".join(
        f"The learned order is {place} the best heuristic at a target NFE of {', '.join(targets)}."
        for place, targets in places.items()
        if targets
    )


def read_results(path: str | os.PathLike, task: str = "") -> list[Result]:
    """The rows of a `results.json`, with a `task` those of it and those that name none.

    Raises:
        ValueError: there is no such row, or the file is another one, a `results.csv` too.
    """
    if Path(path).suffix == ".csv":
        raise ValueError(f"results must be a results.json, which holds every score, got {path}")
    rows = load_results(Path(path))
    if not rows:
        raise ValueError(f"{path}: must hold at least one result")
    tasks = [row.task or task for row in rows]
    if task and task not in tasks:
        raise ValueError(f"task must be among those of {path} ({', '.join(sorted(set(tasks)))}), got {task!r}")
    return [row for row in rows if not task or (row.task or task) == task]
