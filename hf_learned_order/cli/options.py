"""Options that several commands share, what they load, and how they are written again."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_model(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    parser.add_argument("--model", required=True, help="the denoiser: a folder or a Hub repository")
    if many:
        parser.add_argument("--scorer", nargs="+", default=[], help="one or more scorers (seeds) to average over")
    else:
        parser.add_argument("--scorer", help="a folder or a Hub repository")


def loaded(option: str, name: str | None, load: Callable[[Any], Any]) -> Any:
    """What `load` makes of the folder or repository; the Hub's errors do not always say which one it was about."""
    try:
        return load(name)
    except OSError as error:
        what = "" if name is None or Path(name).exists() else " (no folder here)"
        raise OSError(f"--{option} {name}{what}: {error}") from error


def words(options: dict[str, Any]) -> list[str]:
    """The options as they are typed, defaults too: a later version may have others."""
    words = []
    for name, value in options.items():
        if value is None or value is False or (name == "scorer" and not value):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *map(str, values)]
    return words
