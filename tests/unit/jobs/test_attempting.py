"""From units to commits: leases, failures, copies and losses, over a real ledger."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed.scheduler import KilledWorker

from dgpunet_dask.errors import (
    DiskFull,
    ForeignMemory,
    JobFailed,
    StageFailed,
    StageHostLost,
    StageOutOfMemory,
    UnitsFailed,
    Unplaceable,
)
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.requeue import FOREIGN_RETRIES
from dgpunet_dask.jobs.task import Seen, StageRecord
from dgpunet_dask.jobs.watching import WATCH_S
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.stagehost.frames import read_frames, unpack
from tests.unit.jobs.ledgers import StandingClock
from tests.unit.jobs.runs import JOB, Outcome, Run, Start, plan_of, running


def lost(device: str = "a0", **more: Any) -> StageHostLost:
    return StageHostLost(stage="work", device=device, how="status 7", attempts=1, log="-", exit_status=7, **more)


def raised() -> StageFailed:
    return StageFailed(stage="work", kind="ValueError", why="-", traceback="Traceback: here")


def oom(charge: int = 1024, *, whole: bool = False) -> StageOutOfMemory:
    return StageOutOfMemory(
        stage="work", peak="-", charge="-", cards="-", attempts=1, device="a0", charge_mib=charge, peak_mib=None, card_mib=8192, whole=whole
    )


def on(number: int, *outcomes: Outcome) -> Callable[[Start], Outcome]:
    """Let the first starts of a unit's stage ``work`` come to these; all others go well."""

    def script(start: Start) -> Outcome:
        meant = start.stage == "work" and start.number == number and start.nth < len(outcomes)
        return outcomes[start.nth] if meant else None

    return script


def results(run: Run) -> list[Any]:
    found = []
    for file in sorted((run.record.folder / "results").glob("*.frames")):
        found += unpack(read_frames(file))
    return sorted(found)


