"""Rows of a data set of whatever kind a Trainer takes."""

from collections.abc import Iterator
from typing import Any


def rows_of(dataset: Any) -> Iterator[Any]:
    """From the front: of `datasets`' own, a stream, a list, one of torch's; of several by name, one after another."""
    if isinstance(dataset, dict):
        for each in dataset.values():
            yield from rows_of(each)
    elif hasattr(dataset, "__len__"):
        yield from (dataset[number] for number in range(len(dataset)))
    else:
        yield from dataset


def example_of(row: dict[str, Any], tokenizer: Any) -> tuple[str, bool]:
    """The prompt of a row as text, or where parts of it are `given` the text with masks; and whether it is one."""
    if row.get("given") is None:
        return tokenizer.decode(row["prompt_ids"], skip_special_tokens=True), False
    known = zip(row["response_ids"], row["given"], strict=False)  # which may say more, of what fills the canvas
    ids = [*row["prompt_ids"], *(token if given else tokenizer.mask_token_id for token, given in known)]
    return tokenizer.decode(ids, skip_special_tokens=False), True
