"""A job as users see it: its state, counts and result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

JobState = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
JOB_STATES: Final[tuple[str, ...]] = get_args(JobState)
FINAL_STATES: Final = frozenset({"done", "failed", "cancelled", "lost"})

#: The whole state machine: what may follow what. From a last state but `done` a job goes back to `queued` when it is retried.
JOB_TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "queued": frozenset({"running", "failed", "cancelled", "lost"}),
    "running": frozenset({"done", "failed", "cancelled", "lost"}),
    "done": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
    "lost": frozenset({"queued"}),
}


@dataclass(frozen=True, kw_only=True)
class UnitCounts:
    """Units of one job. `total` is ``None`` until the source has ended; `attempts` counts every start."""

    total: int | None = None
    done: int = 0
    reused: int = 0
    failed: int = 0
    attempts: int = 0

    def to_json(self) -> dict[str, int | None]:
        """Return the counts as a mapping."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job at one moment. `seconds` runs from acceptance to the end, or to now.

    `owner` is the user who submitted it, ``None`` for a job of an older release; `shared` lets every user read it (`owner.User` decides).
    """

    job_id: str
    workload: str
    state: JobState
    params: Mapping[str, Any] = field(default_factory=dict)
    units: UnitCounts = UnitCounts()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    submitted_at: float = 0.0
    error: Mapping[str, Any] | None = None
    exit_code: int = 0
    owner: str | None = None
    shared: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result object of `submit --json` and `jobs show --json` (design §5.1)."""
        return {
            "job_id": self.job_id,
            "state": self.state,
            "units": self.units.to_json(),
            "metrics": dict(self.metrics),
            "seconds": round(self.seconds, 3),
            "error": None if self.error is None else dict(self.error),
        }
