"""What is asked of the head's HTTP API about jobs, and how its answers are read. Pure: `api_client` and `async_api` send it."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from dgpunet_dask.cluster.wire import JobArray, array_from_wire, error_from_wire, job_from_wire
from dgpunet_dask.errors import DgpunetError, NoHead, NoSuchJob, NotAllowed
from dgpunet_dask.model.job import JobStatus

T = TypeVar("T")

#: Inspecting a workload's stages may import torch first; everything else is answered within milliseconds.
ANSWER_S: Final = 330.0
#: A question that only reads: a head that needs longer stands still, and the next one is looked for.
READ_S: Final = 60.0
#: Whether a head is there at all.
ALIVE_S: Final = 5.0
#: How much longer than it was told to wait a head may take to answer a question for events.
EVENTS_LATE_S: Final = 30.0
_JOB_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
#: What the API calls a request that came without a key that counts.
UNKNOWN_KEY: Final = 401


class Answer(NamedTuple):
    """What came back: status, its reason, headers by name in lower case, the whole body, and the address that was asked."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    api: str


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Parameters
    ----------
    method, path
        As HTTP has them; the path is quoted, and holds the query.
    read
        Returns what an answer says, or raises the error that it reports.
    body
        A mapping goes as JSON.
    answer_s
        Seconds that the head may stay silent.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    body: Mapping[str, Any] | bytes | None = None
    answer_s: float = ANSWER_S


def said(answer: Answer) -> Any:
    """Return the JSON value of an answer.

    Raises
    ------
    DgpunetError
        The error that it reports; NoHead where what answers is no head of ours.
    """
    if answer.status >= 400:
        raise error_of(answer)
    try:
        return json.loads(answer.body)
    except ValueError as error:  # no JSON: something else answers there
        raise NoHead(where=answer.api) from error


def error_of(answer: Answer) -> DgpunetError:
    """Return the error that an answer carries; `wait_s` is among its fields where the head said when to ask again."""
    if answer.status == UNKNOWN_KEY:
        why = "$DGPUNET_API_KEY is not set to a key of this cluster"
        return NotAllowed(what=f"Asking the head at {answer.api}", why=why, status=UNKNOWN_KEY)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(answer.body)["error"]
        error = error_from_wire({**told, "exit_code": 1} if str(told["code"]).startswith("http_") else told)
        error.fields["status"] = answer.status
        with contextlib.suppress(KeyError, ValueError):
            error.fields["wait_s"] = float(answer.headers["retry-after"])
        return error
    return NoHead(where=f"{answer.api} (what answers there says {answer.status} {answer.reason})")


def unknown_key(error: DgpunetError) -> bool:
    """Whether a head said that it does not know the key: a head that has just started has another one for its own host."""
    return error.fields.get("status") == UNKNOWN_KEY


def alive() -> Call[None]:
    """Ask whether a head answers, and knows the key."""
    return Call("GET", "/v1/status", _nothing, answer_s=ALIVE_S)


def search(index: str, request: Mapping[str, Any]) -> Call[list[dict[str, Any]]]:
    """Search an index: ``{"queries": [{"id", "query"}], "k", "path", "lang", "kind": [...], "rerank"}``; there is an answer for each query."""
    return Call("POST", f"/v1/indexes/{quoted(index)}/search", lambda a: list(said(a)["answers"]), request)


# Jobs


def submit(request: Mapping[str, Any]) -> Call[JobStatus]:
    """Submit ``{"workload": digest or shipped name, "params": {...}, ...}``."""
    return Call("POST", "/v1/jobs", lambda a: job_from_wire(said(a)), request)


def submit_array(request: Mapping[str, Any]) -> Call[JobArray]:
    """Submit such a request with ``"array": [{...}, ...]``: a job for each set of parameters."""
    return Call("POST", "/v1/jobs", lambda a: array_from_wire(said(a)), request)


def plan(request: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Ask where each stage of such a request could go now."""
    return Call("POST", "/v1/plan", _mapping, request)


def jobs(*, state: str | None = None, owner: str | None = None, limit: int | None = None, after_id: str | None = None) -> Call[list[JobStatus]]:
    """Ask for jobs, oldest first; `limit` of them after the one with the id `after_id`."""
    wanted = {"state": state, "owner": owner, "limit": limit, "after_id": after_id}
    query = urllib.parse.urlencode({name: value for name, value in wanted.items() if value is not None})
    return Call("GET", f"/v1/jobs{'?' if query else ''}{query}", lambda a: [job_from_wire(raw) for raw in said(a)], answer_s=READ_S)


def show(job_id: str) -> Call[JobStatus]:
    """Ask for one job."""
    return Call("GET", _of(job_id), lambda a: job_from_wire(said(a)), answer_s=READ_S)


def events(job_id: str, since: int = 0, wait_s: float = 0.0) -> Call[list[dict[str, Any]]]:
    """Ask for the job's events after number `since`; the head waits up to `wait_s` seconds for the first."""
    return Call("GET", _of(job_id, f"/events?since={since}&wait={wait_s:.3f}"), _rows, answer_s=wait_s + EVENTS_LATE_S)


def cancel(job_id: str) -> Call[JobStatus]:
    """Cancel a job; a finished one stays as it is."""
    return Call("POST", _of(job_id, "/cancel"), lambda a: job_from_wire(said(a)), {})


def retry(job_id: str) -> Call[JobStatus]:
    """Take a job that did not end well back to the queue, under its id and with its committed units."""
    return Call("POST", _of(job_id, "/retry"), lambda a: job_from_wire(said(a)), {})


def progress(job_id: str) -> Call[dict[str, Any]]:
    """Ask how far a job is: ``units``, ``rate_per_s``, ``eta_s`` (``None``: not known), ``stages``, ``devices``."""
    return Call("GET", _of(job_id, "/progress"), _mapping, answer_s=READ_S)


def attempts(job_id: str) -> Call[list[dict[str, Any]]]:
    """Ask for the attempts at a job's units, each with its device, state and cause."""
    return Call("GET", _of(job_id, "/attempts"), _rows, answer_s=READ_S)


def explain_job(job_id: str) -> Call[dict[str, Any]]:
    """Ask why the units of a job are where they are."""
    return Call("GET", _of(job_id, "/explain"), _mapping)


# Workloads


def has_workload(digest: str) -> Call[bool]:
    """Ask whether the head has a workload's files."""
    return Call("HEAD", f"/v1/workloads/{quoted(digest)}", _there)


def add_workload(digest: str, tar: bytes) -> Call[None]:
    """Send a workload's files."""
    return Call("PUT", f"/v1/workloads/{quoted(digest)}", _nothing, tar)


def quoted(part: str) -> str:
    """Return one part of a path, as an address may hold it."""
    return urllib.parse.quote(part, safe="")


def _of(job_id: str, rest: str = "") -> str:
    if not _JOB_ID.fullmatch(job_id):  # no head would take it for an id
        raise NoSuchJob(job_id=job_id)
    return f"/v1/jobs/{quoted(job_id)}{rest}"


def _mapping(answer: Answer) -> dict[str, Any]:
    return dict(said(answer))


def _rows(answer: Answer) -> list[dict[str, Any]]:
    return list(said(answer))


def _there(answer: Answer) -> bool:
    if answer.status == 403:  # an answer to HEAD has no body that could say why
        raise NotAllowed(what="Submitting work", why="this key's scope does not reach that far", status=403)
    if answer.status not in {200, 404}:
        raise error_of(answer)
    return answer.status == 200


def _nothing(answer: Answer) -> None:
    said(answer)
