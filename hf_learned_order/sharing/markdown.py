"""What a configuration or a caller says, as text and code of a Markdown page that it cannot break out of."""

import re
import string
from pathlib import Path
from typing import TypeGuard

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

HARMLESS = " ,.;:'\"()/+=%?-"  # in the middle of a line
MARKUP = set(string.punctuation) - set(HARMLESS)


def plain(value: object) -> str:
    """`value` as one line of text: a character that may be markup becomes an entity (`&#42;`), which never is.

    For the middle of a line: at its start, `-` and `1.` would begin a list.
    """
    return "".join(f"&#{ord(one)};" if one in MARKUP else one for one in _line(value))


def code(value: object) -> str:
    """`value` as a code span, in a cell of a table too."""
    line = _line(value)
    if not line:
        return ""
    # a span of backticks has no escapes, and each reader has rules of its own for a bar within a cell
    if set("`|\\") & set(line):
        return f"<code>{plain(line)}</code>"
    return f"`{line}`"


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code, behind a fence that is longer than each run of backticks in it."""
    lines = "\n".join("".join(map(_shown, line)) for line in text.splitlines())
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", lines))])
    return f"{fence}{language}\n{lines}\n{fence}"


def hub_name(name: str | None) -> TypeGuard[str]:
    """Whether `name` can be that of a repository on the Hub, and is no folder here."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return not Path(str(name)).exists()


def hub_link(name: str) -> str:
    """The name of a model in code, with a link where it can be one on the Hub."""
    return f"[{code(name)}](https://huggingface.co/{name})" if hub_name(name) else code(name)


def _line(value: object) -> str:
    return "".join(map(_shown, " ".join(str(value).split())))


def _shown(one: str) -> str:
    """A character, or the sign for one that has no shape: such a one may turn the direction of the text."""
    return one if one.isprintable() or one == "\t" else "\ufffd"
