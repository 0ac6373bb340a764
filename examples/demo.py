"""The main job in a few minutes: the shipped denoiser and scorers against every heuristic, on GSM8K's real test chains.

    make demo        (or: python examples/demo.py --test_file test.jsonl --train_file train.jsonl)

It is `hf-learned-order evaluate` with the shipped models and a part of the test problems. Where GSM8K's files are not
at hand, chains are drawn from the sixteen problems in `examples/problems.jsonl`, and the first line says so.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from hf_learned_order.cli.main import main as command_line
from hf_learned_order.tasks.gsm8k import Chain, chains_of, read_rows
from hf_learned_order.tasks.resampler import Resampler

SAMPLERS = ["iid", "random", "top_prob", "margin", "entropy", "threshold", "factor", "entropy_bound", "learned_order"]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train_file", default=str(GSM8K / "train.jsonl"))
    parser.add_argument("--test_file", default=str(GSM8K / "test.jsonl"))
    parser.add_argument("--limit", default="200", help="test problems")
    parser.add_argument("--tuning_limit", default="80", help="held-out problems that the samplers are tuned on")
    parser.add_argument("--nfe", nargs="+", default=["4"])
    parser.add_argument("--output_dir", default="runs/demo")
    options = parser.parse_args()
    for name in ("results.json", "settings.json"):  # a demo begins anew instead of going on with the last one
        (Path(options.output_dir) / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": Path(options.train_file), "test": Path(options.test_file)}
        if all(file.exists() for file in files.values()):
            print("GSM8K equations: the chains of the published test problems")
        else:
            print(f"No GSM8K at {files['test']}: chains drawn from examples/problems.jsonl instead")
            for seed, (split, count) in enumerate((("train", 1000), ("test", 400))):
                files[split] = Path(folder) / f"{split}.jsonl"
                write_rows(files[split], count, seed)
        scorers = sorted(str(path) for path in HERE.glob("scorer*") if path.is_dir())
        arguments = [
            "evaluate",
            "--model",
            str(HERE / "denoiser"),
            "--scorer",
            *scorers,
            "--limit",
            options.limit,
            "--seeds",
            "1",
            "--tuning_limit",
            options.tuning_limit,
            "--budget_shares",
            "1.5",
            "--samplers",
            *SAMPLERS,
        ]
        arguments += ["--train_file", str(files["train"]), "--test_file", str(files["test"])]
        return command_line([*arguments, "--nfe", *options.nfe, "--output_dir", options.output_dir])


if __name__ == "__main__":
    sys.exit(main())
