"""Jobs and errors as they cross the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from dgpunet_dask.errors import DgpunetError, ReportedError, rebuild_error
from dgpunet_dask.model.job import JobStatus, UnitCounts

_FIELDS: Final = tuple(field.name for field in fields(JobStatus))


def job_to_wire(job: JobStatus) -> dict[str, Any]:
    """Return everything that `job` says, as plain JSON values."""
    more = {"workload": job.workload, "params": dict(job.params), "submitted_at": job.submitted_at, "exit_code": job.exit_code}
    return {**job.to_json(), **more, "owner": job.owner, "shared": job.shared}


def job_from_wire(raw: Mapping[str, Any]) -> JobStatus:
    """Return the job that `job_to_wire` gave; what a newer release says beyond that is passed over."""
    return JobStatus(**{name: raw[name] for name in _FIELDS if name in raw} | {"units": UnitCounts(**raw["units"])})


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
