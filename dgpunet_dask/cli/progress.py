"""How a running job is shown: a bar on a terminal, plain lines otherwise. Everything goes to stderr."""

from __future__ import annotations

import sys
from typing import Any, Final

import click
from tqdm import tqdm

from dgpunet_dask.cli.context import printable

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
        Show placements too.
    """

    def __init__(self, label: str, *, quiet: bool = False, verbose: bool = False) -> None:
        self._label = label
        self._quiet = quiet
        self._verbose = verbose
        self._bar: tqdm[Any] | None = None
        self._last_line_s = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if self._quiet:
            return
        if event["kind"] == "progress":
            self._progress(event)
        elif event["kind"] == "placement" and self._verbose:
            self._say(placement_line(event))
        elif event["kind"] == "log" and self._verbose:
            self._say(str(event["text"]))
        elif event["kind"] == "stage":
            self._say(f"{self._label}: {event['stage']}")

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
        metrics = event["metrics"]
        if sys.stderr.isatty():
            self._draw(int(metrics.get("files", event["done"])), event)
        elif event["time"] - self._last_line_s >= LINE_EVERY_S or event["done"] == event["total"]:
            self._last_line_s = event["time"]
            total = "?" if event["total"] is None else event["total"]
            counts = ", ".join(f"{value} {name}" for name, value in metrics.items() if isinstance(value, int))
            self._say(f"{self._label}: {event['done']}/{total} units" + (f", {counts}" if counts else ""))

    def _draw(self, done: int, event: dict[str, Any]) -> None:
        if self._bar is None:
            self._bar = tqdm(desc=self._label, unit=" units", file=sys.stderr, dynamic_ncols=True)
        self._bar.total = event["total"]
        self._bar.n = event["done"]
        self._bar.set_postfix({k: v for k, v in event["metrics"].items() if isinstance(v, int)}, refresh=False)
        self._bar.refresh()


def placement_line(event: dict[str, Any]) -> str:
    """Return a placement in one line: what went where, and how full the device is with it."""
    usable = event.get("usable_mib")
    room = "" if usable is None else f" ({event['vram_mib']} MiB; {event['charged_mib']} of {usable} MiB charged)"
    return f"placed {event['key']} on {event['device']}{room}"
