"""Jobs and errors as they cross the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from dgpunet_dask.errors import DgpunetError, ReportedError, rebuild_error
from dgpunet_dask.model.job import JobStatus, UnitCounts


@dataclass(frozen=True)
class JobArray:
    """Jobs that were submitted as one: a job for each set of parameters, in the order they were given."""

    array_id: str
    jobs: tuple[JobStatus, ...]


_FIELDS: Final = tuple(field.name for field in fields(JobStatus))
_COUNTS: Final = tuple(field.name for field in fields(UnitCounts))


def job_to_wire(job: JobStatus) -> dict[str, Any]:
    """Return everything that `job` says, as plain JSON values."""
    more = {"workload": job.workload, "params": dict(job.params), "submitted_at": job.submitted_at, "exit_code": job.exit_code}
    return {**job.to_json(), **more, "owner": job.owner, "shared": job.shared}


def job_from_wire(raw: Mapping[str, Any]) -> JobStatus:
    """Return the job that `job_to_wire` gave; what a newer release says beyond that is passed over."""
    units = UnitCounts(**{name: raw["units"][name] for name in _COUNTS if name in raw["units"]})
    return JobStatus(**{name: raw[name] for name in _FIELDS if name in raw} | {"units": units})


def array_to_wire(array: JobArray) -> dict[str, Any]:
    """Return an array and all that its jobs say, as plain JSON values."""
    return {"array_id": array.array_id, "jobs": [job_to_wire(job) for job in array.jobs]}


def array_from_wire(raw: Mapping[str, Any]) -> JobArray:
    """Return the array that `array_to_wire` gave."""
    return JobArray(str(raw["array_id"]), tuple(job_from_wire(job) for job in raw["jobs"]))


def error_to_wire(error: DgpunetError) -> dict[str, Any]:
    """Return the error object and the exit code of `error`."""
    return {**error.to_json(), "exit_code": error.exit_code}


def error_from_wire(raw: Mapping[str, Any]) -> DgpunetError:
    """Return an error that says and is what `error_to_wire` was given."""
    reasons = raw.get("reasons")
    return rebuild_error(
        ReportedError(
            exit_code=int(raw.get("exit_code", 1)),
            code=str(raw.get("code", "unexpected")),
            message=str(raw.get("message", "the head gave no message")),
            reasons=list(reasons) if isinstance(reasons, list) else [],
        )
    )
