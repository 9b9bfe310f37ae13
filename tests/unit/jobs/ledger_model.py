"""What a ledger must do, written down a second time over plain dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

RUNNING, FINAL = "running", {"done", "failed", "cancelled", "lost"}
OVER = {"committed", "failed", "quarantined"}
MAY_MOVE = {
    "queued": {"running", "failed", "cancelled", "lost"}, "running": FINAL, "done": set(),
    "failed": {"queued"}, "cancelled": {"queued"}, "lost": {"queued"},
}  # fmt: skip


class Refused(Exception):
    """The ledger must refuse this."""


@dataclass
class Try:
    """One attempt."""

    unit: tuple[str, str]
    state: str
    speculative: bool
    boot: int
    try_no: int
    started: bool = False


@dataclass
class Unit:
    """One unit; `committed` is the epoch of its commit."""

    number: int
    pass_: int
    try_no: int
    state: str = "ready"
    committed: int | None = None
    results: str | None = None


@dataclass
class Job:
    """One job."""

    state: str = "queued"
    tries: int = 0
    passes: int = 0
    total: int | None = None
    reused: int = 0


@dataclass
class Model:
    """All of it. Methods raise `Refused` and change nothing where the ledger must."""

    boot: int = 1
    jobs: dict[str, Job] = field(default_factory=dict)
    units: dict[tuple[str, str], Unit] = field(default_factory=dict)
    tries: dict[int, Try] = field(default_factory=dict)

    def of(self, key: tuple[str, str], *states: str) -> list[int]:
        return sorted(epoch for epoch, one in self.tries.items() if one.unit == key and one.state in states)

    def reopened(self) -> None:
        self.boot += 1
        for one in self.tries.values():
            if one.state == "leased":
                one.state = "unknown"
                self.units[one.unit].state = "ready"

    def submit(self, job: str) -> None:
        if job in self.jobs:
            raise Refused
        self.jobs[job] = Job()

    def move(self, job: str, state: str) -> None:
        one = self._job(job)
        if state not in MAY_MOVE[one.state]:
            raise Refused
        if state == "done" and one.passes and one.total != sum(k[0] == job and u.state in OVER for k, u in self.units.items()):
            raise Refused
        if state in FINAL:
            self._end(lambda key: key[0] == job)
        one.tries += state == RUNNING
        one.state = state

    def forget(self, job: str) -> None:
        if self._job(job).state not in FINAL:
            raise Refused
        del self.jobs[job]
        self.units = {key: unit for key, unit in self.units.items() if key[0] != job}
        self.tries = {epoch: one for epoch, one in self.tries.items() if one.unit[0] != job}

    def begin_pass(self, job: str) -> int:
        one = self._running(job)
        one.passes, one.total, one.reused = one.passes + 1, None, 0
        return one.passes

    def offer(self, job: str, number: int, unit: str, pass_: int) -> str:
        one = self._running(job)
        if pass_ != one.passes or pass_ < 1 or one.total is not None:
            raise Refused
        key = job, unit
        if any(k[0] == job and k != key and u.pass_ == pass_ and u.number == number for k, u in self.units.items()):
            raise Refused
        found = self.units.setdefault(key, Unit(number, pass_, one.tries))
        found.number, found.pass_ = number, pass_
        if found.state == "dropped":
            found.state = "ready" if found.committed is None else "committed"
        elif found.state in {"failed", "quarantined"} and found.try_no < one.tries:
            found.state = "ready"
        one.reused += found.state == "committed" and found.try_no < one.tries
        return found.state

    def end_pass(self, job: str, pass_: int, total: int) -> None:
        one = self._running(job)
        given = sum(key[0] == job and unit.pass_ == pass_ for key, unit in self.units.items())
        if pass_ != one.passes or pass_ < 1 or given != total:
            raise Refused
        old = {key for key, unit in self.units.items() if key[0] == job and unit.pass_ < pass_}
        self._end(lambda key: key in old)
        for key in old:
            self.units[key].state = "dropped"
        one.total = total

    def lease(self, job: str, unit: str, epoch: int, *, speculative: bool) -> None:
        key = self._unit(job, unit)
        live = [self.tries[e].speculative for e in self.of(key, "leased")]
        if self.jobs[job].state != RUNNING or self.units[key].state not in {"ready", "leased"} or speculative in live:
            raise Refused
        self.tries[epoch] = Try(key, "leased", speculative, self.boot, self.jobs[job].tries)
        self.units[key].state = "leased"

    def placed(self, job: str, unit: str, epoch: int) -> None:
        one = self.tries.get(epoch)
        if one is not None and one.unit == (job, unit) and one.state != "adopted":
            one.started = True

    def commit(self, job: str, unit: str, epoch: int, results: str, *, adopted: bool) -> bool:
        key = self._unit(job, unit)
        one = self.tries.get(epoch)
        if one is None or one.unit != key or one.state != "leased":
            if one is not None and one.unit == key and one.state == "committed" and self.units[key].results == results:
                return True
            if one is not None and one.unit == key and one.state in {"unknown", "lost", "beaten"}:
                one.state = "stale"
            return False
        one.state, one.started = "committed", True
        before = [e for e in self.of(key, "unknown", "lost") if e < epoch]
        if adopted and before:
            self.tries[before[-1]].state = "adopted"
        for other in self.of(key, "leased", "unknown"):
            self.tries[other].state = "beaten" if self.tries[other].state == "leased" else "lost"
        found = self.units[key]
        found.state, found.committed, found.results, found.try_no = "committed", epoch, results, one.try_no
        return True

    def fail(self, job: str, unit: str, epoch: int, to: str) -> bool:
        return self._over(job, unit, epoch, {"leased"}, "failed", to)

    def lost(self, job: str, unit: str, epoch: int) -> bool:
        return self._over(job, unit, epoch, {"leased", "unknown"}, "lost", "ready")

    def damaged(self, job: str, unit: str, epoch: int) -> bool:
        key = self._unit(job, unit)
        one = self.tries.get(epoch)
        if one is None or one.unit != key or one.state != "committed" or self.jobs[job].state == "done":
            return False
        one.state = "damaged"
        found = self.units[key]
        found.committed = found.results = None
        if found.state == "committed":
            found.state = "ready"
        return True

    def _over(self, job: str, unit: str, epoch: int, from_: set[str], to: str, unit_to: str) -> bool:
        key = self._unit(job, unit)
        one = self.tries.get(epoch)
        if one is None or one.unit != key or one.state not in from_:
            return False
        one.state, one.started = to, one.started or to == "failed"
        found = self.units[key]
        if found.state == "leased" and not self.of(key, "leased"):
            found.state, found.try_no = unit_to, one.try_no
        return True

    def _end(self, of: Callable[[tuple[str, str]], bool]) -> None:
        for one in self.tries.values():
            if of(one.unit) and one.state in {"leased", "unknown"}:
                one.state = "lost"
        for key, unit in self.units.items():
            if of(key) and unit.state == "leased":
                unit.state = "ready"

    def _job(self, job: str) -> Job:
        if job not in self.jobs:
            raise Refused
        return self.jobs[job]

    def _running(self, job: str) -> Job:
        if self._job(job).state != RUNNING:
            raise Refused
        return self.jobs[job]

    def _unit(self, job: str, unit: str) -> tuple[str, str]:
        if (job, unit) not in self.units:
            raise Refused
        return job, unit
