"""Quotas: what a user may ask for, and when to ask again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.config.settings import Quota
from dgpunet_dask.errors import JobFailed, OverQuota, TooManyJobs
from dgpunet_dask.jobs.quotas import MINUTE_S, Submissions, check, check_units

QUOTA = Quota(jobs=3, units=10, submissions_per_minute=4)


def test_as_many_jobs_as_the_quota_may_be_there_at_once() -> None:
    none = Submissions()
    check(QUOTA, "anna", 2, none, 0.0)
    check(QUOTA, "anna", 0, none, 0.0, jobs=3)
    for live, jobs in ((3, 1), (2, 2), (1, 3)):
        with pytest.raises(TooManyJobs, match=r"anna.*3 jobs queued or running") as raised:
            check(QUOTA, "anna", live, none, 0.0, jobs=jobs)
        assert raised.value.fields["wait_s"] > 0


def test_without_a_quota_everything_may_be() -> None:
    check(None, "anna", 10**6, Submissions(), 0.0, jobs=10**6)
    check_units(None, 10**9)


def test_each_user_is_counted_alone() -> None:
    seen = Submissions()
    seen.add("bob", 0.0, 4)
    check(QUOTA, "anna", 0, seen, 1.0)
    check(QUOTA, None, 0, seen, 1.0)
    with pytest.raises(TooManyJobs):
        check(QUOTA, "bob", 0, seen, 1.0)


def test_an_array_that_is_larger_than_the_quota_is_refused_at_any_time() -> None:
    for quota, told in ((Quota(jobs=100, units=1, submissions_per_minute=4), "4 jobs a minute"), (QUOTA, "3 jobs queued")):
        with pytest.raises(OverQuota, match=rf"anna may have {told}.* is 5: it can never") as raised:
            check(quota, "anna", 0, Submissions(), 0.0, jobs=5)
        assert "wait_s" not in raised.value.fields, "nobody is told to wait for what never comes"


def test_units_of_one_job() -> None:
    check_units(QUOTA, 10)
    with pytest.raises(JobFailed, match="10 units"):
        check_units(QUOTA, 11)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 3)), max_size=30), st.integers(1, 5))
def test_no_minute_has_more_than_the_quota_and_who_waits_as_told_is_taken(steps: list[tuple[float, int]], most: int) -> None:
    quota, seen, now, taken = Quota(jobs=10**6, units=1, submissions_per_minute=most), Submissions(), 0.0, []
    for pause, wanted in steps:
        now += pause
        jobs = min(wanted, most)
        try:
            check(quota, "anna", 0, seen, now, jobs=jobs)
        except TooManyJobs as error:
            wait_s = error.fields["wait_s"]
            assert 0 < wait_s <= MINUTE_S + 1e-6
            check(quota, "anna", 0, seen, now + wait_s + 1e-6, jobs=jobs)
            continue
        seen.add("anna", now, jobs)
        taken += [now] * jobs
        assert sum(1 for at in taken if at > now - MINUTE_S) <= most


def test_nothing_old_is_kept() -> None:
    seen = Submissions()
    for number in range(1000):
        seen.add(f"user{number}", float(number))
    assert len(seen._times) <= MINUTE_S + 1
    assert seen.of("user999", 999.0) == 1
    assert seen.of("user0", 999.0) == 0
