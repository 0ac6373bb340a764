"""`hf-learned-order evaluate`: compare samplers at matched NFE."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_learned_order.cli.calibrate import PROMISE, add_risk, confidence_of
from hf_learned_order.cli.options import (
    RULES,
    add_model,
    add_own_data,
    check_dtype,
    check_read,
    command_parser,
    evaluator_of,
    load_both,
    load_order,
    taken,
    words,
)
from hf_learned_order.cli.progress import Progress
from hf_learned_order.common.processes import finish, from_first, in_turn, is_first, started_processes


def add_command(commands: Any) -> None:
    """Its options."""
    parser = command_parser(commands, "evaluate", "compare samplers at matched NFE: table, JSON, CSV and plots")
    add_model(parser, many=True)
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", help="GSM8K (openai/gsm8k) or your own data on the Hub, or a folder of data")
    group.add_argument(
        "--train_file",
        nargs="+",
        help="files instead of it, of which some rows tune the samplers, of GSM8K's the last 400",
    )
    group.add_argument(
        "--test_file", nargs="+", help="what is measured; of your own data by default rows of train_file"
    )
    group.add_argument(
        "--without_prompts", help="a file of prompts, one a line, left out of the test problems, e.g. those trained on"
    )
    group.add_argument(
        "--tasks",
        nargs="+",
        default=["equations"],
        help="names of hf_learned_order.tasks.table.TASKS, responses and infill for your own data, or your own tasks: "
        "path/to/file.py:NAME",
    )
    group.add_argument("--canvas_length", type=int, help="positions of a response; by default the task's")
    group.add_argument("--limit", type=int, help="test problems, the first so many; by default all")
    group.add_argument("--tuning_limit", type=int, default=120, help="held-out problems that settings are tuned on")
    add_own_data(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument("--samplers", nargs="+", help=f"of {', '.join(RULES)}; by default all of them")
    group.add_argument("--greedy", action="store_true", help="learned_order takes the likeliest positions, no draw")
    group.add_argument("--nfe", nargs="+", type=float, default=[2, 4, 6, 8, 12, 16], help="target mean NFE")
    group.add_argument("--temperature", type=float, default=0.0, help="of the tokens; 0 takes the most likely ones")
    group.add_argument(
        "--budget_shares",
        type=float,
        nargs="*",
        help="step budgets that the tuned rows try, times the target NFE; none: no tuned rows; by default three",
    )
    group.add_argument("--no_bound", action="store_true", help="leave out the bound, which costs as much again")
    add_risk(group, required=False)
    group.add_argument("--seeds", type=int, default=3, help="runs of what draws, tokens or positions; k of pass@k")
    parser.add_argument("--batch_size", type=int, default=128, help="rows decoded at once, in each process")
    parser.add_argument(
        "--output_dir", default="runs/evaluation", help="the same command goes on with the rows that are there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from hf_learned_order.evaluation.comparison import BUDGET_SHARES
    from hf_learned_order.evaluation.plotting import trade_off  # noqa: F401 (if it cannot be imported, that is told now)

    _check_numbers(options)
    processes = started_processes()
    options.samplers = _names(options.samplers, options.scorer)
    tokenizer, model = load_both(options, processes, samplers=options.samplers)
    denoiser, scorers = load_order(options.scorer, model, tokenizer)
    options.budget_shares = list(BUDGET_SHARES) if options.budget_shares is None else options.budget_shares
    with in_turn(processes):
        evaluators = _evaluators(options, denoiser, tokenizer, processes)
    if options.risk is not None:
        _at_risk(options, evaluators, scorers, shown=is_first(processes))
        return finish(processes)
    _sweep(options, denoiser, scorers, evaluators, processes)
    finish(processes)


def _sweep(options: argparse.Namespace, denoiser: Any, scorers: list, evaluators: dict, processes: Any) -> None:
    """Every sampler at every target on every task; goes on with the rows that are there."""
    from hf_learned_order.evaluation.comparison import compare, planned
    from hf_learned_order.evaluation.results import Sweep

    folder, targets = Path(options.output_dir), sorted(options.nfe)
    # one process writes; all of them must know which rows are there, for they measure the others together
    sweep = Sweep(folder, _settings(options, denoiser, scorers, evaluators)) if is_first(processes) else None
    finished = from_first(processes, sweep and sweep.results)
    if sweep is not None and finished:
        print(f"{folder}: going on behind the {len(finished)} rows that are there", file=sys.stderr)
    rows = planned(options.samplers, targets, scorers=scorers, budget_shares=options.budget_shares)
    there = {(row.task, row.sampler, row.target) for row in finished}
    left = [(task, label, target) for task in evaluators for _, label, target in rows]
    left = [row for row in left if row not in there]
    results = []
    with Progress([f"{task}, {label} at {target:g}" for task, label, target in left], shown=sweep is not None) as bar:
        for task, (tuning, test) in evaluators.items():
            comparison = compare(
                tuning,
                test,
                targets=targets,
                scorers=scorers,
                with_bound=not options.no_bound,
                task=task,
                finished=finished,
                **taken(options, "samplers", "greedy", "seeds", "budget_shares"),
            )
            for result in comparison:
                if sweep is not None:
                    sweep.add(result)
                if (result.task, result.sampler, result.target) not in there:
                    bar.advance()
                results.append(result)
    if sweep is not None:
        _report(results, evaluators, scorers, folder, greedy=options.greedy)


def _check_numbers(options: argparse.Namespace) -> None:
    """What would else be found late, or not at all."""
    from hf_learned_order.common.checks import check_positive
    from hf_learned_order.decoding.samplers.base import check_range

    for name in ("batch_size", "canvas_length", "limit", "tuning_limit", "seeds"):
        value = getattr(options, name)
        if value is not None:
            check_positive(f"--{name}", value)
    for target in options.nfe:
        check_range("--nfe", target, low=1.0, high=1e6)
    check_range("--temperature", options.temperature, low=0.0)
    for share in options.budget_shares or ():
        check_range("--budget_shares", share, low=1.0, high=1e6)
    check_dtype(options.dtype)


def _at_risk(options: argparse.Namespace, evaluators: dict, scorers: list, *, shown: bool) -> None:
    """What the same promised risk costs with each rule that has a knob."""
    from rich.console import Console

    from hf_learned_order.evaluation.calibration import at_risk
    from hf_learned_order.evaluation.comparison import knob
    from hf_learned_order.evaluation.tables import risk_table

    promise = {"risk": options.risk, "confidence": confidence_of(options), "against": options.against}
    for task, (tuning, test) in evaluators.items():
        rows = []
        for name in options.samplers:
            for scorer in scorers if name == "learned_order" else [None]:
                if knob(name, scorer) is not None:
                    found = at_risk(tuning, test, name, scorer=scorer, task=task, points=options.points, **promise)
                    rows.append((name, *found))
        title = (
            f"{task}: at most {options.risk:g} bad, {len(tuning.dataset)} held-out, {len(test.dataset)} test problems"
        )
        Console(width=120, quiet=not shown).print(title, risk_table(rows), sep="\n")


def _report(results: list, evaluators: dict, scorers: list, folder: Path, *, greedy: bool) -> None:
    """Tables and pictures."""
    from rich.console import Console

    from hf_learned_order.evaluation.plotting import order_map_of, trade_off
    from hf_learned_order.evaluation.tables import aup_table, order_table, sample_table, table

    titles = {task: f"{task}, {len(test.dataset)} test problems" for task, (_, test) in evaluators.items()}
    trade_off(results, folder / "trade_off.png", title=", ".join(titles.values()) if len(titles) == 1 else "")
    console = Console(width=120)
    for task, (_, test) in evaluators.items():
        rows = [result for result in results if result.task == task]
        picture = folder / ("order_map.png" if len(titles) == 1 else f"order_map_{_file_name(task)}.png")
        order_map_of(test, scorers, picture, greedy=greedy)
        tables = (table(rows), order_table(rows), sample_table(rows), aup_table(rows))
        console.print(titles[task], *(view for view in tables if view is not None), sep="\n")
    print(f"Written to {folder}: results.json, results.csv, trade_off.png, order_map.png")


def _file_name(task: str) -> str:
    """Of a task, which may be `path/to/file.py:NAME`."""
    return task.rpartition("/")[2].replace(".py:", "_")


def _names(given: Sequence[str] | None, scorers: Sequence) -> list[str]:
    """The samplers to compare: those given, else all that can be."""
    from hf_learned_order.decoding.samplers.table import SAMPLERS

    names = list(given or [name for name in SAMPLERS if name != "learned_order" or scorers])
    unknown = sorted(set(names) - set(SAMPLERS))
    if unknown:
        raise ValueError(f"--samplers must be among {', '.join(SAMPLERS)}, got {', '.join(unknown)}")
    if "learned_order" in names and not scorers:
        raise ValueError('sampler "learned_order" needs --scorer')
    return names


def _evaluators(
    options: argparse.Namespace, denoiser: Any, tokenizer: Any, processes: Any
) -> dict[str, tuple[Any, ...]]:
    """For each task what settings are tuned on and what is measured."""
    check_read(options, options.tasks)  # before the first one is loaded, which takes a while
    how = {"temperature": options.temperature, "processes": processes}
    sizes = (("validation", options.tuning_limit), ("test", options.limit))
    return {
        name: tuple(evaluator_of(options, name, *size, denoiser, tokenizer, **how) for size in sizes)
        for name in options.tasks
    }


def _settings(options: argparse.Namespace, denoiser: Any, scorers: list, evaluators: dict) -> dict[str, Any]:
    """All that the rows of a sweep depend on, and the command that measures them."""
    from importlib.metadata import version

    from hf_learned_order.common import files
    from hf_learned_order.denoisers.probe import probe
    from hf_learned_order.evaluation.evaluator import fingerprint
    from hf_learned_order.evaluation.results import COMMAND, PROBE

    others = ("run", "command", "output_dir", *PROMISE)  # a comparison at a risk is no sweep
    given = {name: value for name, value in vars(options).items() if name not in others}
    return {
        COMMAND: ["hf-learned-order", options.command, *words(given)],
        **{name: version(name) for name in ("hf_learned_order", "torch", "transformers")},
        "device": denoiser.device.type,
        **given,
        "model_fingerprint": fingerprint(denoiser.model),
        **({PROBE: probe(denoiser)} if any(scorer.config.denoiser_tuning for scorer in scorers) else {}),
        "scorer_fingerprints": [fingerprint(scorer) for scorer in scorers],
        "scorer_weights": [files.fingerprint(scorer.state_dict()) for scorer in scorers],
        "data_fingerprints": {task: [e.fingerprint() for e in both] for task, both in evaluators.items()},
    }
