"""The table of all routes with what each asks for, and the two listeners that serve it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Final, Literal, Protocol

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from dgpunet_dask.daemons.api import cluster_routes as cluster
from dgpunet_dask.daemons.api import dashboard, document
from dgpunet_dask.daemons.api import forms as form
from dgpunet_dask.daemons.api import index_routes as indexes
from dgpunet_dask.daemons.api import job_routes as jobs
from dgpunet_dask.daemons.api import machine_routes as machines
from dgpunet_dask.daemons.api import model_routes as models
from dgpunet_dask.daemons.api.answers import Refused, error_answer
from dgpunet_dask.daemons.api.context import ApiContext
from dgpunet_dask.daemons.api.gate import DIGEST, ID, NAME, Does, Gate, Route
from dgpunet_dask.daemons.api.server import ApiServer
from dgpunet_dask.daemons.api.tls import TellingContext
from dgpunet_dask.errors import DgpunetError

__all__ = ["DIGEST", "ID", "NAME", "ROUTES", "ServerIdentity", "listen", "listen_tls", "make_application", "sites"]

_viewed: Final = partial(Does, "viewer")
_operated: Final = partial(Does, "operator")


def _sent(need: Any, endpoint: Callable[..., Any], gives: Any, takes: Any = form.Nothing, **more: Any) -> Does:
    """Return what takes a JSON object."""
    return Does(need, endpoint, gives, takes, json=True, **more)


def _hidden(need: Any, endpoint: Callable[..., Any]) -> Does:
    """Return what machines send each other, which no document tells of."""
    return Does(need, endpoint, told=False, json=True)


ROUTES: Final = (
    Route("/openapi.json", {"GET": _viewed(document.shown, told=False)}),
    Route("/v1/status", {"GET": _viewed(cluster.status, form.Object)}),
    Route("/v1/placements", {"GET": _operated(cluster.placements, list[form.Placement])}),
    Route("/v1/fleet", {"GET": _viewed(cluster.fleet, form.Object)}),
    Route("/v1/policy", {"GET": _viewed(cluster.policy, form.Policy)}),
    Route("/v1/policy/reload", {"POST": _sent("operator", cluster.policy_reloaded, form.Policy)}),
    Route("/v1/lease", {"GET": Does("operator", cluster.leased, told=False)}),
    Route("/v1/lease/{number}/release", {"POST": _hidden("operator", cluster.lease_released)}),
    Route("/v1/keep", {"POST": _hidden("operator", cluster.kept)}),
    Route("/v1/shutdown", {"POST": _sent("operator", cluster.shut_down, form.Nothing)}),
    Route("/v1/jobs", {
        "GET": _viewed(jobs.listed, list[form.Job], fails=(404,)),
        "POST": _sent("submitter", jobs.submitted, form.Job | form.JobArray, None, status=201, again=200, fails=(404, 409)),
    }),
    Route("/v1/plan", {"POST": _sent("submitter", jobs.planned, form.Object, None, fails=(404, 409))}),
    Route("/v1/explain", {"POST": _sent("viewer", jobs.demand_explained, form.Object, None, fails=(409,))}),
    Route("/v1/jobs/{job_id}", {"GET": _viewed(jobs.shown, form.Job)}),
    Route("/v1/jobs/{job_id}/events", {"GET": _viewed(jobs.events, list[form.Event])}),
    Route("/v1/jobs/{job_id}/explain", {"GET": _viewed(jobs.explained, form.JobExplanation)}),
    Route("/v1/jobs/{job_id}/progress", {"GET": _viewed(jobs.progress, form.Progress)}),
    Route("/v1/jobs/{job_id}/attempts", {"GET": _viewed(jobs.attempts, list[form.Attempt])}),
    Route("/v1/jobs/{job_id}/cancel", {"POST": _sent("submitter", jobs.cancelled, form.Job)}),
    Route("/v1/jobs/{job_id}/retry", {"POST": _sent("submitter", jobs.retried, form.Job, fails=(409,))}),
    Route("/v1/workloads/{digest}", {
        "HEAD": Does("submitter", jobs.workload_looked_for),
        "PUT": Does("operator", jobs.workload_taken, form.WorkloadTaken, bytes, status=201, fails=(408, 413)),
    }),
    Route("/v1/indexes", {"GET": _viewed(indexes.listed, list[form.IndexInfo])}),
    Route("/v1/indexes/{name}", {
        "GET": _viewed(indexes.shown, form.IndexInfo), "DELETE": Does("submitter", indexes.removed, form.IndexRemoved, fails=(409,)),
    }),
    Route("/v1/indexes/{name}/search", {"POST": _sent("viewer", indexes.searched, form.SearchAnswers, form.SearchRequest)}),
    Route("/v1/indexes/{name}/lines", {"POST": _sent("viewer", indexes.lines, form.Lines, form.LinesRequest)}),
    Route("/v1/indexes/{name}/verify", {"POST": Does("submitter", indexes.verified, form.IndexVerified)}),
    Route("/v1/indexes/{name}/compact", {"POST": Does("submitter", indexes.compacted, form.IndexCompacted)}),
    Route("/v1/indexes/{name}/share", {"POST": _sent("submitter", indexes.shared, form.IndexInfo, None)}),
    Route("/v1/models", {"GET": _viewed(models.listed, list[form.Model])}),
    Route("/v1/models/{model_id}/share", {"POST": _sent("submitter", models.shared, form.Model, None)}),
    Route("/v1/ca", {"GET": Does("public", machines.authority, told=False)}),
    Route("/v1/join", {"POST": _hidden("public", machines.joined)}),
    Route("/v1/join/check", {"POST": _hidden("public", machines.join_checked)}),
    Route("/v1/agents/heartbeat", {"POST": _hidden("agent", machines.heartbeat)}),
    Route("/v1/agents/me", {"POST": _hidden("agent", machines.me)}),
    Route("/v1/agents/renew", {"POST": _hidden("agent", machines.renewed)}),
    Route("/v1/agents/leave", {"POST": _hidden("agent", machines.left)}),
    Route("/v1/nodes", {"GET": _viewed(machines.nodes, list[form.Node], fails=(409,))}),
    Route("/v1/nodes/{host}/{action}", {"POST": _sent("operator", machines.node_changed, form.Object, None, fails=(409,))}),
    Route("/v1/doctor", {"GET": _operated(machines.doctor, form.Object, fails=(409,))}),
    Route("/v1/tokens", {
        "GET": _operated(machines.tokens, list[form.Object], fails=(409,)),
        "POST": _sent("operator", machines.token_made, form.Object, None, status=201, fails=(409,)),
    }),
    Route("/v1/tokens/{token_id}/revoke", {"POST": _sent("operator", machines.token_revoked, form.Object, fails=(409,))}),
    Route("/v1/keys", {
        "GET": _operated(machines.keys, list[form.Object], fails=(409,)),
        "POST": _sent("operator", machines.key_made, form.Object, None, status=201, fails=(409,)),
    }),
    Route("/v1/keys/{key_id}/revoke", {"POST": _sent("operator", machines.key_revoked, form.Object, fails=(409,))}),
    Route("/login", {method: Does("public", dashboard.login, told=False) for method in ("GET", "POST")}, page=dashboard.login),
    Route("/logout", {"POST": Does("public", dashboard.logout, told=False)}, page=dashboard.logout),
    Route(
        "/dashboard{page}/ws", {"GET": _viewed(dashboard.socket, told=False)},
        page=dashboard.no_page, socket=dashboard.socket, cookie=dashboard.COOKIE,
    ),
    Route(
        "/dashboard{page}", {method: _viewed(dashboard.page, told=False) for method in ("GET", "HEAD")},
        page=dashboard.page, cookie=dashboard.COOKIE,
    ),
)  # fmt: skip


class ServerIdentity(Protocol):
    """What a listener asks of this host's certificate."""

    @property
    def host(self) -> str:
        """The name that it states."""

    def server_context(self, clients: Literal["required", "optional"]) -> ssl.SSLContext:
        """Return a context whose certificate follows renewals."""


