"""A home with a ledger, result files and sidecars, as a head leaves it; and copies of it."""

from __future__ import annotations

import json
import shutil

from dgpunet_dask.cluster import backups
from dgpunet_dask.jobs.units import result_name
from dgpunet_dask.stagehost.frames import write_frames
from tests.unit.jobs.ledgers import held, leased, new_job


def unit_of(number):
    return f"{number:032x}"


class Kept:
    """The jobs of one home, changed while no head runs."""

    def __init__(self, home):
        self.home = home

    def begin(self, *jobs, **changes):
        """Submit jobs together and start each."""
        with held(self.home.ledger) as one:
            one.submit([new_job(job, **changes) for job in jobs])
            for job in jobs:
                one.move(job, "running")
                one.begin_pass(job)
                self._save(one, job)

    def commit(self, job, *numbers):
        """Commit units, with their files."""
        with held(self.home.ledger) as one:
            pass_ = one.begin_pass(job)
            for number in numbers:
                epoch = leased(one, unit_of(number), number, job, pass_)
                folder = self.home.jobs / job / "results"
                folder.mkdir(parents=True, exist_ok=True)
                digest = write_frames(folder / result_name(unit_of(number), "leaf", epoch), [b"x%d" % number])
                assert one.commit(job, unit_of(number), epoch, {"leaf": digest}, counts={"tokens": 3})
            self._save(one, job)

    def fail(self, job, number):
        """Let an attempt at a unit fail."""
        with held(self.home.ledger) as one:
            epoch = leased(one, unit_of(number), number, job, one.begin_pass(job))
            assert one.fail(job, unit_of(number), epoch, cause="gpu-oom", evidence={})

    def end(self, job, state="cancelled"):
        with held(self.home.ledger) as one:
            one.move(job, state)
            self._save(one, job)

    def copy(self, at=1000.0):
        """Make a copy of the ledger, as a head does; return its offer."""
        self.home.backups.mkdir(mode=0o700, exist_ok=True)
        draft = self.home.backups / ".making-1"
        draft.mkdir()
        with held(self.home.ledger) as one:
            one.backup(draft / backups.LEDGER)
            told = {"at": at, "host": "pc", "boot": one.ledger.boot}
        return backups.make(draft, told, [file.read_text() for file in sorted(self.home.jobs.glob("*/job.json"))])

    def told(self):
        """Return each job's state and its committed units, and what is wrong."""
        with held(self.home.ledger) as one:
            assert one.faults() == []
            return {row.job_id: (row.state, sorted(int(name, 16) for (name,) in one.sql(_COMMITTED, row.job_id))) for row in one.jobs()}

    def attempts(self, job):
        with held(self.home.ledger) as one:
            return [(attempt.state, attempt.cause) for attempt in one.attempts(job)]

    def boots(self):
        with held(self.home.ledger) as one:
            return one.ledger.boot, max([0, *(epoch for (epoch,) in one.sql("SELECT epoch FROM attempts"))])

    def lose_results(self, job):
        shutil.rmtree(self.home.jobs / job / "results")

    def _save(self, one, job):
        folder = self.home.jobs / job
        folder.mkdir(exist_ok=True)
        (folder / "job.json").write_text(json.dumps({"version": 2, **one.job(job).to_json(), "leaves": ["leaf"]}))


_COMMITTED = "SELECT unit_id FROM units WHERE state IN ('committed', 'dropped') AND epoch IS NOT NULL AND job = (SELECT seq FROM jobs WHERE job_id = ?)"
