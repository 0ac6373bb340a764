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