def make_application(ctx: ApiContext) -> ASGIApp:
    """Return the routes over `ctx`, with the gate in front."""
    return Gate(ctx, ROUTES, application())


@cache
def application() -> FastAPI:
    """Return FastAPI's part, which takes a while to make and is the same for all listeners: the gate hands the context on."""
    app = FastAPI(title="DGPUNET-Dask", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for route in ROUTES:
        if route.page is None:
            for method, does in route.does.items():
                app.add_api_route(route.template, does.endpoint, methods=[method], **document.of(route, method, does))
    for kind in (DgpunetError, Refused, RequestValidationError, Exception):
        app.add_exception_handler(kind, _told)
    app.openapi = partial(document.written, app, ROUTES)  # type: ignore[method-assign]  # FastAPI's own way
    return app


async def _told(_: Request, error: Exception) -> Response:
    return error_answer(error)


def listen(ctx: ApiContext, port: int = 0) -> ApiServer:
    """Serve `ctx` in the clear on 127.0.0.1, on a free port unless one is named; `ctx.port` tells which.

    Raises
    ------
    OSError
        If the port is taken.
    """
    bound = _bound("127.0.0.1", port)
    ctx.port = bound.getsockname()[1]
    ctx.sites["http"] = sites(("127.0.0.1", "localhost"), ctx.port, 80)
    return ApiServer(make_application(ctx), [bound])


def listen_tls(
    ctx: ApiContext, identity: ServerIdentity, addresses: Sequence[str], port: int = 0, names: Iterable[str] = ()
) -> ApiServer:
    """Serve `ctx` under TLS; `ctx.tls_port` tells on which port.

    Users show a key, agents a certificate: one is asked for and verified, and may be missing.

    Parameters
    ----------
    identity
        This host's certificate.
    addresses
        IP addresses to bind.
    port
        One port for all of them; 0: a free one.
    names
        Further names and addresses by which this host is asked, beside those bound and its certificate's name.

    Raises
    ------
    OSError
        If the port is taken.
    """
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            bound.append(_bound(address, bound[0].getsockname()[1] if bound else port))
        context = TellingContext.over(identity.server_context("optional"))
    except BaseException:
        for half in bound:
            half.close()
        raise
    ctx.tls_port = bound[0].getsockname()[1]
    ctx.sites["https"] = sites((*addresses, identity.host, *names), ctx.tls_port, 443)
    return ApiServer(make_application(ctx), bound, context)


def _bound(address: str, port: int) -> socket.socket:
    """Return a socket at an IP address and port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sends without delay only where the protocol is named
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last connections are still ending is free
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def sites(hosts: Iterable[str], port: int, default: int) -> frozenset[str]:
    """Return what a Host header may say for these names and addresses; the scheme's `default` port may be left out."""
    named = {f"[{host}]" if ":" in host else host.lower() for host in hosts}
    return frozenset({f"{host}:{port}" for host in named} | (named if port == default else set()))
