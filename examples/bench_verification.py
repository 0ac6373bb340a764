"""What verification saves: the slow rule's own responses, in how many calls, by what drafts them.

    python examples/bench_verification.py --train_file train.jsonl --test_file test.jsonl

The slow rule is top probability with one token a step. Its path through each test problem is decoded once; from this
path follows exactly how many calls and canvases a drafter takes with k canvases a call, in a chain as FreeDave's or in
`branches`: a drafted canvas counts when it lies on the path. That nothing else changes is shown by `--real` problems
decoded with `verify="top_prob"`: their tokens and orders are those of the path, their calls those that were counted.
The replica of FreeDave's rule is in freedave.py. All of it goes to
docs/results/data/verification.json.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from freedave import freedave
from rich.console import Console
from rich.table import Table

from hf_learned_order.decoding.inputs import start
from hf_learned_order.decoding.loop import decode
from hf_learned_order.decoding.outputs import LearnedOrderOutput
from hf_learned_order.decoding.samplers.base import Sampler
from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.scheduled import TopProbSampler
from hf_learned_order.decoding.verification import branches
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.problems import evaluator_of
from hf_learned_order.orders.scorer import OrderScorer

HERE = Path(__file__).parent
GSM8K = HERE.parent.parent / "shared" / "data" / "gsm8k"
TASKS = {"equations": ("denoiser", "scorer-0"), "sudoku": ("sudoku-denoiser", "sudoku-scorer")}
SLOW = TopProbSampler()
Path_ = list[tuple[int, int]]  # (position, token) of each step of the slow rule


class Traced(TopProbSampler):
    """The slow rule; it keeps what each drafter would draft at each step: positions and tokens, the first one first."""

    reads_unmasked = True

    def __init__(self, drafters: Mapping[str, Sampler], depth: int):
        super().__init__()
        object.__setattr__(self, "drafters", drafters)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "picks", {})  # row -> path
        object.__setattr__(self, "drafts", {name: {} for name in drafters})  # name -> row -> step -> path

    @property
    def needs_hidden_states(self):  # pyrefly: ignore[bad-override]
        return next((d.needs_hidden_states for d in self.drafters.values() if d.needs_hidden_states), False)

    def propose(self, step, state):
        proposal, tokens = super().propose(step, state), step.predictions.tokens
        for row, unmask, said in zip(step.rows.tolist(), proposal.unmask, tokens.tolist(), strict=True):
            (position,) = unmask.nonzero().flatten().tolist()
            self.picks.setdefault(row, []).append((position, said[position]))
        sure = step.predictions.confidence.masked_fill(~step.masked, -torch.inf)
        for name, drafter in self.drafters.items():
            first = drafter.preference(step).masked_fill(~step.masked, -torch.inf)
            order = sure.argsort(dim=-1, descending=True, stable=True)
            order = order.gather(-1, first.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
            for row, positions, said, count in zip(
                step.rows.tolist(), order.tolist(), tokens.tolist(), step.masked.sum(-1).tolist(), strict=True
            ):
                drafted = [(i, said[i]) for i in positions[: min(count, self.depth + 1)]]
                self.drafts[name].setdefault(row, []).append(drafted)
        return proposal


def path_of(trace: Traced, output: LearnedOrderOutput, row: int) -> Path_:
    """Its positions, counted within the window, and tokens; the last step of the budget does not ask the rule."""
    steps, order = int(output.nfe[row]), output.order[row]
    path = trace.picks.get(row, [])[:steps]
    if len(path) == steps:
        return path
    (last,) = (order == steps).nonzero().flatten().tolist()
    return [*path, (last, int(output.sequences[row, -len(order) :][last]))]


def chain(count: int) -> list[tuple[int, int]]:
    """The canvases of FreeDave, as `branches` has ours."""
    return [(j, 0) for j in range(count)]


SHAPES = {"chain": chain, "branches": branches}


def counted(path: Path_, drafts: list[Path_], length: int, cells: list[tuple[int, int]]) -> tuple[int, int]:
    """Calls and canvases of one row whose slow path and drafts at each of its states are known.

    `length` positions were masked at first; `cells` are the canvases of a call. State t is the canvas before step t.
    """
    calls, canvases, seen, done = 1, 1, 0, 1  # the first call sees state 0 and so knows step 0
    while done < len(path):
        known, left, tried = {position for position, _ in path[:done]}, length - done, set()
        guesses = [pair for pair in drafts[seen] if pair[0] not in known]
        for j, d in cells:
            if j < left and j + d <= left:
                tried.add(frozenset([*guesses[: max(j - 1, 0)], *guesses[j + d - 1 : j + d]] if j else []))
        right = 0
        while done + right < len(path) and frozenset(path[done : done + right + 1]) in tried:
            right += 1
        calls, canvases = calls + 1, canvases + len(tried)
        seen, done = done + right, done + right + 1
    return calls, canvases


def batches(evaluator: Evaluator, rows: Sequence[dict[str, Any]], **options: Any) -> list[LearnedOrderOutput]:
    outputs = []
    for at in range(0, len(rows), evaluator.batch_size):
        batch = evaluator.collator(rows[at : at + evaluator.batch_size])
        where = (batch["input_ids"], batch["attention_mask"], batch["clean"], batch.get("given"))
        outputs.append(
            decode(
                evaluator.denoiser,
                **start(*where, mask_token_id=evaluator.denoiser.mask_token_id),
                eos_token_id=evaluator.tokenizer.eos_token_id,  # pyrefly: ignore[bad-argument-type]
                pad_token_id=evaluator.tokenizer.pad_token_id,  # pyrefly: ignore[bad-argument-type]
                **options,
            )
        )
    return outputs


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one task."""
    folder, scored = (HERE / part for part in TASKS[name])
    tokenizer = load_tokenizer(folder)
    denoiser = Denoiser(load_denoiser(folder).eval(), mask_token_id=tokenizer.mask_token_id)
    scorer = OrderScorer.from_pretrained(options.scorer.get(name, scored)).eval()
    test = evaluator_of(
        name,
        denoiser,
        tokenizer,
        split="test",
        count=options.limit,
        where={"train_file": options.train_file, "test_file": options.test_file},
        batch_size=options.batch_size,
    )
    drafters = {"confidence": SLOW, "learned order": LearnedOrderSampler(scorer=scorer)}

    problems = test.dataset.to_list()
    slow, counts = [], {(*case, k): [] for case in product(drafters, SHAPES) for k in options.k}
    for at in range(0, len(problems), test.batch_size):
        part = problems[at : at + test.batch_size]
        trace = Traced(drafters, test.canvas_length)
        (output,) = batches(test, part, sampler=trace)
        slow.append(output)
        masked = test.collator(part).get("given")
        for row in range(len(part)):
            length = test.canvas_length if masked is None else int((~masked[row]).sum())
            path = path_of(trace, output, row)
            for drafter, shape, k in counts:
                drafts = trace.drafts[drafter].get(row, [])
                counts[drafter, shape, k].append(counted(path, drafts, length, SHAPES[shape](k)))
    calls = torch.cat([output.nfe for output in slow]).float()
    rows = []
    for (drafter, shape, k), pairs in counts.items():
        mean, canvases = torch.tensor(pairs, dtype=torch.float).mean(0).tolist()
        what = {"drafter": drafter, "shape": shape, "k": k}
        rows.append({**what, "calls": mean, "canvases": canvases, "share_of_calls": mean / calls.mean().item()})
    found = {"task": name, "problems": len(problems), "slow_calls": calls.mean().item(), "rows": rows}
    return found | {"real": real(test, slow, drafters, counts, options), "freedave": replica(test, slow, options)}


