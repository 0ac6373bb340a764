"""Which rows of a data set are used, and why others are not: said before anything is trained or measured."""

import logging
import os
from collections.abc import Sequence

logger = logging.getLogger(__name__)
SHOWN = 5  # row numbers of each reason


def report(what: str, reasons: Sequence[str], *, numbers: Sequence[int] | None = None, hint: str = "") -> list[int]:
    """The places of the rows that are used; a log line says how many these are, and which are left out and why.

    Args:
        what: the name of the data.
        reasons: of each row why it is left out, "" where it is used.
        numbers: by which each row is named, by default counted from 1.
        hint: what to do about it, where rows are left out.

    Raises:
        ValueError: no row is used.
    """
    numbers = range(1, len(reasons) + 1) if numbers is None else numbers
    used = [place for place, reason in enumerate(reasons) if not reason]
    left_out: dict[str, list[int]] = {}
    for number, reason in zip(numbers, reasons, strict=True):
        if reason:
            left_out.setdefault(reason, []).append(number)
    parts = [f"{len(rows)} {reason} ({_named(sorted(rows))})" for reason, rows in left_out.items()]
    text = f"{what}: {len(used)} of {len(reasons)} rows are used"
    if parts:
        text += "; left out: " + "; ".join(parts) + (f". {hint}" if hint else "")
    if not used:
        raise ValueError(f"the data set must hold at least one row that fits the canvas, but it is empty: {text}")
    if 2 * len(used) < len(reasons):
        text = f"MOST ROWS ARE LOST. {text}"
    if os.environ.get("RANK", "0") == "0":  # of several processes one
        # a warning, so that it is seen where nothing is set up
        logger.warning(text)
    return used


def _named(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN]))
    return f"row{'s' * (len(rows) > 1)} {shown}{', ...' * (len(rows) > SHOWN)}"
