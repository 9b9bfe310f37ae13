"""One job in the head's memory: its state, counts and events, changed by events alone."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.job import FINAL_STATES, JOB_TRANSITIONS, JobState, JobStatus, UnitCounts
from dgpunet_dask.model.stage import merge_counts

log = logging.getLogger(__name__)

#: Events kept in memory for `jobs logs`; all of them are in the job's events.jsonl.
EVENTS_KEPT: Final = 10_000


@dataclass(eq=False)
class JobRecord:
    """A job and those who wait for news of it.

    Parameters
    ----------
    status
        Replaced, never changed in place.
    folder
        ``H/jobs/ID``.
    """

    status: JobStatus
    folder: Path
    clock: Clock
    accepted_at_s: float
    counts: dict[str, Any] = field(default_factory=dict)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = 0
    unwritten: int = 0
    starts: Counter[str] = field(default_factory=Counter)

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.status.state in FINAL_STATES

    def now(self) -> JobStatus:
        """Return the status with the seconds run so far."""
        return self.status if self.final else replace(self.status, seconds=self.clock.monotonic() - self.accepted_at_s)

    def emit(self, kind: str, **facts: Any) -> None:
        """Append an event to memory and to events.jsonl, and wake those who wait."""
        self.seq += 1
        event = {"seq": self.seq, "time": round(self.clock.wall(), 3), "kind": kind, **facts}
        self.events.append(event)
        self._write(event)
        self.changed.set()
        self.changed = asyncio.Event()

    def _write(self, event: Mapping[str, Any]) -> None:
        """Append an event to the job's file; a full disk must not keep a job from ending."""
        try:
            with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            self.unwritten += 1
            log.warning("job %s: event %d is not on disk: %s", self.status.job_id, self.seq, error)

    def move(self, state: JobState, error: DgpunetError | None = None) -> None:
        """Go to `state`; a move that `JOB_TRANSITIONS` does not know is a programming error."""
        if state not in JOB_TRANSITIONS[self.status.state]:
            raise ValueError(f"job {self.status.job_id} cannot go from {self.status.state} to {state}")
        self.status = replace(
            self.now(),
            state=state,
            error=None if error is None else error.to_json(),
            exit_code=0 if error is None else error.exit_code,
        )
        self.emit("state", state=state, error=self.status.error)

    def count(self, counts: Mapping[str, Any]) -> None:
        """Add what a stage counted to the job's metrics."""
        merge_counts(self.counts, dict(counts))
        public = {name: value for name, value in self.counts.items() if name != "expected_items"}
        self.status = replace(self.status, metrics=copy.deepcopy(public))  # groups are counted on in place

    def placed(self, row: Mapping[str, Any]) -> None:
        """Note a placement; the second of one key is another attempt, since its worker was lost."""
        self.starts[str(row["key"])] += 1
        if self.starts[str(row["key"])] > 1:
            self.units(attempts=self.counted.attempts + 1)
        self.emit("placement", **row)

    def units(self, **changes: int | None) -> None:
        """Replace some of the unit counts."""
        self.status = replace(self.status, units=replace(self.status.units, **changes))  # type: ignore[arg-type]  # keys are UnitCounts' own

    @property
    def counted(self) -> UnitCounts:
        """The unit counts."""
        return self.status.units

    async def news(self, since: int, wait_s: float) -> None:
        """Wait up to `wait_s` seconds until there are events after number `since`, or the job has ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while self.seq <= since and not self.final and (left := until - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), left)

    def let_go(self) -> None:
        """Forget what only a running job needs: its events are on disk, unless that was full."""
        self.starts.clear()
        if not self.unwritten:
            self.events.clear()


def events_on_disk(folder: Path) -> deque[dict[str, Any]]:
    """Return the last events of the job in `folder`; a line that a killed head left half written is passed over."""
    found: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
    with contextlib.suppress(FileNotFoundError), open(folder / "events.jsonl", encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
