"""How a running job is shown: a bar on a terminal, plain lines otherwise. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click
from tqdm import tqdm

from dgpunet_dask.cli.context import printable
from dgpunet_dask.cli.wording import attempt_line, placement_line, progress_counts

#: Plain lines at most this often, so that a log of a long job stays short.
LINE_EVERY_S: Final = 5.0


class Progress:
    """Takes a job's events and shows them.

    Parameters
    ----------
    label
        What runs.
    quiet
        Show nothing.
    verbose
        Show placements, attempts and what stages print too.
    """

    def __init__(self, label: str, *, quiet: bool = False, verbose: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._quiet = quiet
        self._verbose = verbose
        self._now = now
        self._bar: tqdm[Any] | None = None
        self._last_line_s: float | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if self._quiet:
            return
        if event["kind"] == "progress":
            self._progress(event)
        elif event["kind"] == "stage":
            self._say(f"{self._label}: {event['stage']}")
        elif self._verbose and event["kind"] in _TOLD:
            self._say(_TOLD[event["kind"]](event))

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        text = printable(text, keep="\t\n")
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)

    def _progress(self, event: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            self._draw(event)
        elif self._last_line_s is None or self._now() - self._last_line_s >= LINE_EVERY_S or event["done"] == event["total"]:
            self._last_line_s = self._now()
            total = "?" if event["total"] is None else event["total"]
            counts = [f"{event['done']}/{total} units", *progress_counts(event)]
            self._say(f"{self._label}: {', '.join(counts)}")

    def _draw(self, event: dict[str, Any]) -> None:
        if self._bar is None:
            self._bar = tqdm(desc=self._label, file=sys.stderr, dynamic_ncols=True, bar_format=_BAR, total=event["total"])
        self._bar.total = event["total"]
        self._bar.n = event["done"]
        self._bar.set_postfix_str(", ".join(progress_counts(event)), refresh=False)
        self._bar.refresh()


#: The rate is the head's: tqdm's own counts from when the bar was drawn, and the job may have begun long before.
_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} units [{elapsed}{postfix}]"
_TOLD: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "placement": placement_line,
    "attempt": attempt_line,
    "log": lambda event: str(event["text"]),
}
