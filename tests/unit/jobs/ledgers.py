"""A ledger for tests: called without `await`, on a loop of its own, under a clock that stands still."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgpunet_dask.jobs import schema
from dgpunet_dask.jobs.ledger import Ledger, NewJob


class StandingClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Held:
    """A ledger whose methods are called without `await`.

    `full` lets the next transactions meet a full disk; `written` counts those that were made durable.
    """

    def __init__(self, path: Path) -> None:
        self.clock = StandingClock()
        self.full = False
        self.written = 0
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger(path, self.clock, failpoint=self._failpoint)

    def _failpoint(self, name: str) -> None:
        if name == "ledger.commit" and self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += name == "ledger.committed"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.ledger, name)
        return lambda *args, **named: self.loop.run_until_complete(method(*args, **named))

    def together(self, *calls: Any) -> list[Any]:
        """Await several calls at once; errors are returned."""

        async def main() -> list[Any]:
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.loop.run_until_complete(main())

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        """Return the rows of a statement."""
        return self.loop.run_until_complete(self.ledger._do(lambda db: db.execute(statement, parameters).fetchall(), "read"))

    def faults(self) -> list[str]:
        """Return what the queries for faults find."""
        return [f"{what}: {row}" for what, query in schema.FAULTS.items() for row in self.sql(query)]

    def kill(self, into: Path) -> Path:
        """Return a copy of the file as a killed process would leave it, and end this one."""
        into.mkdir()
        for file in self.ledger.path.parent.glob(f"{self.ledger.path.name}*"):
            if file.is_file():
                shutil.copyfile(file, into / file.name)
        self.end()
        return into / self.ledger.path.name

    def end(self) -> None:
        """Close it."""
        self.full = False
        self.close()
        self.loop.close()


@contextmanager
def held(path: Path) -> Iterator[Held]:
    """Give an open ledger."""
    one = Held(path)
    one.open()
    try:
        yield one
    finally:
        one.end()


def new_job(job_id: str = "j", **changes: Any) -> NewJob:
    """Return a job to submit."""
    return NewJob(**{"job_id": job_id, "workload": "w", "digest": "d" * 64, "submitted_s": 1.0, **changes})


def running(one: Held, job_id: str = "j", **changes: Any) -> int:
    """Submit a job, start it, and return its first pass."""
    one.submit([new_job(job_id, **changes)])
    one.move(job_id, "running")
    return int(one.begin_pass(job_id))


def leased(one: Held, unit_id: str = "u", number: int = 0, job_id: str = "j", pass_: int = 1) -> int:
    """Offer and lease a unit; return the epoch."""
    one.offer(job_id, number, unit_id, pass_)
    return int(one.lease(job_id, unit_id))


def commits(one: Held, unit_id: str, epoch: int, job_id: str = "j", **changes: Any) -> bool:
    """Commit a unit."""
    return bool(one.commit(job_id, unit_id, epoch, {"leaf": "ab" * 32}, **{"counts": {"tokens": 3}, **changes}))
