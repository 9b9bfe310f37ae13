"""A head that is killed while it writes: all that it acknowledged is there, and no unit has two commits."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from dgpunet_dask.jobs.states import boot_of
from dgpunet_dask.testing.history import check_history
from tests.helpers import ROOT
from tests.unit.jobs.ledgers import held

#: Submits jobs and takes their units through, eight at a time, and says on stdout what it was told.
WRITER = """
import asyncio, sys
from pathlib import Path
from dgpunet_dask.clock import SystemClock
from dgpunet_dask.jobs.ledger import Ledger, NewJob

def say(*words):
    print(*words, flush=True)

async def unit(ledger, job, number, pass_):
    row = await ledger.offer(job, number, f"{number:032x}", pass_)
    if row.state == "committed":
        return say("found", job, row.unit_id, row.epoch)
    epoch = await ledger.lease(job, row.unit_id)
    if number % 5 == 0:
        await ledger.lost(job, row.unit_id, epoch, evidence={})
        epoch = await ledger.lease(job, row.unit_id)
    if await ledger.commit(job, row.unit_id, epoch, {"leaf": "ab"}, counts={}):
        say("committed", job, row.unit_id, epoch)

async def work(ledger, job):
    pass_ = await ledger.begin_pass(job)
    for first in range(0, 40, 8):
        await asyncio.gather(*(unit(ledger, job, n, pass_) for n in range(first, first + 8)))
    await ledger.end_pass(job, pass_, 40)
    await ledger.move(job, "done")
    say("done", job)

async def main():
    ledger = Ledger(Path(sys.argv[1]), SystemClock())
    say("open", await ledger.open())
    for row in await ledger.jobs():
        if row.state == "queued":
            await ledger.move(row.job_id, "running")
        if row.state in {"queued", "running"}:
            await work(ledger, row.job_id)
    for number in range(1000):
        job = f"{ledger.boot}-{number}"
        await ledger.submit([NewJob(job_id=job, workload="w", digest="d")])
        say("submitted", job)
        await ledger.move(job, "running")
        await work(ledger, job)

asyncio.run(main())
"""


def killed_after(path: Path, lines: int) -> list[list[str]]:
    """Start a writer, kill it once it has said so many lines, and return all that it had said by then."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    return [line.split() for line in said if line.endswith("\n")]


@pytest.mark.parametrize("seed", range(2))
def test_what_a_killed_head_acknowledged_is_there(tmp_path: Path, seed: int) -> None:
    chance, path = random.Random(seed), tmp_path / "ledger.db"
    acknowledged: list[list[str]] = []
    for _ in range(4):
        acknowledged += killed_after(path, chance.randint(2, 150))
    faults = check_history(path, tmp_path)  # the writer makes no files, and one job is always under way
    assert [fault for fault in faults if "it has no end" not in fault and "cannot be read" not in fault] == []
    with held(path) as one:
        assert one.ledger.set_aside is None
        assert one.faults() == []
        jobs = {row.job_id: row for row in one.jobs()}
        units = {(job_id, unit.unit_id): unit for job_id in jobs for unit in one.committed(job_id)}
        boots = [int(words[1]) for words in acknowledged if words[0] == "open"]
        assert boots == sorted(set(boots))
        assert one.ledger.boot > boots[-1]
        for kind, name, *rest in acknowledged:
            if kind == "submitted":
                assert name in jobs
            elif kind == "done":
                assert jobs[name].state == "done"
            elif kind == "committed":
                assert one.sql("SELECT epoch FROM units u JOIN jobs j ON j.seq = u.job WHERE job_id = ? AND unit_id = ?", name, rest[0]) == [
                    (int(rest[1]),)
                ]
        told = [(job, unit) for kind, job, *rest in acknowledged if kind == "committed" for unit in rest[:1]]
        assert len(told) == len(set(told))
        assert all(boot_of(unit.epoch) < one.ledger.boot for unit in units.values())