def real(
    test: Evaluator, slow: list, drafters: dict, counts: dict, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The first `--real` problems decoded with `verify`: what agrees with the slow path, and seconds."""
    count = min(options.real, len(test.dataset))
    if not count:
        return []
    whole = {
        name: torch.cat([output[name][:, -test.canvas_length :] for output in slow])[:count]
        for name in ("sequences", "order")
    }
    problems = test.dataset.to_list()[:count]
    found, began = [], time.perf_counter()
    batches(test, problems, sampler=SLOW)
    alone = time.perf_counter() - began
    for name, drafter in drafters.items():
        began = time.perf_counter()
        outputs = batches(test, problems, sampler=drafter, verify=SLOW, num_assistant_tokens=options.real_k)
        seconds = time.perf_counter() - began
        got = {field: torch.cat([output[field][:, -test.canvas_length :] for output in outputs]) for field in whole}
        calls = torch.cat([output.nfe for output in outputs]).tolist()
        expected = [pair[0] for pair in counts[name, "branches", options.real_k][:count]]
        found.append(
            {
                "drafter": name,
                "k": options.real_k,
                "problems": count,
                "same_tokens": int((got["sequences"] == whole["sequences"]).all(-1).sum()),
                "same_order": int((got["order"] == whole["order"]).all(-1).sum()),
                "calls": sum(calls) / count,
                "calls_as_counted": sum(a == b for a, b in zip(calls, expected, strict=True)),
                "canvases": torch.cat([output.canvases for output in outputs]).float().mean().item(),
                "seconds_over_slow": seconds / alone,
            }
        )
    return found


def replica(test: Evaluator, slow: list, options: argparse.Namespace) -> list[dict[str, Any]]:
    """FreeDave on the first problems: do its tokens agree, and how many calls does it take?"""
    count = min(options.freedave, len(test.dataset))
    if not count or "given" in test.dataset.column_names:
        return []
    prompts = [torch.tensor(ids) for ids in test.dataset[:count]["prompt_ids"]]
    expected = torch.cat([output.sequences[:, -test.canvas_length :] for output in slow])[:count].tolist()
    eos, k, calls, same = test.tokenizer.eos_token_id, options.real_k, 0, 0
    for prompt, tokens in zip(prompts, expected, strict=True):
        got, mine = freedave(test.denoiser, prompt, test.canvas_length, k, eos)  # pyrefly: ignore[bad-argument-type]
        end = got.index(eos) if eos in got else len(got)
        same, calls = same + (got[:end] == tokens[:end]), calls + mine
    return [{"k": k, "problems": count, "same_tokens": same, "calls": calls / count}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--scorer", nargs="*", default=[], help="task=folder: another scorer than the shipped one")
    parser.add_argument("--train_file", default=str(GSM8K / "train.jsonl"))
    parser.add_argument("--test_file", default=str(GSM8K / "test.jsonl"))
    parser.add_argument("--limit", type=int, help="test problems; by default all")
    parser.add_argument("--real", type=int, default=100, help="problems that are decoded with verify")
    parser.add_argument("--freedave", type=int, default=10, help="problems of the replica")
    parser.add_argument("--k", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8, 12, 16, 32])
    parser.add_argument("--real_k", type=int, default=8, help="of k, for what is decoded with verify")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output", default=str(HERE.parent / "docs" / "results" / "data" / "verification.json"))
    options = parser.parse_args()
    options.scorer = dict(pair.split("=", 1) for pair in options.scorer)
    results = [measured(name, options) for name in options.tasks]
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for result in results:
        title = f"{result['task']}: {result['problems']} problems, {result['slow_calls']:.1f} calls one token a step"
        table = Table("drafter", "canvases of a call", "k", "calls", "of the slow ones", "canvases", title=title)
        for row in result["rows"]:
            numbers = (f"{row['calls']:.1f}", f"{row['share_of_calls']:.0%}", f"{row['canvases']:.1f}")
            table.add_row(row["drafter"], row["shape"], str(row["k"]), *numbers)
        Console(width=100).print(table, result["real"], result["freedave"], sep="\n")


if __name__ == "__main__":
    main()
