r"""What a risk that is kept costs: each rule calibrated on half of the test problems, 200 times, and run on the rest.

    python examples/bench_risk.py --task equations --train_file train.jsonl --test_file test.jsonl
    python examples/bench_risk.py --task sudoku

Every rule is decoded on all test problems at each setting of its knob, from slow to fast. A response is bad where it
is wrong and that of one token a step (top probability) is right. Then `evaluation.guarantees` chooses a setting on a
random half, 200 times. Where it chooses none, the slow rule is used, as `calibrate` says. For each rule and risk:

- broken, all: share of the splits whose setting is bad more often than the risk on *all* test problems. Learn then test
  promises at most 1 - confidence of this, for problems drawn from one law.
- rest: mean share of bad responses of the other half. Conformal risk control promises at most the risk of this.
- calls: mean calls of the other half.

Rows go to docs/results/data/risk.json, the tables into the generated part of a `--page`.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pages import markdown, replace_part, write_rows
from torch import Tensor

from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.comparison import knob
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.guarantees import kept
from hf_learned_order.evaluation.problems import evaluator_of
from hf_learned_order.orders.scorer import OrderScorer

RULES = ("learned_order", "factor", "threshold", "entropy_bound", "frechet", "local_leap", "klass")
SLOW = "top_prob"
METHODS = {"learn then test": 0.9, "conformal risk control": None}


def decoded(evaluator: Evaluator, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """bool [n], which responses are right, and their calls [n]."""
    result = evaluator.quick(sampler)
    return torch.tensor(result.scores) == 1, torch.tensor(result.calls)


def halves(count: int, splits: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random halves of `count` problems."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(splits)]
    return [(order[: count // 2], order[count // 2 :]) for order in orders]


def kept_on(
    bad: Tensor, calls: Tensor, slow: Tensor, splits: Sequence[tuple[Tensor, Tensor]], *, risk: float, confidence: Any
) -> dict[str, float]:
    """What the settings that are chosen on the first halves are worth.

    Args:
        bad, calls: [settings, n], from slow to fast.
        slow: calls [n] of the slow rule, which is never bad.
    """
    bad = torch.cat([torch.zeros_like(bad[:1]), bad])  # setting 0: nothing chosen
    calls = torch.cat([slow[None], calls])
    chosen = [kept(bad[1:, first], risk, confidence) for first, _ in splits]
    everywhere = bad.float().mean(1)
    rest = [float(bad[number, last].float().mean()) for number, (_, last) in zip(chosen, splits, strict=True)]
    taken = [float(calls[number, last].mean()) for number, (_, last) in zip(chosen, splits, strict=True)]
    return {
        "none": chosen.count(0) / len(splits),
        "broken": sum(float(everywhere[number]) > risk for number in chosen) / len(splits),
        "rest": sum(rest) / len(splits),
        "calls": sum(taken) / len(splits),
    }


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each rule, risk and method; of the learned order the means over its scorers."""
    evaluator = loaded(options)
    right, slow = decoded(evaluator, make_sampler(SLOW))
    splits = halves(len(right), options.splits, options.seed)
    scorers = [OrderScorer.from_pretrained(path).eval() for path in options.scorer]
    rows = []
    for rule in options.rules:
        of_rule = scorers if rule == "learned_order" else [None]
        curves = [curve_of(rule, scorer, evaluator, right, options) for scorer in of_rule]
        rows += rows_of(rule, curves, slow, splits, options)
    facts = {"problems": len(right), "splits": options.splits, "scorers": len(scorers), "points": options.points}
    slowly = {"slow_calls": float(slow.mean()), "slow_right": float(right.float().mean())}
    return [{**row, **facts, "dtype": options.dtype, **slowly} for row in rows]


def loaded(options: argparse.Namespace) -> Evaluator:
    """The model on its test problems."""
    tokenizer = load_tokenizer(options.model)
    model = load_denoiser(options.model, dtype=options.dtype).eval()
    return evaluator_of(
        options.task,
        Denoiser(model, mask_token_id=tokenizer.mask_token_id),
        tokenizer,
        split="test",
        count=options.limit,
        where={"train_file": options.train_file, "test_file": options.test_file},
        without=options.without_prompts,
        batch_size=64,
    )


