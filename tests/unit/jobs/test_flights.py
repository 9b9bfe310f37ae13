"""The keys of a unit's tasks, and what is known of where they run."""

from __future__ import annotations

import pytest

from dgpunet_dask.jobs.flights import hosts_of, job_of_key, number_of_key, unit_key


@pytest.mark.parametrize("stage", ["embed", "embed-large-2", "a-1-2"])
@pytest.mark.parametrize("again", [0, 1, 12])
def test_the_job_of_a_key_is_found_whatever_the_stage_is_called(stage: str, again: int) -> None:
    assert job_of_key(unit_key(stage, "20260101120000-a1b2c3", 7, again)) == "20260101120000-a1b2c3"
    assert number_of_key(unit_key(stage, "20260101120000-a1b2c3", 7, again)) == 7


@pytest.mark.parametrize("key", ["sum-0a1b", "('x', 1)", "embed", "embed-x-y-7", ""])
def test_other_keys_have_no_job(key: str) -> None:
    assert job_of_key(key) is None
    assert number_of_key(key) is None


def test_hosts_are_told_as_far_as_they_are_known() -> None:
    assert hosts_of(["a0", "a1", "b0", "gone"], {"a0": "a", "a1": "a", "b0": "b"}) == {"a", "b"}
