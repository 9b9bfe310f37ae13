"""Draining the decision log: all of it, in order, and never at the head's cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpunet_dask.cluster.decisions import DecisionFiles
from dgpunet_dask.daemons.recording import Recording
from dgpunet_dask.errors import StartFailed


class Files(DecisionFiles):
    def __init__(self) -> None:
        super().__init__(Path("-"))
        self.lines: list[str] = []
        self.full = False

    def append(self, lines: Sequence[str]) -> None:
        if self.full:
            raise OSError(28, "no space left on the device")
        self.lines += lines


class Plugin:
    """Holds lines 1, 2, 3... and gives two at a time; the first `dropped` of them are gone."""

    def __init__(self, count: int, dropped: int = 0) -> None:
        self.count, self.dropped = count, dropped
        self.away = False

    async def __call__(self, since: int) -> Mapping[str, Any]:
        if self.away:
            raise StartFailed(why="away", logs="-")
        start = max(since, self.dropped)
        lines = [str(n + 1) for n in range(start, min(self.count, start + 2))]
        return {"lines": lines, "seq": start + len(lines), "dropped": max(0, self.dropped - since)}


async def test_all_lines_are_written_once_and_in_order() -> None:
    files, plugin = Files(), Plugin(5)
    recording = Recording(files, plugin)
    await recording.drain()
    plugin.count = 6
    await recording.drain()
    assert files.lines == ["1", "2", "3", "4", "5", "6"]


async def test_what_is_lost_is_counted() -> None:
    files, plugin = Files(), Plugin(5, dropped=3)
    recording = Recording(files, plugin)
    await recording.drain()
    assert (files.lines, recording.missing) == (["4", "5"], 3)
    files.full, plugin.count = True, 6
    await recording.drain()
    assert recording.missing == 4
    files.full, plugin.count = False, 7
    await recording.drain()
    assert files.lines == ["4", "5", "7"]


async def test_a_new_scheduler_counts_from_the_beginning() -> None:
    files, plugin = Files(), Plugin(2)
    recording = Recording(files, plugin)
    await recording.drain()
    plugin.away = True
    await recording.drain()
    recording.lost()
    plugin.away = False
    await recording.drain()
    assert files.lines == ["1", "2", "1", "2"]
