"""What `submit` and `jobs` print with ``--json``, as pydantic models: the schemas in docs/reference/schemas are written from them.

Nothing is imported from here when a command runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from dgpunet_dask.model.job import JobState


class Form(BaseModel):
    """What this release prints, and nothing beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Error(Form):
    """What went wrong; the codes are listed in docs/reference/exit-codes.md."""

    code: str
    message: str
    reasons: list[dict[str, Any]]


class Failure(Form):
    """What a command prints that could not do what it was asked for."""

    error: Error


class Units(Form):
    """Units of a job; `total` is null until its source has ended, `attempts` counts every start."""

    total: int | None
    done: int
    reused: int
    failed: int
    attempts: int


class Job(Form):
    """One job: `submit --json`, `jobs show ID --json`, `jobs wait ID --json`."""

    job_id: str
    state: JobState
    units: Units
    metrics: dict[str, Any]
    seconds: float = Field(description="from acceptance to the end, or to now")
    error: Error | None


class Jobs(Form):
    """Several jobs: `jobs wait ID ID --json`. The error is that of the first that did not end well."""

    jobs: list[Job]
    error: Error | None


class Array(Form):
    """An array: `submit --array ... --json`. The error is that of the first job that did not end well."""

    array_id: str
    jobs: list[Job]
    error: Error | None


class Accepted(Form):
    """A job that was accepted: `submit --detach --json`."""

    job_id: str
    state: JobState


class AcceptedArray(Form):
    """An array that was accepted: `submit --array ... --detach --json`."""

    array_id: str
    jobs: list[Accepted]
    error: None


class Changed(Form):
    """`jobs cancel --json` and `jobs retry --json`: the jobs with their new states, and the first error."""

    jobs: list[Accepted]
    error: Error | None


class Row(Job):
    """A row of `jobs list --json`; `submitted_at` is in seconds since 1970."""

    workload: str
    owner: str | None
    submitted_at: float


class Listing(RootModel[list[Row]]):
    """`jobs list --json`: the jobs, oldest first."""


class Event(Form):
    """What all events have; `time` is in seconds since 1970 by the head's clock."""

    seq: int
    time: float


class StateEvent(Event):
    """The job has another state."""

    kind: Literal["state"]
    state: JobState
    error: Error | None = None


class StageEvent(Event):
    """A stage begins or ends that runs once: the source, or one that gathers."""

    kind: Literal["stage"]
    stage: str
    state: str


class ProgressEvent(Event):
    """How far the job is; null is not known."""

    kind: Literal["progress"]
    done: int
    total: int | None
    failed: int
    metrics: dict[str, Any]
    expected_items: int | None
    rate_per_s: float | None
    eta_s: float | None


class AttemptEvent(Event):
    """What became of one attempt at a unit."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["attempt"]
    unit: int
    epoch: int
    state: str
    device: str | None
    cause: str | None = None
    why: str | None = None


class LogEvent(Event):
    """What a stage printed, or a traceback."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["log"]
    text: str
    stage: str | None = None
    device: str | None = None
    unit: int | None = None


class OtherEvent(Event):
    """A placement, a stage that is tried again with more memory, a try of the job, a head that went on with it."""

    model_config = ConfigDict(extra="allow", strict=True)

    kind: Literal["placement", "retry", "again", "resumed"]


class AnyEvent(RootModel[Annotated[StateEvent | StageEvent | ProgressEvent | AttemptEvent | LogEvent | OtherEvent, Field(discriminator="kind")]]):
    """One line of `jobs logs --json`."""


class Verdict(Form):
    """Why a device refused."""

    model_config = ConfigDict(extra="allow", strict=True)

    device: str
    code: str


class PlannedStage(Form):
    """Where a stage could go; `ranking` is the devices, the best first, and a stage without a demand needs no card."""

    model_config = ConfigDict(extra="allow", strict=True)

    stage: str
    env: str | None
    demand: dict[str, Any] | None
    outcome: str
    ranking: list[str]
    verdicts: list[Verdict] = []


class Total(Form):
    """What a plan comes to. `units` is null: only the source says. `seconds_per_unit` is null until it has been learned."""

    jobs: int
    units: int | None
    devices: list[str]
    seconds_per_unit: float | None


class Plan(Form):
    """`submit --dry-run --json`."""

    workload: str
    params: dict[str, Any]
    policy: str
    stages: list[PlannedStage]
    total: Total
    error: None


class WaitingUnits(Form):
    """Units that wait for a device, with why."""

    model_config = ConfigDict(extra="allow", strict=True)

    stage: str
    units: int
    outcome: str
    verdicts: list[Verdict]


class RunningUnits(Form):
    """Units that run."""

    stage: str
    device: str
    units: int


class Awaited(Form):
    """A job that this one waits for."""

    job_id: str
    state: str


class Explanation(Form):
    """`jobs explain ID --json`; `light` counts tasks that need no card, `waits_for` lists jobs that have to be done before."""

    job_id: str
    workload: str
    state: JobState
    units: Units
    job_error: Error | None
    waiting: list[WaitingUnits]
    running: list[RunningUnits]
    waits_for: list[Awaited] = []
    light: int
    policy: str
    error: None


#: The file of each schema.
FORMS: Final[Mapping[str, type[BaseModel]]] = {
    "job": Job, "jobs": Jobs, "array": Array, "accepted": Accepted, "accepted-array": AcceptedArray, "changed": Changed, "listing": Listing,
    "event": AnyEvent, "plan": Plan, "explanation": Explanation, "failure": Failure,
}  # fmt: skip
SCHEMA: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON schema of one of `FORMS`."""
    return {"$schema": SCHEMA, **FORMS[name].model_json_schema()}
