"""One job in the head's memory: its state, counts and events, changed by events alone."""

from __future__ import annotations

import asyncio
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
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    seq: int = 0
    starts: Counter[str] = field(default_factory=Counter)

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.status.state in FINAL_STATES

    def now(self) -> JobStatus:
        """Return the status with the seconds run so far."""
        return self.status if self.final else replace(self.status, seconds=self.clock.monotonic() - self.accepted_at_s)

    async def emit(self, kind: str, **facts: Any) -> None:
        """Append an event to memory and to events.jsonl, and wake those who wait."""
        self.seq += 1
        event = {"seq": self.seq, "time": round(self.clock.wall(), 3), "kind": kind, **facts}
        self.events.append(event)
        self._write(event)
        async with self.changed:
            self.changed.notify_all()

    def _write(self, event: Mapping[str, Any]) -> None:
        """Append an event to the job's file; a full disk must not keep a job from ending."""
        try:
            with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            log.warning("job %s: event %d is not on disk: %s", self.status.job_id, self.seq, error)

    async def move(self, state: JobState, error: DgpunetError | None = None) -> None:
        """Go to `state`; a move that `JOB_TRANSITIONS` does not know is a programming error."""
        if state not in JOB_TRANSITIONS[self.status.state]:
            raise ValueError(f"job {self.status.job_id} cannot go from {self.status.state} to {state}")
        self.status = replace(
            self.now(),
            state=state,
            error=None if error is None else error.to_json(),
            exit_code=0 if error is None else error.exit_code,
        )
        await self.emit("state", state=state, error=self.status.error)

    def count(self, counts: Mapping[str, Any]) -> None:
        """Add what a stage counted to the job's metrics."""
        merge_counts(self.counts, dict(counts))
        public = {name: value for name, value in self.counts.items() if name != "expected_items"}
        self.status = replace(self.status, metrics=public)

    async def placed(self, row: Mapping[str, Any]) -> None:
        """Note a placement; the second of one key is another attempt, since its worker was lost."""
        self.starts[str(row["key"])] += 1
        if self.starts[str(row["key"])] > 1:
            self.units(attempts=self.counted.attempts + 1)
        await self.emit("placement", **row)

    def units(self, **changes: int | None) -> None:
        """Replace some of the unit counts."""
        self.status = replace(self.status, units=replace(self.status.units, **changes))  # type: ignore[arg-type]  # keys are UnitCounts' own

    @property
    def counted(self) -> UnitCounts:
        """The unit counts."""
        return self.status.units


async def events_after(record: JobRecord, since: int, wait_s: float) -> list[dict[str, Any]]:
    """Return the events after number `since`, waiting up to `wait_s` seconds for the first; at once if the job has ended."""

    def newer() -> list[dict[str, Any]]:
        return [event for event in record.events if event["seq"] > since]

    async with record.changed:
        try:
            await asyncio.wait_for(record.changed.wait_for(lambda: record.seq > since or record.final), wait_s or 0.001)
        except TimeoutError:
            return []
    return newer()