async def meanwhile(condition: Callable[[], bool]) -> None:
    """Let everything else run until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # many things may have made it true
            await asyncio.sleep(0.001)


def copied(run: Run) -> list[int]:
    return [e["unit"] for e in run.record.events if e["kind"] == "attempt" and e["state"] == "copied"]


# Well


async def test_each_unit_commits_once_and_counts_are_added_up(tmp_path: Path) -> None:
    async with running(tmp_path, range(20)) as run:
        await run.runner.run()
        assert results(run) == list(range(20))
        assert run.record.counted.to_json() == {"total": 20, "done": 20, "reused": 0, "failed": 0, "attempts": 20}
        assert (await run.ledger.counts(JOB)).to_json() == run.record.counted.to_json()
        assert run.record.counts == {"read": 20, "last": 1, "seen": 20}
        assert all(future.released for future in run.dask.futures)
        assert not await run.faults()


async def test_a_job_without_units_is_done(tmp_path: Path) -> None:
    async with running(tmp_path, []) as run:
        await run.runner.run()
        assert run.record.counted.to_json() == {"total": 0, "done": 0, "reused": 0, "failed": 0, "attempts": 0}
        assert run.record.counts == {"last": 1}


async def test_equal_items_are_units_of_their_own_and_keep_their_places(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, ("work", False), gather=True)
    async with running(tmp_path, [7, 7, 8, 7], plan=plan) as run:
        await run.runner.run()
        assert run.agent.gathered == [7, 7, 8, 7]


# Failing


async def test_what_raises_ends_the_job_with_its_own_error(tmp_path: Path) -> None:
    async with running(tmp_path, range(50), on(1, raised())) as run:
        with pytest.raises(StageFailed):
            await run.runner.run()
        assert run.record.counted.failed == 1
        assert await run.states(1) == ["failed"]
        assert not any(unit.attempts for unit in run.units.values())


async def test_what_raises_is_counted_where_it_may_be_lost_and_its_traceback_is_logged(tmp_path: Path) -> None:
    async with running(tmp_path, range(9), on(1, raised()), allow_failed=1) as run:
        await run.runner.run()
        assert (run.record.counted.done, run.record.counted.failed) == (8, 1)
        assert [e["text"] for e in run.record.events if e["kind"] == "log"] == ["Traceback: here"]
        assert results(run) == [0, *range(2, 9)]
        assert not await run.faults()


async def test_poison_is_tried_on_another_host_and_the_job_goes_on_without_it(tmp_path: Path) -> None:
    async with running(tmp_path, range(9), on(1, lost("a0"), lost("b0"), None)) as run:
        with pytest.raises(UnitsFailed) as failed:
            await run.runner.run()
        assert failed.value.fields["units"] == [1]
        assert (run.record.counted.done, run.record.counted.failed) == (8, 1)
        first, again = (start for start in run.dask.starts if start.number == 1)
        assert "avoid" not in first.demand
        assert set(again.demand["avoid"]) == {"a0", "a1"}, "the whole host, since there is another"
        rows = [row for row in await run.ledger.attempts(JOB) if row.number == 1]
        assert [(row.state, row.device, row.host) for row in rows] == [("failed", "a0", "one"), ("failed", "b0", "two")]
        assert (rows[1].evidence or {})["exit_status"] == 7
        unit = await run.ledger.unit(JOB, rows[0].unit_id)
        assert unit is not None
        assert unit.state == "quarantined"
        assert not await run.faults()


async def test_what_kills_its_process_each_time_on_one_host_is_to_blame_and_its_attempts_are_counted(tmp_path: Path) -> None:
    def killed() -> StageHostLost:
        return StageHostLost(stage="work", device="a0", how="SIGKILL", attempts=1, log="-", exit_signal="SIGKILL")

    waits = asyncio.Event()
    async with running(tmp_path, range(5), lambda start: waits if start.number == 4 else None, could=lambda *_: False, allow_failed=1) as run:
        run.dask.device = "a0"
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 4)
        for nth in range(3):
            await meanwhile(lambda nth=nth: len(run.dask.starts) == 5 + nth)
            next(future for future in reversed(run.dask.futures) if future.start.number == 4).end(killed())
        await job
        rows = [row for row in await run.ledger.attempts(JOB) if row.number == 4]
        assert [row.cause for row in rows] == ["system", "data", "data"]
        assert "killed by SIGKILL each of 3 times on one" in (rows[-1].evidence or {})["why"]
        (told,) = run.runner.attempting.failures.values()
        assert "given up after 3 attempt(s)" in told
        assert "ended (SIGKILL) during 3 attempt(s)" in told


async def test_where_there_is_no_other_host_another_card_will_do_and_else_the_same(tmp_path: Path) -> None:
    def could(stage: Any, avoid: Any) -> bool:
        return not set(avoid) & {"a1"}

    async with running(tmp_path, range(2), on(1, lost("a0"), None), could=could) as run:
        await run.runner.run()
        assert set(run.dask.starts[-1].demand["avoid"]) == {"a0"}
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", range(2), on(1, lost("a0"), None), could=lambda *_: False) as run:
        await run.runner.run()
        assert "avoid" not in run.dask.starts[-1].demand


async def test_a_unit_under_which_shared_workers_died_is_tried_alone_before_it_is_blamed(tmp_path: Path) -> None:
    class Killed(KilledWorker):
        def __init__(self) -> None:
            super().__init__("work-1-j-1", None, 3)  # type: ignore[no-untyped-call]

    plan = plan_of(tmp_path, ("work", True))
    async with running(tmp_path, range(6), on(1, Killed(), None), plan=plan) as run:
        await run.runner.run()
        assert run.record.counted.failed == 0
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", range(6), on(1, Killed(), Killed(), None), plan=plan, allow_failed=1) as run:
        await run.runner.run()
        assert (run.record.counted.failed, run.record.counted.done) == (1, 5)
        assert await run.states(1) == ["failed", "failed"]


# Memory


async def test_what_no_device_could_take_is_no_start(tmp_path: Path) -> None:
    never = Unplaceable(what="stage work", summary="-", verdicts=[])
    async with running(tmp_path, [0], on(0, oom(), never, never, None)) as run:
        await run.runner.run()
        assert run.record.counted.attempts == 2
        assert (await run.ledger.counts(JOB)).attempts == 2
        assert await run.states(0) == ["failed", "lost", "lost", "committed"]
        assert not await run.faults()


async def test_a_unit_that_is_short_of_memory_is_held_after_the_policy_s_tries(tmp_path: Path) -> None:
    many = [oom(1024 * 2**n) for n in range(9)]
    async with running(tmp_path, [0], on(0, *many), on_oom=lambda _: OnOom(grow=2.0, max_mib=None, retries=2)) as run:
        with pytest.raises(StageOutOfMemory) as held:
            await run.runner.run()
        assert held.value.fields["attempts"] == 3
        assert run.record.counted.attempts == 3
        assert run.dask.starts[0].demand["vram"] != run.dask.starts[1].demand["vram"]


async def test_a_card_that_others_fill_is_tried_again_with_the_same_and_given_up_in_the_end(tmp_path: Path) -> None:
    foreign = ForeignMemory(stage="work", device="a0", free="-", charge="-", attempts=1)
    async with running(tmp_path, [0], on(0, foreign, None)) as run:
        await run.runner.run()
        assert run.record.counted.attempts == 2
        assert run.dask.starts[0].demand == run.dask.starts[1].demand
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", [0], on(0, *[foreign] * 20)) as run:
        with pytest.raises(ForeignMemory):
            await run.runner.run()
        assert len(run.dask.starts) == FOREIGN_RETRIES + 1


# Slow units


async def test_a_copy_that_is_first_commits_and_the_slow_one_is_let_go(tmp_path: Path) -> None:
    slow = asyncio.Event()
    async with running(tmp_path, range(3), on(1, slow)) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 2 and 1 in run.units)
        await run.placed("work", 1, "a0")
        run.units[1].copy_asked.set()
        await job
        assert copied(run) == [1]
        slow_start, copy = (start for start in run.dask.starts if start.number == 1)
        assert (slow_start.copy, copy.copy, copy.demand["avoid"]) == (False, True, ["a0"])
        assert run.dask.cancelled == [slow_start.key]
        assert await run.states(1) == ["beaten", "committed"]
        assert results(run) == [0, 1, 2]
        assert not await run.faults()


async def test_a_slow_unit_that_is_first_commits_and_its_copy_is_let_go(tmp_path: Path) -> None:
    slow, never = asyncio.Event(), asyncio.Event()
    async with running(tmp_path, range(3), on(1, slow, never)) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 2 and 1 in run.units)
        await run.placed("work", 1, "a0")
        run.units[1].copy_asked.set()
        await meanwhile(lambda: run.dask.nth["work", 1] == 2)
        slow.set()
        await job
        assert await run.states(1) == ["committed", "beaten"]
        assert not await run.faults()


async def test_of_two_that_end_at_once_one_commits_and_leaves_a_file(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with running(tmp_path, range(3), on(1, gate, gate)) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 2 and 1 in run.units)
        await run.placed("work", 1, "a0")
        run.units[1].copy_asked.set()
        await meanwhile(lambda: run.dask.nth["work", 1] == 2)
        gate.set()
        await job
        assert sorted(await run.states(1)) in (["beaten", "committed"], ["committed", "stale"])
        assert results(run) == [0, 1, 2]
        assert run.record.counted.done == 3
        assert not await run.faults()


@pytest.mark.parametrize("first", [0, 1], ids=["the slow one", "its copy"])
async def test_of_two_of_which_one_fails_the_other_goes_on(tmp_path: Path, first: int) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    def script(start: Start) -> Outcome:
        return gates[start.nth] if start.number == 1 and start.nth < 2 else None

    async with running(tmp_path, range(2), script) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 1 and 1 in run.units)
        await run.placed("work", 1, "a0")
        run.units[1].copy_asked.set()
        await meanwhile(lambda: run.dask.nth["work", 1] == 2)
        next(f for f in run.dask.futures if f.start.number == 1 and f.start.nth == first).end(lost())
        await meanwhile(lambda: any(e["kind"] == "attempt" and e["state"] == "failed" for e in run.record.events))
        gates[1 - first].set()
        await job
        assert sorted(await run.states(1)) == ["committed", "failed"]
        assert run.record.counted.failed == 0
        assert not await run.faults()


@pytest.mark.parametrize(("elsewhere", "copies"), [(True, 1), (False, 0)], ids=["another device", "no other device"])
async def test_a_unit_far_over_its_estimate_is_copied_once_where_another_device_could_take_it(
    tmp_path: Path, elsewhere: bool, copies: int
) -> None:
    slow, never, clock, learned = asyncio.Event(), asyncio.Event(), StandingClock(), Learning()
    seen = Seen("a0", 1.0, 1, 0.1, 0.2, None, 1024)
    learned.unit(Demand(vram="1GiB", stage="work"), StageRecord(1, {}, 1, "a0", 0.1, seen))
    async with running(tmp_path, range(3), on(1, slow, never), clock=clock, learned=learned, could=lambda *_: elsewhere) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 2 and 1 in run.units)
        await run.placed("work", 1, "a0")
        rounds = run.slept.count(WATCH_S)
        await meanwhile(lambda: run.slept.count(WATCH_S) > rounds + 3)
        assert not copied(run), "it is not late"
        clock.now += 10.0
        await meanwhile(lambda: run.slept.count(WATCH_S) > rounds + 20)
        assert copied(run) == [1] * copies
        slow.set()
        await job
        assert run.record.counted.failed == 0


# Loss


async def test_a_lost_scheduler_costs_no_unit(tmp_path: Path) -> None:
    gate = asyncio.Event()

    def script(start: Start) -> Outcome:
        return gate if start.nth == 0 else None

    async with running(tmp_path, range(4), script) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: len(run.dask.starts) == 4)
        run.dask.die()
        await job
        assert (run.record.counted.done, run.record.counted.failed) == (4, 0)
        assert {await_ for n in range(4) for await_ in await run.states(n)} == {"lost", "committed"}
        assert not await run.faults()


@pytest.mark.parametrize("fails", [True, False], ids=["alone", "beside the slow one"])
async def test_a_lost_scheduler_costs_no_unit_that_has_a_copy(tmp_path: Path, fails: bool) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    def script(start: Start) -> Outcome:
        return gates[start.nth] if start.number == 1 and start.nth < 2 else None

    async with running(tmp_path, range(2), script) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 1 and 1 in run.units)
        await run.placed("work", 1, "a0")
        run.units[1].copy_asked.set()
        await meanwhile(lambda: run.dask.nth["work", 1] == 2)
        if fails:
            next(f for f in run.dask.futures if f.start.number == 1).end(lost())
            await meanwhile(lambda: any(e["kind"] == "attempt" and e["state"] == "failed" for e in run.record.events))
        run.dask.die()
        await job
        assert (run.record.counted.done, run.record.counted.failed) == (2, 0)
        assert await run.states(1) == ["failed" if fails else "lost", "lost", "committed"]
        assert not await run.faults()


async def test_a_task_that_is_placed_again_has_another_lease(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with running(tmp_path, [0], on(0, gate)) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: len(run.dask.starts) == 1)
        await run.placed("work", 0, "a0")
        await run.placed("work", 0, "b0")
        gate.set()
        await job
        assert await run.states(0) == ["lost", "committed"]
        assert run.record.counted.attempts == 2


async def test_the_next_head_runs_only_what_is_not_committed_and_drops_what_is_gone(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with running(tmp_path, [1, 2, 2, 3], on(3, gate)) as run:
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 3)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    plan = plan_of(tmp_path, ("work", False), gather=True)
    async with running(tmp_path, [2, 3, 4, 2], again=True, plan=plan) as run:
        await run.runner.run()
        assert sorted(start.number for start in run.dask.starts) == [1, 2]
        assert run.agent.gathered == [2, 3, 4, 2]
        assert (run.record.counted.done, run.record.counted.reused, run.record.counted.total) == (4, 0, 4)
        assert run.record.counts["seen"] == 4, "what the committed units counted is counted again"
        assert not await run.faults()


async def test_what_each_device_did_under_an_earlier_head_is_told(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with running(tmp_path, range(4), on(3, gate)) as run:
        run.dask.device = "a0"
        job = asyncio.create_task(run.runner.run())
        await meanwhile(lambda: run.record.counted.done == 3)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    async with running(tmp_path, range(4), again=True) as run:
        run.dask.device = "a0"
        await run.runner.run()
        assert (run.record.tally.devices["a0"], run.record.tally.seconds["a0"], run.record.tally.stages["work"]) == (4, 2.0, 4)


async def test_a_committed_unit_whose_file_is_gone_is_computed_again(tmp_path: Path) -> None:
    async with running(tmp_path, range(3)) as run:
        await run.runner.run()
        next((tmp_path / "results").glob("*.frames")).unlink()
    async with running(tmp_path, range(3), again=True) as run:
        await run.runner.run()
        assert len(run.dask.starts) == 1
        assert results(run) == [0, 1, 2]
        assert not await run.faults()


# Cancelled, and a full disk


@pytest.mark.parametrize("where", ["publish", "call", "gather"])
async def test_a_job_that_is_cancelled_leaves_no_task_and_no_unit_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    there, gate = asyncio.Event(), asyncio.Event()

    async def stand(*_: Any) -> Any:
        there.set()
        await asyncio.Event().wait()

    def script(_: Start) -> Outcome:
        if where != "call":
            return None
        there.set()
        return gate

    plan = plan_of(tmp_path, ("work", False), gather=True)
    async with running(tmp_path, range(3), script, plan=plan) as run:
        if where == "publish":
            monkeypatch.setattr("dgpunet_dask.jobs.attempting.publish", stand)
        if where == "gather":
            monkeypatch.setattr(run.runner, "_gather", stand)
        job = asyncio.create_task(run.runner.run())
        await asyncio.wait_for(there.wait(), 10)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert not any(unit.attempts for unit in run.units.values())
        assert all(future.done() for future in run.dask.futures)
        await run.ledger.move(JOB, "cancelled")
        assert not [row for row in await run.ledger.attempts(JOB) if row.state == "leased"]
        assert not await run.faults()


async def test_no_unit_fails_because_its_head_may_open_no_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, range(3)) as run:
        ends, short = run.runner.flights.ends, [1, 2, 3]

        async def late(attempt: Any) -> Any:
            if short:
                short.pop()
                raise OSError(errno.EMFILE, "Too many open files")
            return await ends(attempt)

        monkeypatch.setattr(run.runner.flights, "ends", late)
        await run.runner.run()
        assert run.record.counted.done == 3
        assert not short


async def test_a_ledger_without_room_is_waited_for_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, range(3)) as run:
        commit, full = run.ledger.commit, [1, 2, 3]

        async def late(*args: Any, **more: Any) -> Any:
            if full:
                full.pop()
                raise DiskFull(path="ledger.db")
            return await commit(*args, **more)

        monkeypatch.setattr(run.ledger, "commit", late)
        await run.runner.run()
        assert (run.record.counted.done, run.record.counted.attempts) == (3, 3)


async def test_more_units_than_a_user_may_have_end_the_job(tmp_path: Path) -> None:
    def check(units: int) -> None:
        if units > 5:
            raise JobFailed(why="too many")

    async with running(tmp_path, range(50), check_units=check) as run:
        with pytest.raises(JobFailed, match="too many"):
            await run.runner.run()
        assert not any(unit.attempts for unit in run.units.values())
