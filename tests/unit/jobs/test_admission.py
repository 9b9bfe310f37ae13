"""Whose job begins next. A crowd is played through: jobs begin and end, and everybody gets a turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.jobs.admission import RUNNING_BEYOND, RUNNING_MAX, Candidate, hopeless, startable

Owners = list[str | None]
owners = st.lists(st.sampled_from(["ann", "bob", "cy", None]), max_size=60)


def waiting(given_: Owners, after: tuple[str, ...] = ()) -> list[Candidate]:
    return [Candidate(job_id=f"{n:03}", owner=owner, after=after) for n, owner in enumerate(given_)]


@given(owners, owners)
def test_no_more_run_than_there_is_room_for(given_: Owners, running: Owners) -> None:
    begun = startable(waiting(given_), running, {})
    owner_of = {job.job_id: job.owner for job in waiting(given_)}
    at_work = Counter(running)
    for job_id in begun:
        owner = owner_of[job_id]
        assert at_work.total() < RUNNING_MAX or (at_work[owner] == 0 and at_work.total() < RUNNING_MAX + RUNNING_BEYOND)
        at_work[owner] += 1
    left = [job.owner for job in waiting(given_) if job.job_id not in begun]
    if left:
        assert at_work.total() >= RUNNING_MAX, "nobody waits while there is room"
        assert at_work.total() >= RUNNING_MAX + RUNNING_BEYOND or all(at_work[owner] for owner in left), "who has none running starts"


@given(owners)
def test_each_user_s_jobs_begin_in_the_order_of_acceptance(given_: Owners) -> None:
    jobs = waiting(given_)
    begun = startable(jobs, (), {})
    for owner in set(given_):
        mine = [job.job_id for job in jobs if job.owner == owner]
        assert [job_id for job_id in begun if job_id in mine] == mine[: sum(job_id in mine for job_id in begun)]


@given(owners, st.randoms(use_true_random=False), st.integers(1, 3))
def test_nobody_waits_for_ever_beside_one_who_submits_without_end(given_: Owners, random: object, flood: int) -> None:
    """A user who always has more jobs than run: the others' jobs all get their turn while his go on."""
    jobs = waiting(given_)
    running: dict[str, str | None] = {}
    pending = list(jobs)
    flooded = 0
    for _ in range(len(jobs) * (flood + 1) + 1):
        while sum(job.owner == "flood" for job in pending) < RUNNING_MAX * flood:
            pending.append(Candidate(job_id=f"f{flooded:05}", owner="flood"))
            flooded += 1
        begun = startable(pending, running.values(), {})
        running |= {job.job_id: job.owner for job in pending if job.job_id in begun}
        pending = [job for job in pending if job.job_id not in running]
        if running:
            del running[random.choice(sorted(running))]  # type: ignore[attr-defined]  # hypothesis' own random
        if all(job.owner == "flood" for job in pending):
            return
    raise AssertionError(f"these wait: {[job for job in pending if job.owner != 'flood']}")


@given(st.lists(st.sampled_from(["done", "running", "queued", "failed", None]), min_size=1, max_size=4))
def test_a_job_begins_once_all_that_it_follows_are_done(found: list[str | None]) -> None:
    states = {f"x{n}": state for n, state in enumerate(found) if state is not None}
    job = Candidate(job_id="j", owner=None, after=tuple(f"x{n}" for n in range(len(found))))
    assert startable([job], (), states) == ["j"] * all(state == "done" for state in found)


@pytest.mark.parametrize("state", ["failed", "cancelled", "lost"])
def test_what_follows_one_that_ended_otherwise_is_hopeless(state: str) -> None:
    jobs = [Candidate(job_id="j", owner=None, after=("x", "y")), Candidate(job_id="k", owner=None)]
    assert hopeless(jobs, {"x": "done", "y": state}) == {"j": ("y", state)}


def test_what_follows_one_that_is_gone_is_hopeless_and_what_may_still_begin_is_not() -> None:
    job = Candidate(job_id="j", owner=None, after=("x",))
    assert hopeless([job], {}) == {"j": ("x", "unknown")}
    assert not any(hopeless([job], {"x": state}) for state in ("queued", "running", "done"))
