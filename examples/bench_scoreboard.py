r"""The scoreboard: each task at each number of calls, the learned order against the best rule of any kind there.

    python examples/bench_scoreboard.py --tasks equations --limit 200 --output_dir runs/scoreboard
    python examples/bench_scoreboard.py --data docs/results/data/scoreboard.json --page docs/results/scoreboard.md

Each rule with a knob is tuned to the number of calls on held-out problems, once as published and once with a step
budget as well (`evaluation.comparison`). Of the two rows of the learned order the one that was better on held-out
problems counts. The rule that it is compared with is the best one *on the test problems*, which favours the rules. A
cell is ahead or behind where the 95 % interval of the paired bootstrap over problems is on one side of 0, else level.

Rows are on disk as soon as they are measured: the same command goes on, several may run at once, and `--tasks`,
`--rules` and `--nfe` measure in pieces. `--limit 0` measures nothing and writes data and page. Rules and scorers are
kept apart, so other scorers (`--scorer sudoku=runs/a,runs/b`) do not measure the rules again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pages import markdown, replace_part

from hf_learned_order.decoding.samplers.table import SAMPLERS
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.comparison import BUDGET_SHARES, compare
from hf_learned_order.evaluation.evaluator import Evaluator, fingerprint
from hf_learned_order.evaluation.results import Result, Sweep, lead, load_results
from hf_learned_order.evaluation.tables import LEARNED
from hf_learned_order.orders.scorer import OrderScorer
from hf_learned_order.tasks.held_out import read_prompts, without_prompts
from hf_learned_order.tasks.table import Source, find_task

TOLERANCE = 1.05  # a row that takes more calls than so many times the target does not count


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the board.

    Attributes:
        task: of `tasks.TASKS`.
        model: the denoiser, a folder; where there is none the line is not measured.
        scorers: folders, one a seed.
        nfe: numbers of calls.
        temperature: of the tokens.
        without: a file of prompts that are left out of the test problems.
    """

    task: str
    model: str
    scorers: tuple[str, ...] = ()
    nfe: tuple[float, ...]
    temperature: float = 0.0
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
LISTS = ("copy", "replace", "replace_random", "reverse", "shuffle", "sort")
LINES: dict[str, Line] = {
    "equations": EQUATIONS,
    "equations, prompts never seen": replace(EQUATIONS, without="examples/denoiser/seen_prompts.txt"),
    "sudoku": SUDOKU,
    "sudoku_12": replace(SUDOKU, task="sudoku_12", nfe=(2.5, 3, 3.5, 4)),
    "sudoku_unique": replace(SUDOKU, task="sudoku_unique", nfe=(2, 2.1, 2.2, 2.3, 2.4)),
    "sudoku_9x9": NINE,
    "sudoku_9x9_unique": replace(NINE, task="sudoku_9x9_unique", nfe=(2, 2.5, 3, 4, 5)),
    "countdown": COUNTDOWN,
    **{name: Line(task=name, model="runs/lists-denoiser", nfe=(2, 3, 4, 5, 6, 7, 8)) for name in LISTS},
}
MANY_ANSWERS = ("sudoku", "sudoku_12", "sudoku_9x9", "countdown", "replace_random", "shuffle")
LINES |= {f"{name}, temperature 1": replace(LINES[name], temperature=1.0) for name in MANY_ANSWERS}


def measure(name: str, line: Line, folder: Path, options: argparse.Namespace) -> None:
    """The rows of a line that are missing, into `folder`."""
    eager: dict[str, Any] = {"attn_implementation": "eager"} if needs_maps(options.rules) else {}
    tokenizer = load_tokenizer(line.model)
    model = load_denoiser(line.model, **eager).eval()
    denoiser, task = Denoiser(model, mask_token_id=tokenizer.mask_token_id), find_task(line.task)

    def evaluator(split: str, count: int | None) -> Evaluator:
        source = Source(
            split=split,
            count=count,
            canvas_length=task.canvas_length,
            **{key: getattr(options, key) for key in ("dataset_name", "train_file", "test_file")},
        )
        problems = task.load(tokenizer, source)
        if split == "test" and line.without:
            problems = without_prompts(problems, read_prompts(line.without, tokenizer), why=f"those of {line.without}")
        return Evaluator(
            denoiser,
            tokenizer,
            problems,
            canvas_length=task.canvas_length,
            is_right=task.is_right,
            temperature=line.temperature,
        )

    tuning, test = evaluator("validation", options.tuning_limit), evaluator("test", options.limit)
    settings = {
        "model": fingerprint(model),
        "problems": [tuning.fingerprint(), test.fingerprint()],
        "temperature": line.temperature,
        "seeds": options.seeds,
        "budget_shares": options.budget_shares,
    }

    def run(part: str, samplers: Sequence[str], scorers: Sequence[OrderScorer]) -> None:
        sweep = Sweep(folder / part, {**settings, "scorers": [fingerprint(scorer) for scorer in scorers]})
        for result in compare(
            tuning,
            test,
            samplers=samplers,
            targets=options.nfe or line.nfe,
            scorers=scorers,
            greedy=any(scorer.is_random for scorer in scorers),
            seeds=options.seeds,
            budget_shares=options.budget_shares,
            with_bound=False,
            task=name,
            finished=sweep.results,
        ):
            sweep.add(result)
            print(f"{name} at {result.target:g}: {result.sampler} {100 * result.accuracy:.1f} % @{result.nfe:.2f}")

    scorers = [OrderScorer.from_pretrained(path).eval() for path in line.scorers]
    if scorers:
        run("learned", ["learned_order"], scorers)
    run("rules", options.rules, [])


