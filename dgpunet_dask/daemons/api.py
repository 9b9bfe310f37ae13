"""The head's HTTP API: JSON on 127.0.0.1, behind a key.

A page in the user's browser must not reach it either: the Host header has to name this server (DNS rebinding), a foreign Origin is refused,
and a body counts only as ``application/json``, which a page cannot send elsewhere without asking first.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from dgpunet_dask.cluster.wire import error_to_wire, job_to_wire
from dgpunet_dask.errors import BadValue, DgpunetError, JobFailed, NotFound, UsageError
from dgpunet_dask.model.job import JobStatus

log = logging.getLogger(__name__)

JSON_BYTES_MAX: Final = 1 << 20
WORKLOAD_BYTES_MAX: Final = 256 << 20
WAIT_S_MAX: Final = 60.0
DIGEST: Final = r"[0-9a-f]{64}"
JOB_ID: Final = r"[A-Za-z0-9._-]{1,100}"


class JobService(Protocol):
    """What the API asks of the jobs. Errors are DgpunetErrors."""

    async def submit(self, request: dict[str, Any]) -> JobStatus:
        """Accept a job."""

    async def plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return where each stage of a job could go now, without running it."""

    async def list(self) -> Sequence[JobStatus]:
        """Return all jobs, oldest first."""

    async def show(self, job_id: str) -> JobStatus:
        """Return one job; NoSuchJob if there is none."""

    async def events(self, job_id: str, since: int, wait_s: float) -> Sequence[dict[str, Any]]:
        """Return the job's events after number `since`, waiting up to `wait_s` seconds for the first."""

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; a finished one stays as it is."""

    async def has_workload(self, digest: str) -> bool:
        """Whether the workload's files are here."""

    async def add_workload(self, digest: str, stream: BinaryIO) -> None:
        """Take a workload as a tar stream; refuse it where its digest is another."""

    async def scheduler_lost(self, why: str) -> None:
        """Fail what runs, with the cause: the scheduler is gone, and with it every task it knew."""

    async def close(self) -> None:
        """Stop what runs."""


