"""The forms of what the API takes and gives: pydantic checks requests for jobs by them, and the document is written from them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dgpunet_dask.model.job import JobState
from dgpunet_dask.retrieval.grammars import KINDS
from dgpunet_dask.retrieval.request import FILTER_CHARS_MAX, HITS_MAX, K_MAX, QUERIES_MAX, QUERY_CHARS_MAX, RERANKED_MAX
from dgpunet_dask.security.keys import Scope

ARRAY_MAX = 1000
KEY_CHARS_MAX = 200
#: The longest path that systems know.
PATH_CHARS_MAX = 4096
#: More units than any job has.
COUNT_MAX = 2**31 - 1
#: Three hundred years.
SECONDS_MAX = 1e10



def _whole(value: object) -> object:
    """Return a number without a fraction as an integer: to JSON, 1.0 is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX)]
#: The id of a job.
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
#: Of its choice by the client; for a submission that is sent again it is the same.
Key = Annotated[str, Field(min_length=1, max_length=KEY_CHARS_MAX, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Taken(BaseModel):
    """What is asked. What it does not know is a mistake, and numbers are no texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Heard(BaseModel):
    """What is asked, where what it does not know is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Given(BaseModel):
    """What is answered. A newer release may say more."""

    model_config = ConfigDict(extra="allow")


# Errors


class Error(Given):
    """What went wrong."""

    code: str = Field(description="names the kind of error")
    message: str = Field(description="for a person: what is wrong, and what helps")
    reasons: list[Any] = Field(description="details for programs, such as one reason for each device")
    exit_code: int = Field(description="with which a command ends on it")


class ErrorAnswer(Given):
    """Every answer from 400 on."""

    error: Error


# Jobs


class JobRequest(Taken):
    """A job, or with `array` many."""

    workload: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="the name of a shipped workload, or the digest of one that the head has")
    params: dict[str, Any] = Field({}, description="the workload's parameters")
    shared: bool = Field(False, description="whether every user may read the job and its results")
    user: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f/\\]*$")] | None = Field(None, description="whose job it is; only operators may name another than the caller")
    after: Annotated[list[JobId], Field(max_length=ARRAY_MAX)] = Field([], description="jobs that have to be done before this one starts")
    allow_failed: Annotated[int, Field(ge=0, le=COUNT_MAX), BeforeValidator(_whole)] = Field(0, description="how many units may fail without failing the job")
    retry: Annotated[int, Field(ge=0, le=1000), BeforeValidator(_whole)] = Field(0, description="how often the job is started again after it has failed")
    key: Key | None = Field(None, description="an idempotency key: the same submission with the same key is the same job")
    array: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=ARRAY_MAX)] | None = Field(
        None, description="a job for each of these sets of parameters, each laid over `params`"
    )


class PlanRequest(Heard):
    """A job that is not run."""

    workload: Annotated[str, Field(min_length=1, max_length=200)]
    params: dict[str, Any] = {}
    after: Annotated[list[JobId], Field(max_length=ARRAY_MAX)] = Field([], description="jobs that would have to be done before")


class Units(Given):
    """Units of a job. `total` is null until the source has ended; `attempts` counts every start."""

    total: int | None
    done: int
    reused: int
    failed: int
    attempts: int


class JobError(Given):
    """Why a job has not ended well."""

    code: str
    message: str


class Job(Given):
    """A job at one moment. `seconds` runs from acceptance to the end, or to now; `submitted_at` is in seconds since 1970."""

    job_id: str
    workload: str
    state: JobState
    params: dict[str, Any]
    units: Units
    metrics: dict[str, Any]
    seconds: float
    submitted_at: float
    error: JobError | None
    exit_code: int
    owner: str | None
    shared: bool


class JobArray(Given):
    """The jobs of an array, in the order of its sets of parameters."""

    array_id: str
    jobs: list[Job]


class Event(Given):
    """Something that happened to a job; what else it says depends on its kind."""

    seq: int
    kind: str


class StageProgress(Given):
    """Units at one stage."""

    stage: str
    waiting: int
    running: int
    done: int


class DeviceProgress(Given):
    """What one device has done for a job; `seconds` of running units."""

    device: str
    running: int
    done: int
    seconds: float


class Awaited(Given):
    """A job that another waits for."""

    job_id: str
    state: str


class Progress(Given):
    """How far a job is. The rate is of the last while; null: not known yet."""

    units: Units
    rate_per_s: float | None
    eta_s: float | None
    stages: list[StageProgress]
    devices: list[DeviceProgress]
    waits_for: list[Awaited] = Field([], description="jobs that have to be done before it begins")
    all_stages: list[str] | None = Field(None, description="the names of all its stages; null where the workload is not on the head any more")


