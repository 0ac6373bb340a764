"""Files that are either the old ones or the new ones, and the errors of what can be wrong with them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

TEMPORARY = ".saving"


@contextmanager
def replacing(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to write to; when the block is left, its files take the place of those in `folder`.

    Until then `folder` is as it was, whatever ends the block: an error, a full disk, a kill. Each file is replaced at
    once (`os.replace`), and all of them under a lock, so that two processes that save leave the files of one of them.
    What was killed leaves its temporary folder `.saving-*` behind.

    Raises:
        OSError: `folder` is a file or cannot be written to, the disk is full, or a folder stands where a file is to be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}-") as temporary:  # inside: on the same file system
        yield Path(temporary)
        with WeakFileLock(folder / f"{TEMPORARY}.lock"):
            paths = [path for path in sorted(Path(temporary).rglob("*")) if path.is_file()]
            targets = [folder / path.relative_to(temporary) for path in paths]
            for target in targets:  # what can go wrong does so before the first file is replaced
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    raise IsADirectoryError(f"{target} must be a file, but it is a folder")
            for path, target in zip(paths, targets, strict=True):
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
    """What damaged files of a scorer make transformers, torch and safetensors raise, as a `ValueError`.

    An `OSError` that does not say what it was about, as transformers' where there is no network, is told so.
    """
    try:
        yield
    except OSError as error:
        if str(source) in str(error):
            raise
        raise OSError(f"{source}: {error}") from error
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `ValueError` unless all are finite floating-point numbers."""
    with reading(path):
        tensors = load_file(path)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: its weights must be floating-point numbers, but {name} is of {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{path}: its weights must be finite, but {name} holds nan or inf")
    return tensors


def fingerprint(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """Sixteen hexadecimal digits by which the same tensors, and the same `more`, are known again."""
    digest = hashlib.sha256(more.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