class Why(Protocol):
    """What the API asks about placement."""

    async def fleet(self) -> dict[str, Any]:
        """Return the live fleet."""

    async def demand(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return where a demand would go now."""

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return why the units of a job are where they are; NoSuchJob if there is none."""


@dataclass
class ApiContext:
    """What the handlers share.

    Parameters
    ----------
    key
        The bearer key.
    service
        The jobs.
    status, placements
        Answer ``/v1/status`` and ``/v1/placements``.
    why
        Answers ``/v1/fleet``, ``/v1/explain`` and ``/v1/jobs/ID/explain``.
    policy, reload
        Answer ``/v1/policy``; `reload` reads the files first.
    shutdown
        Called once the head shall stop, with the reason.
    embedded
        Whether the head stops with its last lease.
    uploads
        Folder for workloads while they arrive.
    """

    key: str
    service: JobService
    status: Callable[[], Awaitable[dict[str, Any]]]
    placements: Callable[[int], Awaitable[Sequence[dict[str, Any]]]]
    why: Why
    policy: Callable[[], dict[str, Any]]
    reload: Callable[[], Awaitable[dict[str, Any]]]
    shutdown: Callable[[str], None]
    embedded: bool
    uploads: Path
    keep: Callable[[], None] = lambda: None
    port: int = 0
    leases: set[object] = field(default_factory=set)
    stopping: bool = False

    def end_lease(self, lease: object) -> bool:
        """Forget `lease`; return whether it was the last of an embedded head, which then stops."""
        if lease not in self.leases:
            return False
        self.leases.discard(lease)
        last = self.embedded and not self.leases
        if last:
            self.stopping = True
            self.shutdown("the last command that used this embedded cluster has ended")
        return last


class Handler(RequestHandler):
    """Checks who asks and from where, before anything else; answers in JSON, errors too."""

    ctx: ApiContext

    def initialize(self, ctx: ApiContext) -> None:
        """Take the shared context; called by tornado for each request."""
        self.ctx = ctx

    def set_default_headers(self) -> None:
        """Name the type of every answer, and forbid guessing and keeping it."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse requests for another host, from another site, or without the key."""
        own = {f"127.0.0.1:{self.ctx.port}", f"localhost:{self.ctx.port}"}
        if self.request.headers.get("Host", "").lower() not in own:
            raise HTTPError(403, reason="unknown Host header")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in own}:
            raise HTTPError(403, reason="foreign Origin")
        given = self.request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, b"Bearer " + self.ctx.key.encode()):
            raise HTTPError(401, reason="the API key is missing or wrong")

    def body_json(self) -> dict[str, Any]:
        """Return the request's body, which must be a JSON object."""
        if self.request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise HTTPError(415, reason="send application/json")
        try:
            found = json.loads(self.request.body or b"{}")
        except (ValueError, RecursionError):
            raise HTTPError(400, reason="the body is not JSON") from None
        if not isinstance(found, dict):
            raise HTTPError(400, reason="the body must be a JSON object")
        return found

    def number(self, name: str, default: float, most: float) -> float:
        """Return a query argument as a number between 0 and `most`."""
        text = self.get_query_argument(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise BadValue(what=name, value=text, why="write a number that is not negative")
        return min(value, most)

    def answer(self, value: Any) -> None:
        """Send `value` as JSON."""
        self.write(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the error object of what was raised."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, DgpunetError):
            self.set_status(http_status(error))
            told = error_to_wire(error)
        elif isinstance(error, HTTPError) or error is None:
            told = {"code": f"http_{status_code}", "message": self._reason, "reasons": [], "exit_code": 1}
        else:
            told = error_to_wire(DgpunetError(detail=f"{type(error).__name__}: {error}"))
        self.finish(json.dumps({"error": told}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a traceback only for what nobody expected."""
        if not isinstance(value, DgpunetError | HTTPError):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))


def http_status(error: DgpunetError) -> int:
    """Return the HTTP status that fits `error`."""
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, NotFound):
        return 404
    return 500 if not isinstance(error, JobFailed) and error.exit_code == 1 else 409


class Missing(Handler):
    """Everything that has no route."""

    def prepare(self) -> None:
        """Check the caller first: without the key, nobody learns which routes there are."""
        super().prepare()
        raise HTTPError(404, reason="no such route")


class Status(Handler):
    """``GET /v1/status``."""

    async def get(self) -> None:
        """Send the daemon, its addresses and its workers."""
        self.answer(await self.ctx.status())


class Placements(Handler):
    """``GET /v1/placements?since=N``."""

    async def get(self) -> None:
        """Send the placements after number `since`."""
        self.answer(list(await self.ctx.placements(int(self.number("since", 0, 1e15)))))


class Fleet(Handler):
    """``GET /v1/fleet``."""

    async def get(self) -> None:
        """Send hosts, devices, charges and states."""
        self.answer(await self.ctx.why.fleet())


class Policy(Handler):
    """``GET /v1/policy`` and, to have the files read at once, ``POST /v1/policy/reload``."""

    async def get(self) -> None:
        """Send what is in force, and what was wrong with later changes."""
        self.answer(self.ctx.policy())

    async def post(self) -> None:
        """Read the files, then send the same."""
        self.body_json()
        self.answer(await self.ctx.reload())


class Explain(Handler):
    """``POST /v1/explain``."""

    async def post(self) -> None:
        """Send where a demand would go now, and why not elsewhere."""
        self.answer(await self.ctx.why.demand(self.body_json()))


class ExplainJob(Handler):
    """``GET /v1/jobs/ID/explain``."""

    async def get(self, job_id: str) -> None:
        """Send why the units of the job are where they are."""
        self.answer(await self.ctx.why.job(job_id))


class Jobs(Handler):
    """``GET`` and ``POST /v1/jobs``."""

    async def get(self) -> None:
        """Send all jobs."""
        self.answer([job_to_wire(job) for job in await self.ctx.service.list()])

    async def post(self) -> None:
        """Accept a job."""
        status = await self.ctx.service.submit(self.body_json())
        self.set_status(201)
        self.answer(job_to_wire(status))


class Plan(Handler):
    """``POST /v1/plan``."""

    async def post(self) -> None:
        """Send where each stage of a job could go now."""
        self.answer(await self.ctx.service.plan(self.body_json()))


class Job(Handler):
    """``GET /v1/jobs/ID``."""

    async def get(self, job_id: str) -> None:
        """Send one job."""
        self.answer(job_to_wire(await self.ctx.service.show(job_id)))


class Events(Handler):
    """``GET /v1/jobs/ID/events?since=N&wait=S``."""

    async def get(self, job_id: str) -> None:
        """Send the events after `since`; wait up to `wait` seconds for the first."""
        since, wait_s = int(self.number("since", 0, 1e15)), self.number("wait", 0, WAIT_S_MAX)
        self.answer(list(await self.ctx.service.events(job_id, since, wait_s)))


class Cancel(Handler):
    """``POST /v1/jobs/ID/cancel``."""

    async def post(self, job_id: str) -> None:
        """Cancel the job."""
        self.body_json()
        self.answer(job_to_wire(await self.ctx.service.cancel(job_id)))


@stream_request_body
class Workloads(Handler):
    """``HEAD`` and ``PUT /v1/workloads/DIGEST``: whether a workload is here, and its tar stream."""

    upload: BinaryIO | None = None

    def prepare(self) -> None:
        """Check the caller, then let the body in, up to its limit, into a file without a name."""
        super().prepare()
        if self.request.method == "PUT":
            length = self.request.headers.get("Content-Length", "0")
            if not (length.isascii() and length.isdigit()):
                raise HTTPError(400, reason="Content-Length is not a number")
            if int(length) > WORKLOAD_BYTES_MAX:
                raise HTTPError(413, reason=f"a workload may have {WORKLOAD_BYTES_MAX >> 20} MiB at most")
            self.request.connection.set_max_body_size(WORKLOAD_BYTES_MAX)  # type: ignore[union-attr]  # HTTP/1 always has it
            self.ctx.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.upload = tempfile.TemporaryFile(dir=self.ctx.uploads)  # noqa: SIM115  # closed in on_finish

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self.upload is not None:
            self.upload.write(chunk)

    async def head(self, digest: str) -> None:
        """Answer 200 or 404."""
        if not await self.ctx.service.has_workload(digest):
            raise HTTPError(404, reason="this workload is not here")

    async def put(self, digest: str) -> None:
        """Take the workload."""
        assert self.upload is not None
        self.upload.seek(0)
        await self.ctx.service.add_workload(digest, self.upload)
        self.set_status(201)
        self.answer({"digest": digest})

    def on_finish(self) -> None:
        """Let go of the file."""
        if self.upload is not None:
            self.upload.close()

    on_connection_close = on_finish


class Lease(Handler):
    """``GET /v1/lease``: held open for as long as a command uses the cluster; its end, also by ``kill -9``, ends the lease."""

    async def get(self) -> None:
        """Send the lease's number at once, then nothing until the caller is gone."""
        if self.ctx.stopping:
            raise HTTPError(503, reason="this head is stopping")
        self.gone = asyncio.Event()
        self.ctx.leases.add(self)
        try:
            self.write(json.dumps({"lease": id(self)}) + "\n")
            await self.flush()
            await self.gone.wait()
        finally:
            self.ctx.end_lease(self)

    def on_connection_close(self) -> None:
        """The caller is gone."""
        self.gone.set()


class ReleaseLease(Handler):
    """``POST /v1/lease/N/release``: ends a lease in good order, and tells whether it was the last."""

    def post(self, number: str) -> None:
        """Send ``{"last": bool}``."""
        self.body_json()
        lease = next((x for x in self.ctx.leases if id(x) == int(number)), None)
        self.answer({"last": self.ctx.end_lease(lease)})


class Keep(Handler):
    """``POST /v1/keep``: an embedded head stays after its last lease, as ``up`` wants it."""

    def post(self) -> None:
        """Keep running."""
        self.body_json()
        if self.ctx.stopping:
            raise HTTPError(503, reason="this head is stopping")
        self.ctx.embedded = False
        self.ctx.keep()
        self.answer({})


class Shutdown(Handler):
    """``POST /v1/shutdown``."""

    def post(self) -> None:
        """Stop the head, after this answer."""
        self.body_json()
        self.ctx.stopping = True
        self.answer({})
        asyncio.get_running_loop().call_soon(self.ctx.shutdown, "asked to stop")


def make_application(ctx: ApiContext) -> Application:
    """Return the routes over `ctx`."""
    shared = {"ctx": ctx}
    routes: list[tuple[str, type[Handler]]] = [
        ("/v1/status", Status),
        ("/v1/placements", Placements),
        ("/v1/jobs", Jobs),
        ("/v1/plan", Plan),
        ("/v1/fleet", Fleet),
        ("/v1/policy", Policy),
        ("/v1/policy/reload", Policy),
        ("/v1/explain", Explain),
        (f"/v1/jobs/({JOB_ID})/explain", ExplainJob),
        (f"/v1/jobs/({JOB_ID})", Job),
        (f"/v1/jobs/({JOB_ID})/events", Events),
        (f"/v1/jobs/({JOB_ID})/cancel", Cancel),
        (f"/v1/workloads/({DIGEST})", Workloads),
        ("/v1/lease", Lease),
        (r"/v1/lease/(\d{1,20})/release", ReleaseLease),
        ("/v1/keep", Keep),
        ("/v1/shutdown", Shutdown),
    ]
    return Application(
        [(path, handler, shared) for path, handler in routes],
        default_handler_class=Missing,
        default_handler_args=shared,
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    log.debug("%d %s %s", handler.get_status(), handler.request.method, handler.request.path)


def listen(ctx: ApiContext, port: int = 0) -> HTTPServer:
    """Serve `ctx` on 127.0.0.1, on a free port unless one is named; `ctx.port` tells which."""
    sockets = bind_sockets(port, "127.0.0.1")
    ctx.port = sockets[0].getsockname()[1]
    server = HTTPServer(make_application(ctx), max_body_size=JSON_BYTES_MAX, idle_connection_timeout=120)
    server.add_sockets(sockets)
    return server
