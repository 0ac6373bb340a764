"""A user's own data as the library `datasets` reads them: files of several kinds, folders, repositories of the Hub."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from hf_learned_order.tasks.gsm8k import read_rows
from hf_learned_order.tasks.sources import Files, Source

FORMATS = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet", "arrow": "arrow"}
FORMATS |= {"txt": "text"}
LINES = {".json", ".jsonl"}
COMPRESSIONS = ("gz", "bz2", "xz", "zst", "zip", "lz4")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
HELD_OUT = {"validation": 400, "test": 1000}  # at most, where they are taken from the training data
NUMBER = "row_number"  # a column of ours: where a row was, from 1


def read_files(files: Files, *, option: str = "train_file") -> Dataset:
    """The rows of one or several files of one kind: JSON, JSON lines, CSV, TSV, Parquet, Arrow or text, compressed
    or not. A name may be a pattern (`data/*.jsonl`).

    Raises:
        ValueError: the kinds are unknown or mixed, or a file cannot be read as what it is called.
        OSError: there is no such file.
    """
    names = [str(files)] if isinstance(files, str | Path) else [str(file) for file in files]
    kinds = {_kind(name) for name in names}
    if len(kinds) != 1 or "" in kinds:
        raise ValueError(
            f"{option} must be files of one kind, {', '.join(FORMATS)}, which may be compressed "
            f"({', '.join(COMPRESSIONS)}), got {', '.join(names)}"
        )
    (kind,) = kinds
    options: dict[str, Any] = {"sep": "\t"} if kind == "tsv" else {}
    if FORMATS[kind] == "csv":
        options["keep_default_na"] = False  # "NA", "null" and "None" are words like others
        options["na_values"] = [""]
    try:
        rows = load_dataset(FORMATS[kind], data_files=names, split="train", **options)
    except FileNotFoundError as error:
        raise OSError(f"{option} must name files that are there, got {', '.join(names)}") from error
    except (DatasetGenerationError, ValueError) as error:
        why = error.__cause__ or error
        raise ValueError(f"{option} {', '.join(names)}: cannot be read as {kind} ({why})") from error
    return cast(Dataset, rows)


def read_named(name: str, config: str | None = None) -> dict[str, Any]:
    """The splits of a data set of the Hub, of a folder of files, or of one that `save_to_disk` wrote, by our names.

    Raises:
        ValueError: it has none of them, or has several configurations.
        OSError: there is no such data set.
    """
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded: Any = load_from_disk(name)
    else:
        loaded = load_dataset(name, config)
    if not isinstance(loaded, DatasetDict):
        loaded = {"train": loaded}
    found = {ours: next((n for n in theirs if n in loaded), None) for ours, theirs in SPLITS.items()}
    splits = {ours: loaded[name] for ours, name in found.items() if name is not None}
    if not splits:
        raise ValueError(f"dataset_name must have a split train, validation or test, got {name} with {list(loaded)}")
    return splits


def read_problems(files: Files, *, option: str) -> list[dict[str, str]]:
    """GSM8K's problems from files of any kind: `question` and `answer` of each row.

    Raises:
        ValueError: a column is missing, a cell of one is no text; and as `read_files`, `gsm8k.read_rows`.
    """
    file = alone(files)
    if file is not None and file.suffix.lower() not in {f".{end}" for end in (*FORMATS, *COMPRESSIONS)} - LINES:
        return read_rows(file)  # names the line of what is broken
    return problems_of(read_files(files, option=option), option)


def alone(files: Files | None) -> Path | None:
    """The file, if it is only one."""
    names = [files] if isinstance(files, str | Path) else list(files or ())
    return Path(names[0]) if len(names) == 1 and "*" not in str(names[0]) else None


def problems_of(rows: Any, name: str) -> list[dict[str, str]]:
    """`question` and `answer` of each row. Raises `ValueError` as `read_problems`."""
    if not {"question", "answer"} <= set(rows.column_names):
        raise ValueError(
            f"{name} must have the columns question and answer of GSM8K, got {', '.join(rows.column_names)}: "
            "task responses takes one's own columns"
        )
    found = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    for number, row in enumerate(found, 1):
        if not all(isinstance(text, str) for text in row.values()):
            raise ValueError(f"{name}, row {number}: must have the strings 'question' and 'answer', got {row}")
    return found


def own_splits(source: Source) -> dict[str, Any]:
    """Every split of a user's own data, with a column `NUMBER`.

    Where there is no validation or no test split, a tenth of the training rows is held out for each, at most 400 and
    1,000: the same rows whenever the same data are read. The training split is without them.

    Raises:
        ValueError: no data are named, or there are too few rows to hold some out; and as `read_files`, `read_named`.
    """
    files = {"train": source.train_file, "validation": source.own.validation_file, "test": source.test_file}
    if source.dataset_name is not None:
        splits = read_named(source.dataset_name, source.own.dataset_config)
    else:
        splits = {name: read_files(file, option=f"{name}_file") for name, file in files.items() if file}
    if not splits:
        raise ValueError("dataset_name or train_file must be given, but both are None")
    splits: dict[str, Any] = {
        name: rows.add_column(NUMBER, list(range(1, len(rows) + 1))) for name, rows in splits.items()
    }
    if "train" not in splits:
        return splits
    rows: Any = splits["train"]
    order: list[int] = list(np.random.default_rng(0).permutation(len(rows)))
    for name, most in HELD_OUT.items():
        if name not in splits:
            count = min(most, len(rows) // 10)
            if count == 0:
                raise ValueError(
                    f"the training data must have 10 rows or more to hold some out for {name}, got {len(rows)}: "
                    f"give {name}_file"
                )
            splits[name], order = rows.select(order[:count]), order[count:]
    splits["train"] = rows.select(sorted(order))
    return splits


def _kind(name: str) -> str:
    """By the end of its name, without that of a compression; "" if unknown."""
    parts = Path(name).name.lower().split(".")
    if parts[-1] in COMPRESSIONS:
        parts.pop()
    return parts[-1] if parts[-1] in FORMATS else ""
