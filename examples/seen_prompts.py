"""The test prompts among the chains that the shipped denoiser was trained on: `examples/denoiser/seen_prompts.txt`.

    python examples/seen_prompts.py --train_file ../shared/data/gsm8k/train.jsonl \
        --test_file ../shared/data/gsm8k/test.jsonl --output examples/denoiser/seen_prompts.txt

It draws all chains of the three commands in `examples/README.md` again, in ten minutes, and adds the published ones.
Training leaves test prompts out today; then it did not. `evaluate --without_prompts` measures on the others.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_learned_order.tasks.data import load_gsm8k
from hf_learned_order.tasks.gsm8k import Chain, ChainError, chains_of
from hf_learned_order.tasks.resampler import Resampler

CANVAS = 64
# seed, rows and options of each part
PARTS: list[tuple[int, int, dict[str, Any]]] = [
    (0, 600_000, {"keep": 0.0, "growth": 6}),
    (1, 280_000, {"keep": 0.4, "growth": 1}),
    (2, 900_000, {"keep": 0.4, "growth": 1, "pieces": 0.3, "drills": 0.3}),
]


def drawn(chains: Sequence[Chain], *, seed: int, count: int, **options: Any) -> Iterator[str]:
    """The prompts of `count` chains that fit, the draws of `data.resampled_equations`."""
    resampler, rng = Resampler(chains, **options), random.Random(seed)
    while count:
        try:
            prompt, response = resampler.draw(rng).texts()
        except ChainError:
            continue
        if len(response) < CANVAS:
            count -= 1
            yield prompt


def seen(train: Sequence[Chain], test: Sequence[Chain]) -> list[str]:
    """Prompts of `test` that were in the training, in alphabetical order."""
    wanted = {prompt for prompt, response in map(Chain.texts, test) if len(response) < CANVAS}
    found = wanted & {chain.texts()[0] for chain in train}
    for seed, count, options in PARTS:
        found |= wanted.intersection(drawn(train, seed=seed, count=count, **options))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--test_file", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--output", required=True, help="where the prompts are written, one a line")
    options = parser.parse_args()
    rows = load_gsm8k(train_file=options.train_file, test_file=options.test_file)
    train, test = (chains_of(rows[split])[0] for split in ("train", "test"))
    prompts = seen(train, test)
    Path(options.output).write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    print(f"{len(prompts)} prompts, written to {options.output}")


if __name__ == "__main__":
    main()
