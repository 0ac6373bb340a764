"""The shipped denoiser and scorers against the rules people use, on GSM8K test problems, in a few minutes.

    make demo        (or: python examples/demo.py --test_file test.jsonl --train_file train.jsonl)

It is `hf-learned-order evaluate` with the shipped models and some of the test problems, told in one table. Without
GSM8K's files, problems are drawn from the sixteen in `examples/problems.jsonl`, and the first line says so.
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from hf_learned_order.cli.main import main as command_line
from hf_learned_order.evaluation.results import Result, load_results
from hf_learned_order.tasks.gsm8k import Chain, chains_of, read_rows
from hf_learned_order.tasks.resampler import Resampler

SAMPLERS = ["top_prob", "margin", "threshold", "factor", "entropy_bound", "learned_order"]
LEARNED = "learned_order"
HERE = Path(__file__).parent
GSM8K = HERE.parent.parent / "shared" / "data" / "gsm8k"


def write_rows(path: Path, count: int, seed: int) -> None:
    """`count` problems in GSM8K's format, from our own ones with their numbers drawn anew."""
    rng = random.Random(seed)
    resampler = Resampler(chains_of(read_rows(HERE / "problems.jsonl"))[0])
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps(_row(resampler.draw(rng))) + "\n")


def _row(chain: Chain) -> dict[str, str]:
    _, response = chain.texts()
    *lines, answer = response.split(" ")
    return {"question": "drawn", "answer": "\n".join(f"<<{line}>>" for line in lines) + f"\n#### {answer[1:]}"}


def problems(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """GSM8K's files, or where they are missing files of our own in `folder`; says which."""
    files = {"train": Path(options.train_file), "test": Path(options.test_file)}
    if all(file.exists() for file in files.values()):
        print(f"GSM8K equations: the first {options.limit} test problems")
        return files
    print(f"No GSM8K at {files['test']}: problems drawn from examples/problems.jsonl instead")
    for seed, (split, count) in enumerate((("train", 1000), ("test", 400))):
        files[split] = folder / f"{split}.jsonl"
        write_rows(files[split], count, seed)
    return files


def evaluation(options: argparse.Namespace, files: dict[str, Path]) -> list[str]:
    """The command line of `hf-learned-order` that measures."""
    scorers = sorted(str(path) for path in HERE.glob("scorer*") if path.is_dir())
    return [
        *("evaluate", "--model", str(HERE / "denoiser"), "--scorer", *scorers),
        *("--train_file", str(files["train"]), "--test_file", str(files["test"])),
        *("--limit", options.limit, "--tuning_limit", options.tuning_limit, "--seeds", "1"),
        *("--budget_shares", "--no_bound", "--samplers", *SAMPLERS),
        *("--nfe", *options.nfe, "--output_dir", options.output_dir),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_file", default=str(GSM8K / "train.jsonl"))
    parser.add_argument("--test_file", default=str(GSM8K / "test.jsonl"))
    parser.add_argument("--limit", default="100", help="how many test problems")
    parser.add_argument("--tuning_limit", default="40", help="how many held-out problems the rules are tuned on")
    parser.add_argument("--nfe", nargs="+", default=["2", "4", "8"], help="denoiser calls per sequence, on average")
    parser.add_argument("--output_dir", default="runs/demo")
    options = parser.parse_args()
    logging.disable_progress_bar()  # of loading: the one of the demo is enough
    for name in ("results.json", "settings.json"):  # a demo begins anew instead of going on with the last one
        (Path(options.output_dir) / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        files = problems(options, Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # its tables have more columns than a first look needs
            status = command_line(evaluation(options, files))
    if status == 0:
        print(summary(load_results(Path(options.output_dir) / "results.json")))
        print(f"Pictures: {options.output_dir}/trade_off.png and {options.output_dir}/order_map.png")
    return status


def summary(results: Sequence[Result]) -> str:
    """A table, a row per rule and a column per number of calls, and a sentence for each column."""
    targets = sorted({row.target for row in results})
    names = list(dict.fromkeys(row.sampler for row in results))
    found = {(row.sampler, row.target): row for row in results}
    lines = ["", "Correct answers, % (in brackets: denoiser calls per sequence, as measured)", ""]
    lines.append(f"{'rule':<16}" + "".join(f"{f'about {target:g} calls':>18}" for target in targets))
    for name in sorted(names, key=lambda name: name == LEARNED):
        cells = [found.get((name, target)) for target in targets]
        shown = [f"{100 * cell.accuracy:.0f} ({cell.nfe:.1f})" if cell else "-" for cell in cells]
        lines.append(f"{name:<16}" + "".join(f"{cell:>18}" for cell in shown))
    lines.append("")
    for target in targets:
        rules = [row for row in results if row.target == target and row.sampler != LEARNED]
        best, mine = max(rules, key=lambda row: row.accuracy, default=None), found.get((LEARNED, target))
        if best is not None and mine is not None:
            lines.append(
                f"At about {target:g} calls the learned order gets {100 * mine.accuracy:.0f} % right, "
                f"the best rule ({best.sampler}) {100 * best.accuracy:.0f} %."
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
