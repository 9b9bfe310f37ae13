"""What is known of a failed attempt, as the ledger keeps it and `causes` judges it. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any, Final

from dgpunet_dask.errors import DgpunetError, DiskFull, OutOfFiles, StageFailed, Unplaceable, UsageError
from dgpunet_dask.jobs.causes import Other
from dgpunet_dask.jobs.rows import ENDED_BY, AttemptRow

#: Fields of errors that are evidence as they stand.
_KEPT: Final = (
    "exit_signal", "exit_status", "cgroup_oom_kills", "log_tail", "free_disk_bytes", "xid", "thermal", "pid", "seconds", "peak_mib", "kind",
    "error_kind", "errno", "how", "why", "card_mib", "stage",
)  # fmt: skip
_TEXT_LETTERS: Final = 4_096


def evidence_of(error: DgpunetError, *, device: str | None, host: str | None, units_done: int) -> dict[str, Any]:
    """Return the evidence of an attempt that ended with `error`.

    Parameters
    ----------
    device, host
        Where it ran, as far as that is known.
    units_done
        How many other units of its job have passed the same code.
    """
    fields = {name: _short(error.fields[name]) for name in _KEPT if error.fields.get(name) is not None}
    found: dict[str, Any] = {"error_code": error.code, "message": _short(str(error)), **fields, "device": device, "host": host}
    if isinstance(error, UsageError):
        found["usage"] = True
    if isinstance(error, StageFailed):  # an agent of an earlier release tells the class alone
        found.setdefault("error_kind", error.fields.get("kind"))
    if isinstance(error, DiskFull):
        found["errno"] = errno.ENOSPC
    if isinstance(error, OutOfFiles):
        found["errno"] = errno.EMFILE
    return {name: value for name, value in {**found, "units_done": units_done}.items() if value is not None}


def ran(error: DgpunetError) -> bool:
    """Whether anything ran under an attempt that ended with `error`: not where no device could take what it asked for."""
    return not isinstance(error, Unplaceable) and not isinstance(error.__cause__, Unplaceable)


def others_of(rows: Iterable[AttemptRow], unit_id: str) -> list[Other]:
    """Return the attempts of a job that have ended, as others to the next that fails of unit `unit_id`."""
    return [
        Other(
            same_unit=row.unit_id == unit_id, host=row.host, device=row.device or _last_device(row.evidence or {}),
            error_code=None if row.state == "committed" else str((row.evidence or {}).get("error_code") or "unknown"),
            exit_signal=(row.evidence or {}).get("exit_signal"),
        )
        for row in rows if row.state in ("committed", "failed")
    ]  # fmt: skip


def _last_device(evidence: Mapping[str, Any]) -> str | None:
    """Return the device of the last stage of a unit that was committed before it was told where it had been placed."""
    return next((device for device, _ in reversed((evidence.get("stages") or {}).values()) if device is not None), None)


def _short(value: Any) -> Any:
    return value[-_TEXT_LETTERS:] if isinstance(value, str) else value


def told(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return evidence for those who may read the job: without what its stages printed, which its log has, and what they took."""
    return {name: value for name, value in evidence.items() if name not in {"log_tail", "stages"}}


def told_state(row: AttemptRow) -> str:
    """Return the state of an attempt for those who may read the job: ``cancelled`` where it was well, and ended with its job."""
    return "cancelled" if row.state == "lost" and ENDED_BY in (row.evidence or {}) else row.state
