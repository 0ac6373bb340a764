"""Parts of documentation pages that are made of data: `<!-- generated: NAME -->` to `<!-- end of NAME -->`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Data: JSON, a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def replace_part(page: str | Path, name: str, text: str) -> None:
    """Put `text` in the place of the generated part `name` of a page.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    old = Path(page).read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise ValueError(f"{page}: must have a line {begin} and, below it, a line {end}")
    before, rest = old.split(begin, 1)
    after = rest.split(end, 1)[1]
    Path(page).write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
