"""What an agent has to tell its head, kept on disk until the head has said that it knows: reports outlive a restart of either."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)

#: Reports that are kept while no head answers; the oldest go first, and how many went is told.
KEPT: Final = 500
#: Reports in one heartbeat.
AT_ONCE: Final = 50


class Spool:
    """Reports by number.

    Parameters
    ----------
    file
        Where they are kept; what cannot be read there is begun anew.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.id = secrets.token_hex(8)  # what the numbers count in: they go on when the agent starts again
        self._kept: str | None = None  # the same as on the disk
        self.next = 1
        self.dropped = 0
        self.reports: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(file.read_text(encoding="utf-8"))
            reports = [{**report, "n": int(report["n"]), "kind": str(report["kind"])} for report in found["reports"]]
            self.next, self.dropped, self.reports, self.id = int(found["next"]), int(found["dropped"]), reports, str(found.get("id") or self.id)
            self._kept = self.id

    def add(self, kind: str, **fields: Any) -> None:
        """Keep one report."""
        self.reports.append({"n": self.next, "kind": kind, **fields})
        self.next += 1
        surplus = max(0, len(self.reports) - KEPT)
        if surplus and not self.dropped:
            log.error("no head takes reports: the oldest are dropped, and how many is told with the next ones")
        self.dropped += surplus
        del self.reports[:surplus]
        self._write()

    def batch(self) -> list[Mapping[str, Any]]:
        """Return the oldest reports, as many as one heartbeat carries. The first says how many before it were `dropped`, if any."""
        found: list[Mapping[str, Any]] = list(self.reports[:AT_ONCE])
        return [{**found[0], "dropped": self.dropped}, *found[1:]] if found and self.dropped else found

    def acknowledged(self, number: int) -> None:
        """Forget the reports up to `number`: the head knows them."""
        left = [report for report in self.reports if report["n"] > number]
        if len(left) != len(self.reports):
            self.reports, self.dropped = left, 0
            self._write()

    def _write(self) -> None:
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self.file, json.dumps({"id": self.id, "next": self.next, "dropped": self.dropped, "reports": self.reports}))
        except OSError as error:
            log.warning("reports are kept in memory alone: %s", error)
            if self.id == self._kept:  # numbers that the disk does not know of would be given again after a restart, and taken for old ones
                self.id = secrets.token_hex(8)
        else:
            self._kept = self.id
