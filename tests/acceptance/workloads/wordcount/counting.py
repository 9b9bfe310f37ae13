"""Counts words in an interpreter of its own, whose click is another than ours."""

import os
import signal
from pathlib import Path

import click

from dgpunet_dask import Demand, Stage


class Count(Stage):
    """Counts the words of each text."""

    demand = Demand(vram="2GiB", resident="256MiB", cpu_ok=True)

    def load(self, *, explode: str) -> None:
        self.explode = explode

    def __call__(self, batch):
        if self.explode == "raise":
            raise ValueError("the count exploded")
        if self.explode.startswith("once:"):
            once(Path(self.explode.removeprefix("once:")))
        return [(item.name, len(item.words), click.__version__, os.getpid()) for item in batch]


def once(marker: Path) -> None:
    """Kill this process the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
