"""The head's table of links, kept in ``H/links.json``: hands out measurements, takes results, tells the scheduler what has changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster.links import LinkTable, comm_compression
from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)

#: Codecs that come with Python.
EVERYWHERE: Final = ("zlib",)
#: The scheduler is told again once a rate differs by more than this share of what it was told.
WORTH_TELLING: Final = 0.1


class LinkKeeper:
    """Links as the head keeps them. The file is read on the first use.

    Parameters
    ----------
    file
        Where they are kept. One that cannot be read is set aside, and all is measured anew.
    clock
        Tells whose turn it is.
    """

    def __init__(self, file: Path, clock: Clock) -> None:
        self.file, self.clock = file, clock
        self.told: list[list[Any]] | None = None
        self._table: LinkTable | None = None

    @property
    def table(self) -> LinkTable:
        """All links.

        Raises
        ------
        NewerFormat
            If a newer release wrote the file.
        """
        if self._table is None:
            self._table = self._read()
        return self._table

    def _read(self) -> LinkTable:
        try:
            return LinkTable.from_json(json.loads(self.file.read_text()), self.file)
        except FileNotFoundError:
            return LinkTable()
        except (OSError, ValueError) as error:
            log.warning("%s is set aside, and links are measured anew: %s", self.file, error)
            if self.file.is_file():
                self.file.replace(self.file.with_name(f"{self.file.name}.damaged"))
            return LinkTable()

    def compression(self) -> str | None:
        """Return the codec that pays on the links as they are known, ``None`` for none: of those that every host has, whatever is installed."""
        return comm_compression(self.table.rates().values(), EVERYWHERE)

    def due(self, host: str, here: Sequence[str], busy: Sequence[str] = ()) -> str | None:
        """Return the host to which `host` shall measure now, of those that are `here`; ``None``: it is not its turn.

        What is returned counts as begun, until `measured`, or for half a minute.
        """
        now = self.clock.wall()
        dst = next((dst for src, dst in self.table.plan([*here, host], now, busy=busy) if src == host), None)
        if dst is not None:
            self.table.begin(host, dst, now)
        return dst

    def measured(self, report: Mapping[str, Any]) -> None:
        """Take a result: ``src``, ``dst``, ``bytes_per_s`` and ``rtt_s`` (``None``: it failed)."""
        src, dst = report.get("src"), report.get("dst")
        if not (isinstance(src, str) and isinstance(dst, str) and src != dst):
            log.warning("a measurement between %r and %r is not understood", src, dst)
            return
        self.table.note(src, dst, self.clock.wall(), bytes_per_s=report.get("bytes_per_s"), rtt_s=report.get("rtt_s"))
        self._save()

    def news(self) -> list[list[Any]] | None:
        """Return all links as `dgpunet_links` takes them if the scheduler should be told, ``None`` otherwise.

        They count as told; a caller that could not tell them, or has a new scheduler, sets `told` to ``None``.
        """
        rows = [[src, dst, rate] for (src, dst), rate in self.table.rates().items()]
        before = {(src, dst): rate for src, dst, rate in self.told or ()}
        same = len(before) == len(rows) and all(
            abs(rate - before.get((src, dst), 0.0)) <= WORTH_TELLING * before.get((src, dst), 0.0) for src, dst, rate in rows
        )
        if same:
            return None
        self.told = rows
        return rows

    def forget(self, here: Sequence[str]) -> None:
        """Forget the links of hosts that are no members any more."""
        self.table.keep_only(here)
        self._save()

    def reset_baseline(self) -> None:
        """Let what is measured now be what `doctor` compares with."""
        self.table.reset_baseline()
        self._save()

    def to_json(self) -> dict[str, Any]:
        """Return links, and their baseline for those that have one."""
        baseline = [{"src": src, "dst": dst, "bytes_per_s": rate} for (src, dst), rate in sorted(self.table.baseline.items())]
        return {"links": self.table.rows(), "baseline": baseline}

    def _save(self) -> None:
        try:
            write_private(self.file, json.dumps(self.table.to_json(), indent=1))
        except OSError as error:
            log.warning("%s cannot be written: %s", self.file, error)
