"""Rows left out for their prompt: what is measured is not trained on, and what was trained on can be told apart."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
THOSE_HELD_OUT = "those held out for validation or test"


def without_prompts(dataset: Dataset, prompts: Iterable[Sequence[int]], *, why: str) -> Dataset:
    """The rows whose prompt is none of `prompts` (token ids). A log line says how many were left out, and `why`.

    A row without a prompt, a text to be filled in, goes by its text.

    Raises:
        ValueError: no row remains.
    """
    unwanted = set(map(tuple, prompts))
    kept = [i for i, ids in enumerate(prompts_of(dataset)) if tuple(ids) not in unwanted]
    left_out = len(dataset) - len(kept)
    # a warning, so that it is seen where nothing is set up: no row goes silently
    logger.warning("%d of %d rows left out: their prompts are %s", left_out, len(dataset), why)
    if not kept:
        raise ValueError(f"the data set must hold another prompt than {why}, but all {left_out} rows have one of them")
    # pyrefly: ignore[bad-return] (a Dataset's is a Dataset)
    return dataset.select(kept)


def prompts_of(dataset: Dataset) -> list[list[int]]:
    """Token ids of the prompt of each row, or of its text where it has none."""
    rows = zip(dataset["prompt_ids"][:], dataset["response_ids"][:], strict=True)
    return [prompt or response for prompt, response in rows]


def read_prompts(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompts in a text file, one a line, for `without_prompts`.

    Raises:
        ValueError: the file holds none.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"{path}: must hold prompts, one a line, but it is empty")
    return tokenizer(texts)["input_ids"]
