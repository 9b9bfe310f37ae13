"""What the ledger takes and gives: jobs, units and attempts as frozen values. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

from dgpunet_dask.jobs.states import AttemptState, UnitState
from dgpunet_dask.model.job import JobState

#: In the evidence of an attempt that was well and was ended all the same: by what.
ENDED_BY: Final = "ended_by"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be accepted.

    Parameters
    ----------
    workload, digest
        Its workload's name, and the digest of that's files.
    owner, operates, shared
        Whose it is, whether that user may do what operators may, and whether all may read it.
    key
        The submission's idempotency key: sent twice, a submission with the same key of the same owner is one. All jobs of an array carry it.
    after
        Jobs that must be done before this one starts.
    array_id
        The array that it is a part of.
    allow_failed
        How many of its units may fail without failing it.
    retry
        How often it is started again by itself after it has failed.
    submitted_s
        When, seconds since 1970.
    """

    job_id: str
    workload: str
    digest: str
    params: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    operates: bool = False
    shared: bool = False
    key: str | None = None
    after: tuple[str, ...] = ()
    array_id: str | None = None
    allow_failed: int = 0
    retry: int = 0
    submitted_s: float = 0.0

    def content(self) -> str:
        """Return the digest (hex) of what is asked for: of all that stays when the same submission is sent again."""
        told = {name: value for name, value in asdict(self).items() if name not in {"job_id", "array_id", "submitted_s"}}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class JobRow(NewJob):
    """A job in the ledger.

    Parameters
    ----------
    started_s, ended_s
        When it began to run and ended in its present try, seconds since 1970.
    tries
        How often it was started; a head that starts again goes on with the same try.
    passes
        How often its source was begun.
    total
        Units that its source gave; ``None`` until a pass has ended.
    """

    state: JobState = "queued"
    started_s: float | None = None
    ended_s: float | None = None
    tries: int = 0
    passes: int = 0
    error: Mapping[str, Any] | None = None
    exit_code: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    total: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values, as its sidecar ``job.json`` holds them."""
        return {**asdict(self), "after": list(self.after)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> JobRow:
        """Return the job that `to_json` wrote; fields that are not known are passed over."""
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in raw.items() if name in known}
        return cls(**{**values, "after": tuple(values.get("after", ()))})


class UnitRow(NamedTuple):
    """A unit of a job.

    Parameters
    ----------
    number
        Its place in the last pass of the source that gave it, from 0.
    epoch, results
        Of its commit: under which lease, and the digest (hex) of each leaf's file.
    counts
        What its stages counted.
    attempts
        How often it was started.
    try_no
        The try of its job in which it came to this state.
    """

    unit_id: str
    number: int
    state: UnitState
    epoch: int | None
    results: Mapping[str, str] | None
    counts: Mapping[str, Any]
    attempts: int
    try_no: int = 1


class AttemptRow(NamedTuple):
    """One start of a unit.

    Parameters
    ----------
    try_no
        The try of the job that it belongs to, from 1.
    leased_s, ended_s
        Seconds since 1970; the last is ``None`` while it is open.
    seconds
        How long its calls ran, as the one who committed it said.
    adopted
        Whether it took over the call of an earlier attempt.
    cause, evidence
        Why it did not end well, and what that is known from; of one that committed, what each of its stages took.
    stage
        That which was placed on `device`, the last of the attempt's.
    started
        Whether anything ran under its lease, as far as is known.
    """

    job_id: str
    unit_id: str
    number: int
    epoch: int
    state: AttemptState
    speculative: bool
    try_no: int
    device: str | None
    host: str | None
    leased_s: float
    ended_s: float | None
    seconds: float | None
    adopted: bool
    cause: str | None
    evidence: Mapping[str, Any] | None
    stage: str | None = None
    started: bool = True


class FoundUnit(NamedTuple):
    """A unit whose result files were found whole: its epoch, and the digest (hex) of each leaf's file."""

    unit_id: str
    epoch: int
    results: Mapping[str, str]


@dataclass(frozen=True)
class Restored:
    """What a lost ledger is made again from: jobs in the order in which they were accepted, and the committed units of each.

    `last_epoch` is the highest under which any result was found, whether it counts or not: the ledger gives no such epoch again.
    """

    jobs: tuple[JobRow, ...]
    units: Mapping[str, tuple[FoundUnit, ...]]
    last_epoch: int = 0