def needs_maps(rules: Sequence[str]) -> bool:
    return any(SAMPLERS[name].needs_attentions for name in rules)


def cells(name: str, rows: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """One for each number of calls at which both sides were measured."""
    for target in sorted({row.target for row in rows}):
        fast = [row for row in rows if row.target == target and row.nfe <= TOLERANCE * target]
        ours = [row for row in fast if row.sampler in LEARNED]
        theirs = [row for row in fast if row.sampler not in LEARNED]
        if not ours or not theirs:
            continue
        learned = max(ours, key=lambda row: row.held_out or 0.0)
        best = max(theirs, key=lambda row: row.accuracy)
        low, high = lead(learned, best)
        yield {
            "line": name,
            "nfe": target,
            "state": "ahead" if low > 0 else "behind" if high < 0 else "level",
            "lead": [low, high],
            "learned": summary(learned),
            "rule": summary(best),
            "rules": len({row.sampler.partition(",")[0] for row in theirs}),
            "problems": learned.count,
        }


def summary(row: Result) -> dict[str, Any]:
    names = ("sampler", "setting", "accuracy", "spread", "runs", "nfe")
    return {name: getattr(row, name) for name in names}


def board(found: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """The part of the page that is made of the data."""
    if not found:
        return "Nothing has been measured yet."
    count = Counter(cell["state"] for cell in found)
    parts = [
        f"**Of {len(found)} cells {count['ahead']} are ahead, {count['level']} level and {count['behind']} behind.**",
        markdown(
            ["line", "ahead", "level", "behind", "problems", "scorers", "rules"],
            [
                [
                    name,
                    *(str(sum(cell["state"] == state for cell in mine)) for state in ("ahead", "level", "behind")),
                    *(str(mine[0][key]) for key in ("problems",)),
                    str(mine[0]["learned"]["runs"]),
                    str(max(cell["rules"] for cell in mine)),
                ]
                for name in dict.fromkeys(cell["line"] for cell in found)
                for mine in [[cell for cell in found if cell["line"] == name]]
            ],
        ),
    ]
    for name in dict.fromkeys(cell["line"] for cell in found):
        mine = [cell for cell in found if cell["line"] == name]
        head = ["calls", "learned order, % right", "best rule", "lead, points (95 %)", ""]
        parts.append(f"## {name}\n\n" + markdown(head, [row_of(cell) for cell in mine]))
    if missing:
        parts.append("Not measured here: " + ", ".join(missing) + ".")
    return "\n\n".join(parts)


def row_of(cell: dict[str, Any]) -> list[str]:
    ours, rule, (low, high) = cell["learned"], cell["rule"], cell["lead"]
    spread = f" ± {100 * ours['spread']:.1f}" if ours["runs"] > 1 else ""
    return [
        f"{cell['nfe']:g}",
        f"{100 * ours['accuracy']:.1f}{spread} @{ours['nfe']:.2f}",
        f"{rule['sampler']} {100 * rule['accuracy']:.1f} @{rule['nfe']:.2f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"**{cell['state']}**" if cell["state"] != "level" else "level",
    ]


def line_of(name: str, options: argparse.Namespace) -> Line:
    """With what the command line says of its scorers and its model."""
    given = {option: dict(text.split("=", 1) for text in getattr(options, option)) for option in ("scorer", "model")}
    line = LINES[name]
    if name in given["scorer"]:
        line = replace(line, scorers=tuple(filter(None, given["scorer"][name].split(","))))
    return replace(line, model=given["model"].get(name, line.model))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(LINES), metavar="LINE", default=list(LINES))
    parser.add_argument(
        "--scorer", nargs="+", default=[], metavar="LINE=FOLDER,FOLDER", help="in place of a line's own"
    )
    parser.add_argument("--model", nargs="+", default=[], metavar="LINE=FOLDER", help="in place of a line's own")
    parser.add_argument("--rules", nargs="+", default=[name for name in SAMPLERS if name != "learned_order"])
    parser.add_argument("--nfe", nargs="+", type=float, help="in place of a line's own")
    parser.add_argument("--limit", type=int, help="test problems; 0: nothing is measured; by default all, or 1,000")
    parser.add_argument("--tuning_limit", type=int, default=200, help="held-out problems")
    parser.add_argument("--budget_shares", nargs="*", type=float, default=list(BUDGET_SHARES))
    parser.add_argument("--seeds", type=int, default=3, help="runs of what draws")
    parser.add_argument("--dataset_name", help="GSM8K on the Hub")
    parser.add_argument("--train_file", default="../shared/data/gsm8k/train.jsonl", help="GSM8K's")
    parser.add_argument("--test_file", default="../shared/data/gsm8k/test.jsonl", help="GSM8K's")
    parser.add_argument("--output_dir", default="runs/scoreboard", help="the rows, a folder a line")
    parser.add_argument("--data", help="where the cells are written, JSON")
    parser.add_argument("--page", help="a page whose generated part is written anew")
    options = parser.parse_args(arguments)
    for name in options.tasks:
        line = line_of(name, options)
        if options.limit != 0 and Path(line.model).exists():
            measure(name, line, Path(options.output_dir) / name, options)
    found: list[dict[str, Any]] = []
    for name in LINES:  # also those that another command measured
        files = sorted(Path(options.output_dir, name).glob("*/results.json"))
        found += cells(name, [row for file in files for row in load_results(file)])
    if options.data:
        Path(options.data).parent.mkdir(parents=True, exist_ok=True)
        Path(options.data).write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    text = board(found, [name for name in LINES if name not in {cell["line"] for cell in found}])
    if options.page:
        replace_part(options.page, "scoreboard", text)
    print(text)


if __name__ == "__main__":
    main()
