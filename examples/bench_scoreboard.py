r"""The scoreboard: each task at each number of calls, the learned order against the best rule of any kind there.

    python examples/bench_scoreboard.py --tasks sudoku --output_dir runs/scoreboard
    python examples/bench_scoreboard.py --limit 0 --data docs/results/data/scoreboard.json \
        --page docs/results/scoreboard.md

Settings are chosen on held-out problems: every rule and every scorer decodes them at settings of its knob, without and
with a step budget that ends long responses, or with step budgets only where it has no knob. Those with more right than
every faster one (`curves.frontier`) then decode the test problems. Between two of them a rule is the mixture of both
(`curves.mixed`), so that all are compared at the same NFE. The learned order is the mean of its scorers; what it is
compared with is the best rule *on the test problems*, which favours the rules. A cell is ahead or behind where the 95 %
interval of the paired bootstrap over problems is on one side of 0, else level.

The points of a rule are on disk as soon as all are measured: the same command goes on, several may run at once, and
`--tasks` and `--rules` measure in pieces. `--limit 0` measures nothing and writes data and page; lines without points
keep the cells that the data have. A line that leaves prompts out is made from the points of the line with all of them.
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import frontier, mixed, spread_settings
from huggingface_hub.utils import WeakFileLock
from pages import markdown, replace_part, write_rows

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import SAMPLERS, make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.comparison import BUDGET_SHARES, knob
from hf_learned_order.evaluation.evaluator import Evaluator, fingerprint
from hf_learned_order.evaluation.problems import evaluator_of
from hf_learned_order.evaluation.results import paired_interval
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.held_out import prompts_of, read_prompts

LEARNED = "learned_order"
RULES = [name for name in SAMPLERS if name != LEARNED]
NEAR = 1.6  # a step budget further than this from the calls of a setting ends nothing, or everything


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the board.

    Attributes:
        task: of `tasks.TASKS`.
        model: the denoiser, a folder; where there is none the line is not measured.
        scorers: folders, one a seed.
        nfe: numbers of calls.
        temperature: of the tokens.
        of: the line whose points it is made from, without the prompts of the file `without`.
    """

    task: str
    model: str
    scorers: tuple[str, ...] = ()
    nfe: tuple[float, ...]
    temperature: float = 0.0
    of: str | None = None
    without: str | None = None


EQUATIONS = Line(
    task="equations",
    model="examples/denoiser",
    scorers=tuple(f"examples/scorer-{seed}" for seed in range(3)),
    nfe=(2, 3, 4, 6, 8, 10, 12, 16),
)
SUDOKU = Line(
    task="sudoku", model="examples/sudoku-denoiser", scorers=("examples/sudoku-scorer",), nfe=(4, 5, 6, 7, 8.5, 10)
)
NINE = Line(task="sudoku_9x9", model="runs/sudoku9", nfe=(4, 5, 6, 7, 8.5, 10, 13))
COUNTDOWN = Line(task="countdown", model="runs/countdown-denoiser", nfe=(2, 3, 4, 5, 6, 8))
LISTS = {
    **dict.fromkeys(("copy", "replace", "reverse"), (1,)),  # nothing is lost at once
    "replace_random": (2, 3, 4, 5, 6, 7, 8),
    "shuffle": (4, 5, 6, 7, 8),
    "sort": (1.5, 2, 3, 4),
}
LINES: dict[str, Line] = {
    "equations": EQUATIONS,
    "equations, prompts never seen": replace(EQUATIONS, of="equations", without="examples/denoiser/seen_prompts.txt"),
    "sudoku": SUDOKU,
    "sudoku_12": replace(SUDOKU, task="sudoku_12", nfe=(2.5, 3, 3.5, 4)),
    "sudoku_unique": replace(SUDOKU, task="sudoku_unique", nfe=(2, 2.1, 2.2, 2.3, 2.4)),
    "sudoku_9x9": NINE,
    "sudoku_9x9_unique": replace(NINE, task="sudoku_9x9_unique", nfe=(2, 2.5, 3, 4, 5)),
    "countdown": COUNTDOWN,
    **{name: Line(task=name, model="runs/lists", nfe=nfe) for name, nfe in LISTS.items()},
}
MANY_ANSWERS = ("sudoku", "sudoku_12", "sudoku_9x9", "countdown", "replace_random", "shuffle")
LINES |= {f"{name}, temperature 1": replace(LINES[name], temperature=1.0) for name in MANY_ANSWERS}


