"""Jobs as they cross the API, also between releases."""

from __future__ import annotations

from dgpunet_dask.cluster.wire import JobArray, array_from_wire, array_to_wire, job_from_wire, job_to_wire
from dgpunet_dask.model.job import JobStatus, UnitCounts


def test_a_job_comes_back_as_it_was():
    job = JobStatus(job_id="j", workload="w", state="done", units=UnitCounts(total=3, done=3), owner="ann", shared=True, submitted_at=5.0)
    assert job_from_wire(job_to_wire(job)) == job


def test_an_older_and_a_newer_head_are_understood():
    sent = job_to_wire(JobStatus(job_id="j", workload="w", state="done", owner="ann"))
    assert job_from_wire({**sent, "colour": "red"}).owner == "ann"
    assert job_from_wire({name: value for name, value in sent.items() if name not in {"owner", "shared"}}).owner is None


def test_an_array_comes_back_as_it_was():
    array = JobArray("a", tuple(JobStatus(job_id=f"j{n}", workload="w", state="queued") for n in range(3)))
    assert array_from_wire(array_to_wire(array)) == array


def test_counts_of_a_newer_head_are_passed_over():
    sent = job_to_wire(JobStatus(job_id="j", workload="w", state="done"))
    assert job_from_wire({**sent, "units": {**sent["units"], "stolen": 3}}).units == UnitCounts()
