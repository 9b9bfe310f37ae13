"""The head's HTTP API from a command's side. Synchronous, standard library only, one connection a request: safe from any thread.

What is asked about jobs, and how answers are read, is in `calls`; `async_api` sends the same from asyncio.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.calls import ANSWER_S, Answer, Call, quoted
from dgpunet_dask.cluster.tls import NO_TRUST, TlsConnection, Trust
from dgpunet_dask.cluster.wire import JobArray
from dgpunet_dask.errors import DgpunetError, JobLost, NoHead
from dgpunet_dask.failpoints import hit
from dgpunet_dask.model.job import JobStatus

T = TypeVar("T")

CONNECT_S: Final = 5.0

#: Where the API of a cluster of several machines answers unless told otherwise.
API_PORT: Final = 8787

_GONE: Final = (OSError, http.client.HTTPException)


class ApiClient:
    """One head. Making the value connects to nothing.

    Parameters
    ----------
    api
        Base address, as ``http://127.0.0.1:8000`` or ``https://head.example:8787``.
    key
        The bearer key.
    embedded
        Whether the head ends with the last command that uses it.
    trust
        What tells a true head from another, for ``https``.

    Notes
    -----
    Every method raises the error that the head reports, as its own class; NoHead where nothing answers; and JobLost where it asked
    for a job and the head, which had answered before, is gone. CertificateRefused where what answers is not the head that it should be;
    the key is then not sent.
    """

    def __init__(self, api: str, key: str, *, embedded: bool = False, trust: Trust = NO_TRUST) -> None:
        found = urllib.parse.urlsplit(api)
        self.api = api
        self.embedded = embedded
        self._tls = None if found.scheme != "https" else trust.for_key(key)
        self._where = (found.hostname or "127.0.0.1", found.port or (80 if self._tls is None else API_PORT))
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._answered = False

    def status(self) -> dict[str, Any]:
        """Return the object of ``status --json``."""
        return dict(self._json("GET", "/v1/status"))

    def placements(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the placements after number `since`."""
        return list(self._json("GET", f"/v1/placements?since={since}"))

    def fleet(self) -> dict[str, Any]:
        """Return the live fleet: hosts, devices, charges, states, and measured speeds by device class."""
        return dict(self._json("GET", "/v1/fleet"))

    def policy(self) -> dict[str, Any]:
        """Return the policies in force, and what was wrong with later changes."""
        return dict(self._json("GET", "/v1/policy"))

    def reload_policy(self) -> dict[str, Any]:
        """Have the policy files read at once; return what `policy` does."""
        return dict(self._json("POST", "/v1/policy/reload", {}))

    def explain(self, demand: Mapping[str, Any]) -> dict[str, Any]:
        """Return where a demand would go now, and why not elsewhere."""
        return dict(self._json("POST", "/v1/explain", {"demand": dict(demand)}))

    def explain_job(self, job_id: str) -> dict[str, Any]:
        """Return why the units of a job are where they are."""
        return self._job(job_id, calls.explain_job(job_id))

    def submit(self, request: Mapping[str, Any]) -> JobStatus:
        """Submit ``{"workload": digest or shipped name, "params": {...}, ...}``."""
        return self.do(calls.submit(request))

    def submit_array(self, request: Mapping[str, Any]) -> JobArray:
        """Submit such a request with ``"array": [{...}, ...]``: a job for each set of parameters."""
        return self.do(calls.submit_array(request))

    def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return where each stage of such a request could go now, without running it."""
        return self.do(calls.plan(request))

    def jobs(self) -> list[JobStatus]:
        """Return all jobs, oldest first."""
        return self.do(calls.jobs())

    def show(self, job_id: str) -> JobStatus:
        """Return one job."""
        return self._job(job_id, calls.show(job_id))

    def events(self, job_id: str, since: int = 0, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """Return the job's events after number `since`, waiting up to `wait_s` seconds for the first."""
        return self._job(job_id, calls.events(job_id, since, wait_s))

    def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; a finished one stays as it is."""
        return self._job(job_id, calls.cancel(job_id))

    def retry(self, job_id: str) -> JobStatus:
        """Take a job that did not end well back to the queue, under its id and with its committed units."""
        return self._job(job_id, calls.retry(job_id))

    def has_workload(self, digest: str) -> bool:
        """Whether the head has the workload's files."""
        return self.do(calls.has_workload(digest))

    def add_workload(self, digest: str, tar: bytes) -> None:
        """Send a workload's files."""
        self.do(calls.add_workload(digest, tar))

    def indexes(self) -> list[dict[str, Any]]:
        """Return the search indexes that the caller may read, as ``index list --json`` shows them."""
        return list(self._json("GET", "/v1/indexes"))

    def index(self, name: str) -> dict[str, Any]:
        """Return one index, as ``index show --json`` shows it."""
        return dict(self._json("GET", f"/v1/indexes/{quoted(name)}"))

    def search(self, name: str, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the answers, as ``search --json`` shows them, for a request of `calls.search`."""
        return self.do(calls.search(name, request))

    def index_lines(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return lines of an indexed file as the index holds them, for ``{"path", "start_line", "end_line"}``."""
        return dict(self._json("POST", f"/v1/indexes/{quoted(name)}/lines", request))

    def index_share(self, name: str, *, shared: bool) -> dict[str, Any]:
        """Let every user read an index, or its owner alone; return it."""
        return dict(self._json("POST", f"/v1/indexes/{quoted(name)}/share", {"shared": shared}))

    def index_verify(self, name: str) -> dict[str, Any]:
        """Return what is wrong with an index, as ``index verify --json`` shows it. Reads all of it."""
        return dict(self._json("POST", f"/v1/indexes/{quoted(name)}/verify"))

    def index_compact(self, name: str) -> dict[str, Any]:
        """Merge an index's segments; return what ``index compact --json`` shows."""
        return dict(self._json("POST", f"/v1/indexes/{quoted(name)}/compact"))

    def index_remove(self, name: str) -> dict[str, Any]:
        """Remove an index for good."""
        return dict(self._json("DELETE", f"/v1/indexes/{quoted(name)}"))

    def models(self) -> list[dict[str, Any]]:
        """Return the models that users brought and that the caller's jobs may use."""
        return list(self._json("GET", "/v1/models"))

    def model_share(self, model_id: str, *, shared: bool) -> dict[str, Any]:
        """Let every user's jobs use a model, or its owner's alone; return it."""
        return dict(self._json("POST", f"/v1/models/{quoted(model_id)}/share", {"shared": shared}))

    def nodes(self) -> list[dict[str, Any]]:
        """Return the hosts of the cluster."""
        return list(self._json("GET", "/v1/nodes"))

    def node_action(self, host: str, action: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have a host cordoned, uncordoned, drained or removed."""
        return dict(self._json("POST", f"/v1/nodes/{quoted(host)}/{quoted(action)}", dict(body or {})))

    def doctor(self, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have the cluster examined; return the findings."""
        query = urllib.parse.urlencode({name: json.dumps(value) for name, value in (asked or {}).items()})
        return dict(self._json("GET", f"/v1/doctor?{query}"))

    def token_create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a join token: ``{"host", "ttl_s"}``; the answer's ``token`` is told this once."""
        return dict(self._json("POST", "/v1/tokens", body))

    def tokens(self) -> list[dict[str, Any]]:
        """Return the join tokens, without their secrets."""
        return list(self._json("GET", "/v1/tokens"))

    def token_revoke(self, token_id: str) -> dict[str, Any]:
        """Make a join token worthless."""
        return dict(self._json("POST", f"/v1/tokens/{quoted(token_id)}/revoke", {}))

    def key_create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an API key: ``{"user", "scope", "ttl_s"}``; the answer's ``key`` is told this once."""
        return dict(self._json("POST", "/v1/keys", body))

    def keys(self) -> list[dict[str, Any]]:
        """Return the API keys, without their secrets."""
        return list(self._json("GET", "/v1/keys"))

    def key_revoke(self, key_id: str) -> dict[str, Any]:
        """Make an API key worthless."""
        return dict(self._json("POST", f"/v1/keys/{quoted(key_id)}/revoke", {}))

    def keep(self) -> None:
        """Make an embedded head stay after its last lease."""
        self._json("POST", "/v1/keep", {})

    def shutdown(self) -> None:
        """Tell the head to stop; it answers before it does."""
        self._json("POST", "/v1/shutdown", {})

    def lease(self) -> Lease:
        """Hold the cluster open until the lease is closed, or this process ends in whatever way."""
        connection, response = self._open("GET", "/v1/lease", None)
        if response.status != 200:
            with connection:
                raise reported(response, self.api)
        return Lease(self, connection, int(json.loads(response.readline())["lease"]), response)

    def release_lease(self, number: int) -> bool:
        """End a lease; return whether the head stops with it."""
        return bool(self._json("POST", f"/v1/lease/{number}/release", {})["last"])

    def do(self, call: Call[T]) -> T:
        """Ask, and return what the answer says."""
        with self._response(call.method, call.path, call.body, call.answer_s) as response:
            try:
                body = response.read()
            except _GONE as error:
                raise NoHead(where=self.api) from error
            return call.read(answer_of(response, body, self.api))

    @property
    def where(self) -> tuple[str, int]:
        """Host and port of the API."""
        return self._where

    @property
    def headers(self) -> Mapping[str, str]:
        """What every request carries."""
        return self._headers

    def tls(self) -> ssl.SSLContext | None:
        """Return the context that tells the true head from another; ``None`` in the clear.

        Raises
        ------
        CertificateRefused
            If nothing says which authority to trust, or another one answers.
        """
        return None if self._tls is None else self._tls.context(*self._where)

    def _job(self, job_id: str, call: Call[T]) -> T:
        before = self._answered
        try:
            return self.do(call)
        except NoHead as error:
            if before:
                raise JobLost(job_id=job_id) from error
            raise

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self.do(Call(method, path, calls.said, body))

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: Any, answer_s: float) -> Iterator[http.client.HTTPResponse]:
        connection, response = self._open(method, path, body, answer_s)
        with connection:
            yield response

    def _open(
        self, method: str, path: str, body: Any, answer_s: float = ANSWER_S
    ) -> tuple[contextlib.closing[http.client.HTTPConnection], http.client.HTTPResponse]:
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(answer_s)
            payload = json.dumps(body).encode() if isinstance(body, Mapping) else body
            # a server that refuses a long body may close before it has read all of it: its answer still counts
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, payload, self._headers)
            if (method, path) == ("POST", "/v1/jobs"):
                hit("submit.sent")
            response = connection.getresponse()
        except _GONE as error:
            connection.close()
            raise NoHead(where=self.api) from error
        except BaseException:
            connection.close()
            raise
        self._answered = True
        return contextlib.closing(connection), response

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(*self._where, timeout=CONNECT_S)
        return TlsConnection(*self._where, timeout=CONNECT_S, context=self._tls.context)


class Lease:
    """A hold on a cluster: an open connection, which the system closes when this process ends."""

    def __init__(
        self, client: ApiClient, connection: contextlib.closing[http.client.HTTPConnection], number: int, response: http.client.HTTPResponse
    ) -> None:
        self._client = client
        self._connection = connection
        self._response = response
        self.number = number

    def close(self) -> bool:
        """Let go; return whether the cluster ends with this lease."""
        try:
            return self._client.release_lease(self.number)
        except DgpunetError:
            return True  # the head is gone already, or about to be
        finally:
            self._connection.__exit__(None, None, None)
            self._response.close()


def answer_of(response: http.client.HTTPResponse, body: bytes, api: str) -> Answer:
    """Return a response, whose body was read, as `calls` reads it."""
    return Answer(response.status, response.reason, {name.lower(): value for name, value in response.getheaders()}, body, api)


def reported(response: http.client.HTTPResponse, api: str) -> DgpunetError:
    """Return the error that a response carries; without one, what answers is no head of ours."""
    body = b""
    with contextlib.suppress(*_GONE):
        body = response.read()
    return calls.error_of(answer_of(response, body, api))
