r"""The table of the paper (Fox et al., arXiv 2602.23968): step budgets T, and what each order gets right within them.

    python examples/bench_paper.py --scorer "paper=runs/elbo-max_normalized" "rewards=examples/scorer-0" \
        --output_dir runs/paper

A learned order decodes with each T as its budget. One with a knob has the setting, of `BIASES`, with the most right on
held-out problems within that T. IID, top probability and margin have fixed budgets: T, and the mean number of calls
that the first of the learned orders takes with it, rounded. The rows of the table are accuracy, the mean number of
denoiser calls of a sequence, its least and its most.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages import markdown, replace_part, write_rows

from hf_learned_order.decoding.samplers.learned import LearnedOrderSampler
from hf_learned_order.decoding.samplers.table import make_sampler
from hf_learned_order.denoisers.denoiser import Denoiser
from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.evaluator import Evaluator
from hf_learned_order.evaluation.problems import evaluator_of
from hf_learned_order.evaluation.results import Result
from hf_learned_order.orders.scorer import OrderScorer

RULES = ("iid", "top_prob", "margin")
BIASES = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0)


def learned_row(name: str, scorer: OrderScorer, steps: int, held_out: Evaluator, test: Evaluator) -> Result:
    """The test problems with that budget."""
    sampler = LearnedOrderSampler(scorer=scorer)
    if not scorer.is_random:
        settings = (replace(sampler, bias=bias) for bias in BIASES)
        sampler = max(settings, key=lambda setting: held_out.quick(setting, steps).accuracy)
    return test.measure(sampler, name=name, max_denoising_steps=steps, with_bound=False)


def rows_of(
    scorers: dict[str, OrderScorer], budgets: Sequence[int], held_out: Evaluator, test: Evaluator
) -> Iterator[tuple[int, Result]]:
    """With each budget first the learned orders, then the rules."""
    for steps in budgets:
        learned = [learned_row(name, scorer, steps, held_out, test) for name, scorer in scorers.items()]
        yield from ((steps, row) for row in learned)
        for rule in RULES:
            for most in sorted({steps, round(learned[0].nfe)}):
                sampler = make_sampler(rule)
                yield steps, test.measure(sampler, name=rule, max_denoising_steps=most, with_bound=False)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In the form of the paper."""
    head = ["T", "order", "right, %", "mean steps", "[min, max]"]
    cells = []
    for row in rows:
        numbers = [f"{100 * row['accuracy']:.1f}", f"{row['nfe']:.2f}", f"[{row['nfe_min']}, {row['nfe_max']}]"]
        cells.append([str(row["T"]), row["name"], *numbers])
    return markdown(head, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/denoiser")
    parser.add_argument("--task", default="equations")
    parser.add_argument("--scorer", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 15])
    parser.add_argument("--limit", type=int, help="test problems; by default all")
    parser.add_argument("--held_out", type=int, default=200, help="problems that knobs are set on")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--train_file", default="../shared/data/gsm8k/train.jsonl", help="GSM8K's")
    parser.add_argument("--test_file", default="../shared/data/gsm8k/test.jsonl", help="GSM8K's")
    parser.add_argument("--output_dir", default="runs/paper")
    parser.add_argument("--page", help="a page whose generated part is written anew")
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(options.model)
    model = load_denoiser(options.model, dtype=options.dtype).eval()
    denoiser = Denoiser(model, mask_token_id=tokenizer.mask_token_id)
    where = {key: getattr(options, key) for key in ("train_file", "test_file")}
    held_out, test = (
        evaluator_of(options.task, denoiser, tokenizer, split=split, count=count, where=where)
        for split, count in (("validation", options.held_out), ("test", options.limit))
    )
    named = dict(text.split("=", 1) for text in options.scorer)
    scorers = {name: OrderScorer.from_pretrained(folder).eval() for name, folder in named.items()}
    keys = ("accuracy", "nfe", "nfe_min", "nfe_max", "count")
    rows = []
    for steps, row in rows_of(scorers, options.budgets, held_out, test):
        rows.append({"T": steps, "name": row.sampler, **{key: getattr(row, key) for key in keys}})
        print(rows[-1], flush=True)
    write_rows(Path(options.output_dir) / "paper.json", rows)
    text = table(rows)
    if options.page:
        replace_part(options.page, "paper", text)
    print(text)


if __name__ == "__main__":
    main()
