"""Whatever is asked of a ledger, in whatever order, with its head killed in between: it does what the model does, and nothing durable is lost."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dgpunet_dask.errors import DiskFull, NoSuchJob
from dgpunet_dask.jobs import ledger as module
from dgpunet_dask.jobs.states import JOB_STATES, boot_of
from tests.unit.jobs.ledger_model import Model, Refused
from tests.unit.jobs.ledgers import Held, new_job

#: Most is asked of one job, so that much happens to it.
JOBS = st.sampled_from(["j", "j", "j", "k"])
UNITS = st.sampled_from(["u", "v", "w"])
PLACES = {"u": 0, "v": 1, "w": 2}
#: Which of the epochs that were given so far: those that live come first, then the latest.
EPOCHS = st.one_of(st.just(0), st.just(0), st.integers(0, 6))

#: What is on the disk is known from the transactions, so the disk itself may be memory, which is faster.
MEMORY = Path("/dev/shm")


class LedgerMachine(RuleBasedStateMachine):
    """A ledger beside its model. `durable` is the model as it was when the last transaction was written."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "LAG_S", 3600.0)  # so that it is known what is on the disk
        self.opened = 0
        self.model = Model()
        self.epochs: list[tuple[int, str, str]] = []
        self._open(self.folder / "ledger.db")
        self.durable = copy.deepcopy(self.model)
        self.start("j")

    def _open(self, path: Path) -> None:
        self.one = Held(path)
        assert self.one.open() == self.model.boot

    def _do(self, manner: str, said: Callable[[Model], Any], done: Callable[[], Any]) -> Any:
        """Let the model and the ledger do the same and compare; return the answer, None where both refuse."""
        after = copy.deepcopy(self.model)
        try:
            expected = said(after)
        except Refused:
            with pytest.raises((ValueError, NoSuchJob)):
                done()
            if manner == "long":
                self.durable = copy.deepcopy(self.model)  # what was open is written before
            return None
        answer = done()
        if expected is not None:
            assert answer == expected
        self.model = after
        if manner != "lazy":
            self.durable = copy.deepcopy(after)
        return answer

    def _lease_of(self, back: int) -> tuple[int, str, str]:
        live = {epoch for epoch, one in self.model.tries.items() if one.state in {"leased", "unknown"}}
        ordered = sorted(self.epochs, key=lambda given: (given[0] in live, given[0]), reverse=True)
        return ordered[back % len(ordered)]

    def _move(self, job: str, state: str) -> None:
        error = None if state in {"done", "queued", "running"} else {"code": state}
        self._do("move", lambda m: m.move(job, state), lambda: self.one.move(job, state, error=error) and None)

    def _offer(self, job: str, unit: str, number: int, behind: int = 0) -> None:
        pass_ = self.model.jobs[job].passes - behind if job in self.model.jobs else 1
        self._do("lazy", lambda m: m.offer(job, number, unit, pass_), lambda: self.one.offer(job, number, unit, pass_).state)

    @rule(job=JOBS)
    def start(self, job: str) -> None:
        """Bring a job to where its units can be leased, from wherever it is."""
        if job not in self.model.jobs:
            self._do("submit", lambda m: m.submit(job), lambda: self.one.submit([new_job(job)]))
        if self.model.jobs[job].state == "done":
            self._do("long", lambda m: m.forget(job), lambda: self.one.forget(job))
            return
        if self.model.jobs[job].state in {"failed", "cancelled", "lost"}:
            self._move(job, "queued")
        if self.model.jobs[job].state == "queued":
            self._move(job, "running")
        if self.model.jobs[job].passes == 0:
            self.begin_pass(job)
        for unit, number in PLACES.items():
            if (job, unit) not in self.model.units:
                self._offer(job, unit, number)

    @rule(job=JOBS)
    def submit(self, job: str) -> None:
        self._do("submit", lambda m: m.submit(job), lambda: self.one.submit([new_job(job)]))

    @rule(job=st.sampled_from(["j", "k", "k"]), state=st.sampled_from(JOB_STATES))
    def move(self, job: str, state: str) -> None:
        self._move(job, state)

    @rule(job=st.sampled_from(["j", "k", "k", "k"]))
    def forget(self, job: str) -> None:
        self._do("long", lambda m: m.forget(job), lambda: self.one.forget(job))

    @rule(job=JOBS)
    def begin_pass(self, job: str) -> None:
        self._do("lazy", lambda m: m.begin_pass(job), lambda: self.one.begin_pass(job))

    @rule(job=JOBS, unit=UNITS)
    def offer(self, job: str, unit: str) -> None:
        self._offer(job, unit, PLACES[unit])

    @rule(job=JOBS, unit=UNITS, number=st.integers(0, 3), behind=st.sampled_from([0, 1]))
    def offer_oddly(self, job: str, unit: str, number: int, behind: int) -> None:
        self._offer(job, unit, number, behind)

    @rule(job=JOBS, more=st.sampled_from([0, 0, 0, 1]))
    def end_pass(self, job: str, more: int) -> None:
        pass_ = self.model.jobs[job].passes if job in self.model.jobs else 1
        total = more + sum(key[0] == job and unit.pass_ == pass_ for key, unit in self.model.units.items())
        self._do("long", lambda m: m.end_pass(job, pass_, total), lambda: self.one.end_pass(job, pass_, total))

    @rule(unit=UNITS, results=st.sampled_from(["ab", "cd"]), adopted=st.booleans())
    def take_through(self, unit: str, results: str, adopted: bool) -> None:
        """Lease a unit as a runner does, and commit it."""
        self.start("j")
        given = len(self.epochs)
        self.lease("j", unit, speculative=False)
        if len(self.epochs) > given:
            self.placed(0)
            self.commit(0, results, adopted)

    @rule(unit=UNITS)
    def race(self, unit: str) -> None:
        """Lease a unit twice."""
        self.start("j")
        self.lease("j", unit, speculative=False)
        self.lease("j", unit, speculative=True)

    @rule(job=JOBS, unit=UNITS, speculative=st.sampled_from([False, False, True]))
    def lease(self, job: str, unit: str, speculative: bool) -> None:
        epoch = self.one.ledger._epoch + 1
        given = self._do(
            "lazy", lambda m: m.lease(job, unit, epoch, speculative=speculative), lambda: self.one.lease(job, unit, speculative=speculative)
        )
        if given is not None:
            assert given == epoch
            assert all(epoch > before for before, *_ in self.epochs)
            self.epochs.append((given, job, unit))

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS, results=st.sampled_from(["ab", "cd"]), adopted=st.booleans())
    def commit(self, back: int, results: str, adopted: bool) -> None:
        epoch, job, unit = self._lease_of(back)
        live = epoch in self.model.tries and self.model.tries[epoch].state == "leased"
        told = self._do(
            "commit", lambda m: m.commit(job, unit, epoch, results, adopted=adopted),
            lambda: self.one.commit(job, unit, epoch, {"leaf": results}, counts={}, adopted=adopted),
        )  # fmt: skip
        if live:
            assert told
            assert boot_of(epoch) == self.model.boot

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS)
    def placed(self, back: int) -> None:
        epoch, job, unit = self._lease_of(back)
        self._do("lazy", lambda m: m.placed(job, unit, epoch), lambda: self.one.placed(job, unit, epoch, "h/gpu0", "h"))

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS, to=st.sampled_from(["ready", "failed", "quarantined"]))
    def fail(self, back: int, to: str) -> None:
        epoch, job, unit = self._lease_of(back)
        self._do("fail", lambda m: m.fail(job, unit, epoch, to), lambda: self.one.fail(job, unit, epoch, cause="user", evidence={}, to=to))

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS)
    def lost(self, back: int) -> None:
        epoch, job, unit = self._lease_of(back)
        self._do("lazy", lambda m: m.lost(job, unit, epoch), lambda: self.one.lost(job, unit, epoch, evidence={}))

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS)
    def damaged(self, back: int) -> None:
        epoch, job, unit = self._lease_of(back)
        self._do("damaged", lambda m: m.damaged(job, unit, epoch), lambda: self.one.damaged(job, unit, epoch, evidence={}))

    @precondition(lambda self: self.epochs)
    @rule(back=EPOCHS)
    def disk_is_full(self, back: int) -> None:
        epoch, job, unit = self._lease_of(back)
        if (job, unit) not in self.model.units:
            return
        self.one.full = True
        with pytest.raises(DiskFull):
            self.one.commit(job, unit, epoch, {"leaf": "ef"}, counts={})
        self.one.full = False

    @rule()
    def closed_and_opened(self) -> None:
        self.one.end()
        self.model.reopened()
        self._open(self.one.ledger.path)
        self.durable = copy.deepcopy(self.model)

    @rule()
    def killed_and_opened(self) -> None:
        self.opened += 1
        left = self.one.kill(self.folder / str(self.opened))
        self.model = copy.deepcopy(self.durable)
        self.model.reopened()
        self._open(left)
        self.durable = copy.deepcopy(self.model)

    @invariant()
    def is_as_the_model_says(self) -> None:
        if not hasattr(self, "one"):
            return
        assert self.one.faults() == []
        assert {row.job_id: (row.state, row.tries, row.passes, row.total) for row in self.one.jobs()} == {
            job_id: (job.state, job.tries, job.passes, job.total) for job_id, job in self.model.jobs.items()
        }
        rows = self.one.sql("SELECT job_id, unit_id, number, pass, u.state, epoch FROM units u JOIN jobs j ON j.seq = u.job")
        assert {(job, unit): tuple(rest) for job, unit, *rest in rows} == {
            key: (unit.number, unit.pass_, unit.state, unit.committed) for key, unit in self.model.units.items()
        }
        assert {(e, s, bool(p), bool(b)) for e, s, p, b in self.one.sql("SELECT epoch, state, slot, started FROM attempts")} == {
            (epoch, one.state, one.speculative, one.started) for epoch, one in self.model.tries.items()
        }
        for job_id, job in self.model.jobs.items():
            mine = [unit.state for key, unit in self.model.units.items() if key[0] == job_id]
            starts = [one for one in self.model.tries.values() if one.unit[0] == job_id and one.started and one.state != "adopted"]
            found = self.one.counts(job_id)
            assert (found.done, found.failed) == (mine.count("committed"), mine.count("failed") + mine.count("quarantined"))
            assert (found.attempts, found.reused) == (len(starts), job.reused)

    def teardown(self) -> None:
        if hasattr(self, "one"):
            self.one.end()
            self.patch.undo()
            shutil.rmtree(self.folder)


def size(examples: int, steps: int) -> settings:
    return settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck))


TestLedger = LedgerMachine.TestCase
TestLedger.settings = size(15, 30)


@pytest.mark.long
@pytest.mark.timeout(900)
class TestLedgerForLonger(LedgerMachine.TestCase):
    """The same, with more and longer histories."""

    settings = size(300, 60)
