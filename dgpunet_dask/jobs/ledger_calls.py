"""What the ledger can be asked. `jobs.ledger` does it; see there for when it answers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from dgpunet_dask.clock import Clock
from dgpunet_dask.jobs import lease_steps, ledger_steps
from dgpunet_dask.jobs.ledger_steps import Db
from dgpunet_dask.jobs.rows import AttemptRow, JobRow, NewJob, Restored, UnitRow
from dgpunet_dask.jobs.states import UnitState, boot_of
from dgpunet_dask.model.job import JobState, UnitCounts

T = TypeVar("T")
#: ``durable``: answered once it is on the disk. ``lazy``: answered at once, on the disk a little later. ``read``: changes nothing.
#: ``long``: durable, and in the thread, since it may touch very many rows. ``outside``: in the thread, between two transactions.
Manner = Literal["durable", "lazy", "read", "long", "outside"]


class LedgerCalls(ABC):
    """The operations of a ledger, by name."""

    fresh: bool
    boot: int
    _clock: Clock

    @abstractmethod
    async def _do(self, step: Callable[[Db], T], manner: Manner = "durable") -> T:
        """Do one operation."""

    @abstractmethod
    def _next_epoch(self) -> int:
        """Return an epoch that was never given."""

    @abstractmethod
    def _boot_again(self, db: Db, number: int) -> None:
        """Go on as the boot of that number."""

    # Jobs

    async def submit(self, jobs: Sequence[NewJob]) -> list[JobRow]:
        """Accept jobs that belong together, all or none.

        The same submission again, by the key of the same owner, gives the jobs that it made the first time.

        Raises
        ------
        KeyReused
            If the key came with something else before.
        NoSuchJob
            If one of `after` is not known.
        """
        return await self._do(lambda db: ledger_steps.submit(db, jobs))

    async def job(self, job_id: str) -> JobRow | None:
        """Return a job, ``None`` where there is none of that id."""
        return await self._do(lambda db: ledger_steps.job(db, job_id), "read")

    async def jobs(self) -> list[JobRow]:
        """Return all jobs, in the order in which they were accepted."""
        return await self._do(ledger_steps.jobs, "read")

    async def move(
        self, job_id: str, state: JobState, *, error: Mapping[str, Any] | None = None, exit_code: int = 0, metrics: Mapping[str, Any] | None = None
    ) -> JobRow:
        """Take a job to another state; where it ends, its open attempts are lost and their units ready. `metrics` stay where not given."""
        step = functools.partial(ledger_steps.move, error=error, exit_code=exit_code, metrics=metrics)
        return await self._do(lambda db: step(db, job_id, state, self._clock.wall()))

    async def again(self, job_id: str, *, error: Mapping[str, Any], exit_code: int) -> JobRow:
        """Take a job that runs and has failed to its next try, in one step: no head that is killed meanwhile leaves it failed."""
        return await self._do(lambda db: ledger_steps.again(db, job_id, self._clock.wall(), error=error, exit_code=exit_code))

    async def forget(self, job_id: str) -> None:
        """Remove a job that has ended and all that is known of it; its files are the caller's."""
        await self._do(lambda db: ledger_steps.forget(db, job_id, self._clock.wall()), "long")

    # Units

    async def begin_pass(self, job_id: str) -> int:
        """Begin to run the job's source from its beginning; return the number of the pass, for `offer`."""
        return await self._do(lambda db: ledger_steps.begin_pass(db, job_id), "lazy")

    async def offer(self, job_id: str, number: int, unit_id: str, pass_: int) -> UnitRow:
        """Take a unit that the source gave, and return what is known of it.

        What is committed comes back committed; what failed in an earlier try of the job comes back ready, in this one failed. Parameters: its
        place in this pass from 0, its id, and the pass.
        """
        return await self._do(lambda db: ledger_steps.offer(db, job_id, number, unit_id, pass_), "lazy")

    async def end_pass(self, job_id: str, pass_: int, total: int) -> None:
        """Note that the source has ended after `total` units. Units that it did not give in this pass are dropped."""
        await self._do(lambda db: ledger_steps.end_pass(db, job_id, pass_, total, self._clock.wall()), "long")

    async def unit(self, job_id: str, unit_id: str) -> UnitRow | None:
        """Return a unit, ``None`` where there is none of that id."""
        return await self._do(lambda db: ledger_steps.unit(db, job_id, unit_id), "read")

    async def committed(self, job_id: str, *, after: int = -1, limit: int = -1) -> list[UnitRow]:
        """Return the committed units of the last pass by number: those above `after`, at most `limit` (negative: all)."""
        return await self._do(lambda db: ledger_steps.committed(db, job_id, after, limit), "outside" if limit < 0 else "read")

    async def counts(self, job_id: str) -> UnitCounts:
        """Return how many units of the job are where. `attempts` counts every start, one whose call a later start took over with that; not leases under which nothing ran."""
        return await self._do(lambda db: ledger_steps.counts(db, job_id), "read")

    # Leases

    async def lease(self, job_id: str, unit_id: str, *, speculative: bool = False) -> int:
        """Give a new attempt of the unit a lease and return its epoch. A unit has at most two that live, one of them speculative."""
        epoch = self._next_epoch()
        return await self._do(
            lambda db: lease_steps.lease(db, job_id, unit_id, epoch, self._clock.wall(), speculative=speculative), "lazy"
        )

    async def placed(self, job_id: str, unit_id: str, epoch: int, device: str | None, host: str | None = None, *, stage: str | None = None) -> None:
        """Note that an attempt runs, and where. From now on it counts as a start; a lease that ends before it does costs nothing."""
        await self._do(lambda db: lease_steps.placed(db, job_id, unit_id, epoch, stage, device, host), "lazy")

    async def commit(
        self, job_id: str, unit_id: str, epoch: int, results: Mapping[str, str], *,
        counts: Mapping[str, Any], device: str | None = None, host: str | None = None, seconds: float | None = None, adopted: bool = False,
        spent: Mapping[str, tuple[str | None, float]] | None = None,
    ) -> bool:  # fmt: skip
        """Make an attempt's results the unit's.

        Parameters
        ----------
        results
            The digest (hex) of each leaf's file, which is durable by now.
        counts
            What the stages counted.
        seconds
            How long its calls ran.
        adopted
            Whether its result came from a call that an earlier attempt of the unit had begun.
        spent
            By stage, where its call ran and for how many seconds; `spent` adds it up.

        Returns
        -------
        bool
            False if its lease has ended: the results count for nothing, and their files are to be removed.
        """
        step = functools.partial(lease_steps.commit, counts=counts, device=device, host=host, seconds=seconds, adopted=adopted, spent=spent)
        return await self._do(lambda db: step(db, job_id, unit_id, epoch, results, self._clock.wall()))

    async def fail(
        self, job_id: str, unit_id: str, epoch: int, *,
        cause: str, evidence: Mapping[str, Any], device: str | None = None, host: str | None = None, to: UnitState = "ready", ran: bool = True,
    ) -> bool:  # fmt: skip
        """End an attempt with an error. The unit goes to the state `to` unless another of its leases lives. False: it had ended before.

        An attempt under which nothing `ran`, since no device could take it, is lost and no start.
        """
        step = functools.partial(lease_steps.fail, cause=cause, evidence=evidence, device=device, host=host, to=to, ran=ran)
        return await self._do(lambda db: step(db, job_id, unit_id, epoch, self._clock.wall()))

    async def lost(self, job_id: str, unit_id: str, epoch: int, *, cause: str | None = None, evidence: Mapping[str, Any]) -> bool:
        """End an attempt whose scheduler, worker or head is gone; its unit is ready again. False: it had ended before."""
        return await self._do(
            lambda db: lease_steps.lost(db, job_id, unit_id, epoch, self._clock.wall(), cause=cause, evidence=evidence), "lazy"
        )

    async def damaged(self, job_id: str, unit_id: str, epoch: int, *, evidence: Mapping[str, Any]) -> bool:
        """Take back a commit whose files are gone or damaged; its unit is ready again. False: that is not its commit, or its job is done."""
        return await self._do(lambda db: lease_steps.damaged(db, job_id, unit_id, epoch, self._clock.wall(), evidence=evidence))

    async def unknown(self) -> list[AttemptRow]:
        """Return the attempts that earlier heads leased and whose end nobody knows, the oldest first."""
        return await self._do(lease_steps.unknown, "read")

    async def attempts(self, job_id: str, *, unit_id: str | None = None, limit: int = 1000) -> list[AttemptRow]:
        """Return the last attempts of the job, or of one unit, the oldest first."""
        return await self._do(lambda db: lease_steps.attempts(db, job_id, unit_id, limit), "read")

    async def spent(self, job_id: str) -> dict[str, tuple[int, float]]:
        """Return, for each device, how many calls of the job's committed units ran there, and for how many seconds: under whatever head."""
        return await self._do(lambda db: lease_steps.spent(db, job_id), "outside")

    async def events(self, job_id: str | None = None, *, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the last events of the job, or of all, the oldest first: moves of jobs, boots, refused commits, units given up."""
        return await self._do(lambda db: ledger_steps.events(db, job_id, limit), "read")

    # Made again

    async def restore(self, plan: Restored) -> None:
        """Put in what `jobs.rebuild` found, into a ledger that has no jobs; all of it, or nothing.

        A boot begins that is later than all whose results were found: the number of the last one may have been lost with the ledger.
        """

        def step(db: Db) -> None:
            restore_steps(db, plan, self._clock.wall())
            if boot_of(plan.last_epoch) >= self.boot:
                self._boot_again(db, boot_of(plan.last_epoch) + 1)

        await self._do(step, "long")
        self.fresh = False


def restore_steps(db: Db, plan: Restored, now: float) -> None:
    """Put the jobs and committed units of `plan` in."""
    with lease_steps.without_boots(db):
        for row in plan.jobs:
            ledger_steps.restore_job(db, row)
            for number, unit in enumerate(plan.units.get(row.job_id, ())):
                lease_steps.restore_commit(db, row.job_id, number, unit.unit_id, unit.epoch, unit.results, now)
            ledger_steps.restore_end(db, row)
    ledger_steps.event(db, now, "rebuilt", None, jobs=len(plan.jobs), units=sum(map(len, plan.units.values())))