def curve_of(
    rule: str, scorer: OrderScorer | None, evaluator: Evaluator, right: Tensor, options: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Which responses are bad and their calls, both [settings, n], from slow to fast."""
    make = knob(rule, scorer)
    assert make is not None
    bad, calls = [], []
    for number in range(options.points):
        right_now, taken = decoded(evaluator, make(number / (options.points - 1)))
        bad.append(right & ~right_now)
        calls.append(taken)
        share = float(bad[-1].float().mean())
        print(f"{rule}, setting {number}: {share:.3f} bad, {float(taken.mean()):.2f} calls", flush=True)
        if share > 2 * max(options.risks):  # never chosen
            break
    return torch.stack(bad), torch.stack(calls)


def rows_of(
    rule: str,
    curves: Sequence[tuple[Tensor, Tensor]],
    slow: Tensor,
    splits: Sequence[tuple[Tensor, Tensor]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row for each method and risk: means over the curves."""
    rows = []
    for (method, confidence), risk in product(METHODS.items(), options.risks):
        each = [kept_on(*curve, slow, splits, risk=risk, confidence=confidence) for curve in curves]
        means = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
        rows.append({"task": options.task, "rule": rule, "risk": risk, "method": method, **means})
    return rows


def page(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each task and method: a row a rule, a column a risk."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        one = mine[0]
        parts.append(
            f"## {task}\n\n{one['problems']} test problems, {one['splits']} splits, {one['scorers']} scorers. "
            f"One token a step has {100 * one['slow_right']:.1f} % right, in {one['slow_calls']:.1f} calls."
        )
        for method, confidence in METHODS.items():
            promised = "at most 10 % broken" if confidence else "the share of bad responses at most the risk"
            parts.append(f"**{method[0].upper()}{method[1:]}** ({promised}):")
            risks = sorted({row["risk"] for row in mine})
            head = ["rule", *(f"risk {risk:g}: calls (broken, bad in the rest)" for risk in risks)]
            table = []
            for rule in dict.fromkeys(row["rule"] for row in mine):
                cells = [row for row in mine if (row["rule"], row["method"]) == (rule, method)]
                table.append([rule, *(cell_of(row) for row in sorted(cells, key=lambda row: row["risk"]))])
            parts.append(markdown(head, table))
    return "\n\n".join(parts)


def cell_of(row: dict[str, Any]) -> str:
    return f"{row['calls']:.2f} ({100 * row['broken']:.0f} %, {100 * row['rest']:.2f} %)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="equations")
    parser.add_argument("--model", help="by default the shipped denoiser of equations or sudoku")
    parser.add_argument("--scorer", nargs="+", help="by default the shipped ones")
    parser.add_argument("--dtype", default="float32", help="of the denoiser")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--risks", nargs="+", type=float, default=[0.02, 0.05, 0.1])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--points", type=int, default=25, help="settings of a knob")
    parser.add_argument("--limit", type=int, help="test problems")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument("--train_file", default="../shared/data/gsm8k/train.jsonl", help="GSM8K's")
    parser.add_argument("--test_file", default="../shared/data/gsm8k/test.jsonl", help="GSM8K's")
    parser.add_argument("--without_prompts", help="a file of prompts that are left out")
    parser.add_argument("--data", default="docs/results/data/risk.json", help="rows of other tasks in it stay")
    parser.add_argument("--page", help="a page whose generated part is written anew")
    options = parser.parse_args(arguments)
    shipped = "examples/sudoku-" if options.task.startswith("sudoku") else "examples/"
    options.model = options.model or f"{shipped}denoiser"
    own = ["examples/sudoku-scorer"] if "sudoku" in shipped else [f"examples/scorer-{seed}" for seed in range(3)]
    options.scorer = options.scorer or own
    path = Path(options.data)
    old = json.loads(path.read_text()) if path.exists() else []
    rows = [row for row in old if row["task"] != options.task] + measured(options)
    write_rows(path, rows)
    text = page(rows)
    if options.page:
        replace_part(options.page, "risk", text)
    print(text)


if __name__ == "__main__":
    main()
