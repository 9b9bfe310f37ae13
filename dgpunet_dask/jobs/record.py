"""One job in the head's memory: its state, counts and events, changed by events alone."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.jobs.progress import Pace, Tally, eta_s, expected_units
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.model.job import FINAL_STATES, JOB_TRANSITIONS, JobState, JobStatus, UnitCounts
from dgpunet_dask.model.stage import merge_counts

log = logging.getLogger(__name__)

#: Events kept in memory for those who follow; all of them are in the job's events.jsonl.
EVENTS_KEPT: Final = 2_000
#: Longer texts of stages are on disk alone: a job may print a lot.
TEXT_KEPT: Final = 4_096
#: Events of one answer.
ANSWER_MOST: Final = 5_000
#: Progress is told at most this often.
PROGRESS_S: Final = 0.2
#: The last event of a job is looked for in so many bytes at the end of its file.
_TAIL_BYTES: Final = 1 << 20


@dataclass(eq=False)
class JobRecord:
    """A job and those who wait for news of it.

    Parameters
    ----------
    status
        Replaced, never changed in place.
    folder
        ``H/jobs/ID``.
    job
        What was asked for.
    leaves
        The stages whose results are committed, once it is planned.
    seq
        The number of the last event.
    passed_over
        Units that were committed before the source gave them, which tell nothing of the pace.
    """

    status: JobStatus
    folder: Path
    clock: Clock
    job: JobRow
    counts: dict[str, Any] = field(default_factory=dict)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    leaves: tuple[str, ...] = ()
    seq: int = 0
    owed: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    tally: Tally = field(default_factory=Tally)
    pace: Pace = field(default_factory=Pace)
    passed_over: int = 0
    expected_units: int | None = None
    _told_s: float = float("-inf")

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.status.state in FINAL_STATES

    def now(self) -> JobStatus:
        """Return the status with the seconds run so far."""
        return self.status if self.final else replace(self.status, seconds=max(0.0, self.clock.wall() - self.status.submitted_at))

    @property
    def allow_failed(self) -> int:
        """How many of its units may fail."""
        return self.job.allow_failed

    def emit(self, kind: str, **facts: Any) -> None:
        """Append an event to memory and to events.jsonl, and wake those who wait."""
        self.seq += 1
        event = {"seq": self.seq, "time": round(self.clock.wall(), 3), "kind": kind, **facts}
        short = event if len(facts.get("text") or "") <= TEXT_KEPT else {**event, "text": None}
        self._write(event, short)
        self.events.append(short)
        self.changed.set()
        self.changed = asyncio.Event()

    def _write(self, event: Mapping[str, Any], short: Mapping[str, Any]) -> None:
        """Append an event to the job's file, after those that it owes; what cannot be written must not keep a job from ending."""
        try:
            _append(self.folder / "events.jsonl", "".join([*self.owed, _line(event)]).encode())
        except OSError as error:
            if not self.owed:
                log.warning("job %s: events from %d on are not on disk yet: %s", self.status.job_id, self.seq, error)
            self.owed.append(_line(short))
        else:
            self.owed.clear()

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

    def restart(self) -> None:
        """Count anew: the source runs again from its beginning."""
        self.counts = {}
        self.status = replace(self.status, metrics={})
        self.pace, self.passed_over = Pace(), 0

    def log(self, stage: str, text: str, **facts: Any) -> None:
        """Note what a stage has printed."""
        self.emit("log", stage=stage, text=text, **facts)

    def progress(self, given: int, items: int, expected_items: int | None, *, last: bool = False) -> None:
        """Note how far the job is: units and items that its source has given, and items that it says it will have."""
        now, units = self.clock.monotonic(), self.counted
        self.pace.note(units.done - self.passed_over, now)
        if not last and now - self._told_s < PROGRESS_S:
            return
        self._told_s = now
        self.expected_units = expected_units(given, items, expected_items)
        rate = self.pace.rate_per_s()
        self.emit(
            "progress", done=units.done, total=units.total, failed=units.failed, metrics=dict(self.status.metrics),
            expected_items=expected_items, rate_per_s=rate, eta_s=eta_s(units.done, units.total, self.expected_units, rate),
        )  # fmt: skip

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
                async with asyncio.timeout(left):
                    await self.changed.wait()

    def since(self, seq: int) -> list[dict[str, Any]] | None:
        """Return the events after number `seq`, ``None`` where not all of them are in memory."""
        if seq >= self.seq:
            return []
        found = [event for event in self.events if event["seq"] > seq]
        if not found or found[0]["seq"] > seq + 1 or any(event.get("text", "") is None for event in found):
            return None
        return found

    def let_go(self) -> None:
        """Forget what only a running job needs: its events are on disk, unless that was full."""
        if not self.owed:
            self.events.clear()


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event) + "\n"


def _append(path: Path, data: bytes) -> None:
    """Append all of `data` to a file, or nothing of it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        before = os.fstat(fd).st_size
        try:
            if (written := os.write(fd, data)) != len(data):
                raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes were written", str(path))
        except OSError:
            os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)


def events_on_disk(folder: Path, since: int = 0, most: int = ANSWER_MOST) -> list[dict[str, Any]]:
    """Return the first `most` events after number `since`; a line that a killed head left half written is passed over."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), open(folder / "events.jsonl", encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                event = json.loads(line)
                if event["seq"] > since:
                    found.append(event)
            if len(found) >= most:
                break
    return found


def last_seq(folder: Path) -> int:
    """Return the number of the last event on disk, 0 where there is none. A line that is half written ends with a new line from now on."""
    try:
        with open(folder / "events.jsonl", "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.write(b"\n")
    except OSError:
        return 0
    for line in reversed(tail.splitlines()):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return int(json.loads(line)["seq"])
    return 0