def evaluators_of(line: Line, options: argparse.Namespace) -> tuple[Evaluator, Evaluator]:
    """Of the held-out problems, on which settings are chosen, and of the test problems."""
    eager: dict[str, Any] = {"attn_implementation": "eager"} if needs_maps(options.rules) else {}
    tokenizer = load_tokenizer(line.model)
    model = load_denoiser(line.model, dtype=options.dtype, **eager).eval()
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
    named = ("train_file", "test_file") if options.dataset_name is None else ("dataset_name",)
    where = {"seed": options.seed, **{key: getattr(options, key) for key in named}}
    how: dict[str, Any] = {"count": options.limit, "where": where, "temperature": line.temperature}
    held_out, test = (
        evaluator_of(line.task, denoiser, tokenizer, split=split, **how) for split in ("validation", "test")
    )
    return held_out, test


def needs_maps(rules: Sequence[str]) -> bool:
    return any(SAMPLERS[name].needs_attentions for name in rules)


class Points:
    """The points of a line: a file of one JSON object a line, the first of which says what they were measured on.

    Args:
        path: the file.
        settings: what it was measured on; None: whatever it says.

    Raises:
        ValueError: the file was measured on something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any] | None = None):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_suffix(".lock")):
            found = path.read_text() if path.exists() else ""
            whole = found[: found.rfind("\n") + 1]  # a kill may have left half of a row
            if settings is not None and not whole:
                whole = json.dumps(settings) + "\n"
            if whole != found:
                path.write_text(whole)
        self.settings, *self.rows = map(json.loads, whole.splitlines()) if whole else [{}]
        changed = [] if settings is None else [key for key in settings if self.settings.get(key) != settings[key]]
        if changed:
            raise ValueError(f"{path}: was measured with another {', '.join(changed)}; give another --output_dir")

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        with WeakFileLock(self.path.with_suffix(".lock")), self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def measure(name: str, line: Line, options: argparse.Namespace) -> None:
    """The points of the rules and scorers that are missing."""
    evaluators = held_out, test = evaluators_of(line, options)
    settings = {
        "model": fingerprint(test.denoiser.model),
        "problems": test.fingerprint(),
        "held_out": held_out.fingerprint(),
        "prompts": prompts_of(test.dataset),
        "temperature": line.temperature,
        "seeds": options.seeds,
    }
    points = Points(Path(options.output_dir) / f"{name}.jsonl", settings)
    there = {(row["rule"], row["scorer"]) for row in points.rows}
    scorers: list[OrderScorer | None] = [OrderScorer.from_pretrained(path).eval() for path in line.scorers]
    for rule, scorer in [*((LEARNED, scorer) for scorer in scorers), *((rule, None) for rule in options.rules)]:
        print_of = None if scorer is None else fingerprint(scorer)
        if (rule, print_of) not in there:
            found = measure_rule(rule, scorer, line, evaluators, options)
            points.add([{"rule": rule, "scorer": print_of, **row} for row in found])
            shown = ", ".join(f"{100 * np.mean(row['scores']):.1f} @{np.mean(row['calls']):.2f}" for row in found)
            print(f"{name}: {rule}: % right @ calls {shown}", flush=True)


def measure_rule(
    rule: str,
    scorer: OrderScorer | None,
    line: Line,
    evaluators: tuple[Evaluator, Evaluator],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """What the test problems get at those settings that are on the frontier of the held-out ones."""
    held_out, test = evaluators
    tried = list(candidates(rule, scorer, line, held_out, options.settings))
    results = [held_out.quick(sampler, budget) for _, sampler, budget in tried]
    rows = []
    for at in frontier([(result.nfe, result.accuracy) for result in results]):
        setting, sampler, budget = tried[at]
        seeds = range(options.seeds if sampler.is_random or line.temperature else 1)
        runs = [
            test.measure(sampler, name=rule, max_denoising_steps=budget, seed=seed, with_bound=False) for seed in seeds
        ]
        scores, calls = (np.mean([getattr(run, key) for run in runs], 0).tolist() for key in ("scores", "calls"))
        rows.append({"setting": setting, "scores": scores, "calls": calls})
    return rows


def candidates(
    rule: str, scorer: OrderScorer | None, line: Line, held_out: Evaluator, count: int
) -> Iterator[tuple[str, Sampler, int | None]]:
    """Settings to choose from: in words, the sampler and its step budget."""
    low, high = min(line.nfe), max(line.nfe)
    make = knob(rule, scorer)
    if make is None:
        for budget in range(math.floor(low), math.ceil(high) + 1):
            yield f"T={budget}", make_sampler(rule), budget
        return
    budgets = sorted({math.ceil(share * nfe) for nfe in line.nfe for share in BUDGET_SHARES})
    calls = spread_settings(lambda x: held_out.quick(make(x)).nfe, count, low=low, high=high)
    for x, nfe in calls.items():
        yield f"x={x:g}", make(x), None
        for budget in budgets:
            if budget / NEAR <= nfe <= budget * NEAR:
                yield f"x={x:g}, T={budget}", make(x), budget


def curves_of(line: Line, rows: Sequence[dict[str, Any]], kept: np.ndarray) -> dict[str, list[list[tuple]]]:
    """Of each rule its curves, one for each scorer of the line: mean NFE and what each problem got."""
    wanted = wanted_of(line)
    found: dict[tuple[str, str | None], list[tuple]] = defaultdict(list)
    for row in rows:
        if row["rule"] != LEARNED or row["scorer"] in wanted:
            scores, calls = (np.array(row[key])[kept] for key in ("scores", "calls"))
            found[row["rule"], row["scorer"]].append((float(calls.mean()), scores))
    curves = defaultdict(list)
    for (rule, _), curve in found.items():
        curves[rule].append(curve)
    return dict(curves)


def wanted_of(line: Line) -> list[str | None]:
    return [fingerprint(OrderScorer.from_pretrained(path)) for path in line.scorers]


def kept_of(line: Line, prompts: Sequence[list[int]]) -> np.ndarray:
    """bool [problems]: those whose prompt is not left out."""
    if line.without is None:
        return np.ones(len(prompts), bool)
    left_out = set(map(tuple, read_prompts(line.without, load_tokenizer(line.model))))
    return np.array([tuple(prompt) not in left_out for prompt in prompts])


def cells(name: str, line: Line, points: Points) -> Iterator[dict[str, Any]]:
    """One for each number of calls at which both sides were measured."""
    kept = kept_of(line, points.settings["prompts"])
    curves = curves_of(line, points.rows, kept)
    for nfe in line.nfe:
        at: dict[str, np.ndarray] = {}  # [scorers, problems] of each rule
        for rule, mine in curves.items():
            values = [value for curve in mine if (value := mixed(curve, nfe)) is not None]
            if len(values) == len(mine):
                at[rule] = np.array(values)
        ours = at.pop(LEARNED, None)
        if ours is None or not at:
            continue
        best = max(at, key=lambda rule: at[rule].mean())
        low, high = paired_interval(torch.from_numpy(ours.mean(0) - at[best].mean(0)).float())
        yield {
            "line": name,
            "nfe": nfe,
            "state": "ahead" if low > 0 else "behind" if high < 0 else "level",
            "lead": [low, high],
            "learned": float(ours.mean()),
            "spread": float(ours.mean(1).std(ddof=1)) if len(ours) > 1 else 0.0,
            "scorers": len(ours),
            "rule": best,
            "rules": {rule: float(values.mean()) for rule, values in at.items()},
            "problems": int(kept.sum()),
            "budgets": True,
        }


def board(found: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """The part of the page that is made of the data."""
    if not found:
        return "Nothing has been measured yet."
    by_line: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in found:
        by_line[cell["line"]].append(cell)
    states = ("ahead", "level", "behind")
    count = Counter(cell["state"] for cell in found)
    head = ["line", *states, "problems", "scorers", "rules", "budgets"]
    rows = []
    for name, mine in by_line.items():
        numbers = [sum(cell["state"] == state for cell in mine) for state in states]
        numbers += [mine[0]["problems"], mine[0]["scorers"], max(len(cell["rules"]) for cell in mine)]
        rows.append([name, *map(str, numbers), "yes" if mine[0].get("budgets") else "no"])
    parts = [
        f"**Of {len(found)} cells {count['ahead']} are ahead, {count['level']} level and {count['behind']} behind.**",
        markdown(head, rows),
    ]
    for name, mine in by_line.items():
        head = ["calls", "learned order, % right", "best rule", "lead, points (95 %)", ""]
        parts += [f"## {name}", markdown(head, [row_of(cell) for cell in mine]), every_rule(mine)]
    if missing:
        parts.append("Not measured here: " + ", ".join(missing) + ".")
    return "\n\n".join(parts)


def row_of(cell: dict[str, Any]) -> list[str]:
    low, high = cell["lead"]
    spread = f" ± {100 * cell['spread']:.1f}" if cell["scorers"] > 1 else ""
    return [
        f"{cell['nfe']:g}",
        f"{100 * cell['learned']:.1f}{spread}",
        f"{cell['rule']} {100 * cell['rules'][cell['rule']]:.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"**{cell['state']}**" if cell["state"] != "level" else "level",
    ]


def every_rule(mine: Sequence[dict[str, Any]]) -> str:
    """% right of every rule of a line."""
    names = dict.fromkeys(rule for cell in mine for rule in cell["rules"])
    ranked = sorted(names, key=lambda rule: -np.mean([cell["rules"].get(rule, 0.0) for cell in mine]))
    rows = [[rule, *(percent(cell["rules"].get(rule)) for cell in mine)] for rule in ranked]
    ours = ["**learned_order**", *(percent(cell["learned"]) for cell in mine)]
    return markdown(["% right, calls", *(f"{cell['nfe']:g}" for cell in mine)], [ours, *rows])


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def line_of(name: str, options: argparse.Namespace) -> Line:
    """With what the command line says of its scorers and its model."""
    given = {option: dict(text.split("=", 1) for text in getattr(options, option)) for option in ("scorer", "model")}
    line = LINES[name]
    parent = line.of or name
    if parent in given["scorer"]:
        line = replace(line, scorers=tuple(filter(None, given["scorer"][parent].split(","))))
    return replace(line, model=given["model"].get(parent, line.model))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(LINES), metavar="LINE", default=list(LINES))
    parser.add_argument(
        "--scorer", nargs="+", default=[], metavar="LINE=FOLDER,FOLDER", help="in place of a line's own"
    )
    parser.add_argument("--model", nargs="+", default=[], metavar="LINE=FOLDER", help="in place of a line's own")
    parser.add_argument("--rules", nargs="*", default=RULES)
    parser.add_argument("--settings", type=int, default=10, help="of a knob, between the fewest and the most calls")
    parser.add_argument(
        "--limit", type=int, help="held-out and test problems; 0: nothing is measured; by default all, or 1,000"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the problems, where they are drawn")
    parser.add_argument("--seeds", type=int, default=1, help="runs of what draws")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dataset_name", help="GSM8K on the Hub")
    parser.add_argument("--train_file", default="../shared/data/gsm8k/train.jsonl", help="GSM8K's")
    parser.add_argument("--test_file", default="../shared/data/gsm8k/test.jsonl", help="GSM8K's")
    parser.add_argument("--output_dir", default="runs/scoreboard", help="the points, a file a line")
    parser.add_argument("--data", help="where the cells are written, JSON")
    parser.add_argument("--page", help="a page whose generated part is written anew")
    options = parser.parse_args(arguments)
    lines = {name: line_of(name, options) for name in LINES}
    for name in options.tasks:
        line = lines[name]
        if options.limit != 0 and line.of is None and Path(line.model).exists():
            measure(name, line, options)
    data = Path(options.data) if options.data else None
    old: list[dict[str, Any]] = json.loads(data.read_text()) if data is not None and data.exists() else []
    found: list[dict[str, Any]] = []
    for name, line in lines.items():  # also those that another command measured
        path = Path(options.output_dir) / f"{line.of or name}.jsonl"
        found += cells(name, line, Points(path)) if path.exists() else [cell for cell in old if cell["line"] == name]
    if data is not None:
        write_rows(data, found)
    text = board(found, [name for name in LINES if name not in {cell["line"] for cell in found}])
    if options.page:
        replace_part(options.page, "scoreboard", text)
    print(text)


if __name__ == "__main__":
    main()