class Attempt(Given):
    """One attempt at a unit, which has a number within its job. `cause` and `evidence` say why it did not end well."""

    began: bool = Field(True, description="whether anything ran, as far as is known")

    unit: int
    epoch: int
    device: str | None
    host: str | None
    state: str
    cause: str | None
    evidence: dict[str, Any] | None
    started_s: float | None
    ended_s: float | None


class JobExplanation(Given):
    """Why the units of a job are where they are."""

    job_id: str


class DemandRequest(Heard):
    """What a unit of work asks for."""

    demand: dict[str, Any]


class Nothing(Given):
    """An empty object. It has to be sent as JSON, which a page of another site cannot do."""


# Workloads, indexes, models


class WorkloadTaken(Given):
    """A workload that is here now."""

    digest: str


class Share(Heard):
    """Whether every user may read or use it."""

    shared: bool


class IndexInfo(Given):
    """A search index."""

    index: str


class IndexRemoved(Given):
    """An index that is gone."""

    index: str
    removed: bool


class IndexVerified(Given):
    """What is wrong with an index, and how much was looked at. Without faults nothing is."""

    index: str
    faults: list[str]


class IndexCompacted(Given):
    """What an index consisted of before, and does now."""

    index: str
    segments_before: int
    segments: int
    rows_before: int
    rows: int


#: What a definition is, as hits name it.
Kind = Annotated[str, Field(json_schema_extra={"enum": sorted(KINDS)})]


class Query(Given):
    """One query; `id` comes back with its answer."""

    query: Annotated[str, Field(max_length=QUERY_CHARS_MAX)]


_RERANK = f"a reranker of the head's settings, which reads the best hits again; {RERANKED_MAX} queries at most then"


class SearchRequest(Given):
    """Queries of one search; all together may ask for a bounded number of hits."""

    queries: Annotated[list[Query], Field(min_length=1, max_length=QUERIES_MAX)]
    k: Annotated[int, Field(ge=1, le=K_MAX, description=f"hits of each query; all queries together may ask for {HITS_MAX}")] = 10
    path: Annotated[str, Field(max_length=FILTER_CHARS_MAX, description="a path pattern as in .gitignore")] | None = None
    lang: Annotated[str, Field(max_length=FILTER_CHARS_MAX, description="a language, as hits name it")] | None = None
    kind: Annotated[Kind | list[Kind], Field(description="only parts of such a definition; of any of several")] | None = None
    rerank: Annotated[str, Field(max_length=FILTER_CHARS_MAX, description=_RERANK)] | None = None


class SearchAnswer(Given):
    """What one query found."""

    index: str
    hits: list[dict[str, Any]]


class SearchAnswers(Given):
    """Answers in the order of the queries."""

    answers: list[SearchAnswer]


class LinesRequest(Taken):
    """Lines of a file as hits name it; so many as are given at once, then `next_line` tells where to ask on."""

    path: Annotated[str, Field(min_length=1, max_length=PATH_CHARS_MAX)]
    start_line: Annotated[int, Field(ge=1, le=COUNT_MAX), BeforeValidator(_whole)]
    end_line: Annotated[int, Field(ge=1, le=COUNT_MAX, description="inclusive"), BeforeValidator(_whole)]


class Lines(Given):
    """Lines as the index holds them: the head does not read the file itself."""

    path: str
    start_line: int
    end_line: int
    total_lines: int
    next_line: int | None
    text: str


class Model(Given):
    """A model that users brought. `since_s` is when a job first named it, in seconds since 1970."""

    id: str
    name: str
    digest: str | None
    owner: str | None
    shared: bool
    since_s: float


# The cluster


class Object(Given):
    """An object whose keys the commands' reference tells."""


class Policy(Given):
    """The policies in force."""

    digest: str | None


class Placement(Given):
    """A placement, numbered."""

    seq: int


class Node(Given):
    """A host of the cluster."""

    host: str


class NodeRequest(Heard):
    """How a host is to be changed. `deadline_s` is of draining."""

    deadline_s: Seconds | None = None


class TokenRequest(Heard):
    """A token by which a host joins."""

    host: Annotated[str, Field(min_length=1)]
    ttl_s: Seconds | None = None


class KeyRequest(Heard):
    """A key of a user."""

    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,199}$")]
    scope: Scope
    ttl_s: Seconds | None = None


class Lease(Given):
    """A hold on an embedded cluster: it lasts as long as the answer's connection."""

    lease: int


class Released(Given):
    """Whether the head stops with this lease."""

    last: bool
