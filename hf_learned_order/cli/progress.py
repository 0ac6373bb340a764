"""How far a command is, and how long the rest will take."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class Progress:
    """A bar on a terminal; where there is none, a line at most once a minute. Both on stderr.

    Args:
        names: what is done, one after the other.
        shown: False says nothing.
        every: seconds between two lines.
    """

    def __init__(self, names: Sequence[str], *, shown: bool = True, every: float = 60.0):
        self.names, self.shown, self.every = names, shown, every
        self.done = 0
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        self._began = self._said = time.monotonic()
        if self.shown and self.names and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
                speed_estimate_period=3600,
            )
            self._task = self._bar.add_task(self.names[0], total=len(self.names))
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One of them is done."""
        self.done += 1
        following = self.names[min(self.done, len(self.names) - 1)]
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=following)
        elif self.shown and now - self._said >= self.every:
            self._said = now
            left = (now - self._began) / self.done * (len(self.names) - self.done)
            print(
                f"{self.done} of {len(self.names)} done, about {timedelta(seconds=round(left))} left: {following}",
                file=sys.stderr,
                flush=True,
            )
