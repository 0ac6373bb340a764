"""Files that are either the old ones or the new ones, and the errors of what can be wrong with them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError

TEMPORARY = ".saving"


@contextmanager
def replacing(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to write to; when the block is left, its files take the place of those in `folder`.

    Until then `folder` is as it was, whatever ends the block: an error, a full disk, a kill. Each file is replaced at
    once (`os.replace`), and all of them under a lock, so that two processes that save leave the files of one of them.
    What was killed leaves its temporary folder `.saving-*` behind.

    Raises:
        OSError: `folder` is a file or cannot be written to, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}-") as temporary:  # inside: on the same file system
        yield Path(temporary)
        with WeakFileLock(folder / f"{TEMPORARY}.lock"):
            for path in sorted(Path(temporary).rglob("*")):
                if path.is_file():
                    target = folder / path.relative_to(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)


@contextmanager
def saving(folder: object) -> Iterator[None]:
    """What safetensors raises when it cannot write, as an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder}: the weights could not be written ({error})") from error


@contextmanager
def reading(source: object) -> Iterator[None]:
    """What damaged files of a scorer make transformers, torch and safetensors raise, as a `ValueError`."""
    try:
        yield
    except (SafetensorError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        raise ValueError(
            f"{source}: its config.json or model.safetensors is damaged, or they do not belong together "
            f"({type(error).__name__}: {error})"
        ) from error


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds. Raises `ValueError` unless that is a `kind`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path}: must hold a {kind.__name__}, got {type(content).__name__}")
    return content
