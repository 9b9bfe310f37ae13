"""The table of all routes with what each asks for, and the two listeners that serve it."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from dgpunet_dask.daemons.api import cluster_routes as cluster
from dgpunet_dask.daemons.api import dashboard
from dgpunet_dask.daemons.api import index_routes as indexes
from dgpunet_dask.daemons.api import job_routes as jobs
from dgpunet_dask.daemons.api import machine_routes as machines
from dgpunet_dask.daemons.api import model_routes as models
from dgpunet_dask.daemons.api.callers import Need
from dgpunet_dask.daemons.api.context import JSON_BYTES_MAX, ApiContext
from dgpunet_dask.daemons.api.handler import Handler, Missing

log = logging.getLogger(__name__)

DIGEST: Final = r"[0-9a-f]{64}"
#: The id of a job, a token, a key or a model, or a host's name.
ID: Final = r"[A-Za-z0-9._-]{1,100}"
#: The name of an index.
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
IDLE_S: Final = 120.0


class Route(NamedTuple):
    """One path, what answers there, and what each method asks for. A method that is not listed is refused."""

    path: str
    handler: type[Handler]
    needs: Mapping[str, Need]


ROUTES: Final = (
    Route("/v1/status", cluster.Status, {"GET": "viewer"}),
    Route("/v1/placements", cluster.Placements, {"GET": "operator"}),
    Route("/v1/fleet", cluster.Fleet, {"GET": "viewer"}),
    Route("/v1/policy", cluster.Policy, {"GET": "viewer"}),
    Route("/v1/policy/reload", cluster.Policy, {"POST": "operator"}),
    Route("/v1/lease", cluster.Lease, {"GET": "operator"}),
    Route(r"/v1/lease/(\d{1,20})/release", cluster.ReleaseLease, {"POST": "operator"}),
    Route("/v1/keep", cluster.Keep, {"POST": "operator"}),
    Route("/v1/shutdown", cluster.Shutdown, {"POST": "operator"}),
    Route("/v1/jobs", jobs.Jobs, {"GET": "viewer", "POST": "submitter"}),
    Route("/v1/plan", jobs.Plan, {"POST": "submitter"}),
    Route("/v1/explain", jobs.Explain, {"POST": "viewer"}),
    Route(f"/v1/jobs/({ID})", jobs.Job, {"GET": "viewer"}),
    Route(f"/v1/jobs/({ID})/events", jobs.Events, {"GET": "viewer"}),
    Route(f"/v1/jobs/({ID})/explain", jobs.ExplainJob, {"GET": "viewer"}),
    Route(f"/v1/jobs/({ID})/cancel", jobs.Cancel, {"POST": "submitter"}),
    Route(f"/v1/workloads/({DIGEST})", jobs.Workloads, {"HEAD": "submitter", "PUT": "submitter"}),
    Route("/v1/indexes", indexes.Indexes, {"GET": "viewer"}),
    Route(f"/v1/indexes/({NAME})", indexes.Index, {"GET": "viewer", "DELETE": "submitter"}),
    Route(f"/v1/indexes/({NAME})/search", indexes.Search, {"POST": "viewer"}),
    Route(f"/v1/indexes/({NAME})/share", indexes.Share, {"POST": "submitter"}),
    Route("/v1/models", models.Models, {"GET": "viewer"}),
    Route(f"/v1/models/({ID})/share", models.ShareModel, {"POST": "submitter"}),
    Route("/v1/ca", machines.Authority, {"GET": "public"}),
    Route("/v1/join", machines.Join, {"POST": "public"}),
    Route("/v1/join/check", machines.JoinCheck, {"POST": "public"}),
    Route("/v1/agents/heartbeat", machines.Heartbeat, {"POST": "agent"}),
    Route("/v1/agents/me", machines.Me, {"POST": "agent"}),
    Route("/v1/agents/renew", machines.Renew, {"POST": "agent"}),
    Route("/v1/agents/leave", machines.Leave, {"POST": "agent"}),
    Route("/v1/nodes", machines.Nodes, {"GET": "viewer"}),
    Route(f"/v1/nodes/({ID})/(cordon|uncordon|drain|remove)", machines.NodeAction, {"POST": "operator"}),
    Route("/v1/doctor", machines.Doctor, {"GET": "operator"}),
    Route("/v1/tokens", machines.Tokens, {"GET": "operator", "POST": "operator"}),
    Route(f"/v1/tokens/({ID})/revoke", machines.RevokeToken, {"POST": "operator"}),
    Route("/v1/keys", machines.ApiKeys, {"GET": "operator", "POST": "operator"}),
    Route(f"/v1/keys/({ID})/revoke", machines.RevokeKey, {"POST": "operator"}),
    Route("/login", dashboard.Login, {"GET": "public", "POST": "public"}),
    Route("/logout", dashboard.Logout, {"POST": "public"}),
    Route("/dashboard(?:/.*)?/ws", dashboard.DashboardSocket, {"GET": "viewer"}),
    Route("/dashboard(?:/.*)?", dashboard.Dashboard, {"GET": "viewer", "HEAD": "viewer"}),
)


class ServerIdentity(Protocol):
    """What a listener asks of this host's certificate."""

    @property
    def host(self) -> str:
        """The name that it states."""

    def server_context(self, clients: Literal["required", "optional"]) -> ssl.SSLContext:
        """Return a context whose certificate follows renewals."""


def make_application(ctx: ApiContext) -> Application:
    """Return the routes over `ctx`."""
    return Application(
        [(route.path, route.handler, {"ctx": ctx, "needs": route.needs}) for route in ROUTES],
        default_handler_class=Missing,
        default_handler_args={"ctx": ctx, "needs": {}},
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    log.debug("%d %s %s", handler.get_status(), handler.request.method, handler.request.path)


def listen(ctx: ApiContext, port: int = 0) -> HTTPServer:
    """Serve `ctx` in the clear on 127.0.0.1, on a free port unless one is named; `ctx.port` tells which."""
    sockets = bind_sockets(port, "127.0.0.1")
    ctx.port = sockets[0].getsockname()[1]
    ctx.sites["http"] = sites(("127.0.0.1", "localhost"), ctx.port, 80)
    server = HTTPServer(make_application(ctx), max_body_size=JSON_BYTES_MAX, idle_connection_timeout=IDLE_S)
    server.add_sockets(sockets)
    return server


def listen_tls(
    ctx: ApiContext, identity: ServerIdentity, addresses: Sequence[str], port: int = 0, names: Iterable[str] = ()
) -> HTTPServer:
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
            bound += bind_sockets(bound[0].getsockname()[1] if bound else port, address)
        context = identity.server_context("optional")
    except BaseException:
        for half in bound:
            half.close()
        raise
    ctx.tls_port = bound[0].getsockname()[1]
    ctx.sites["https"] = sites((*addresses, identity.host, *names), ctx.tls_port, 443)
    server = HTTPServer(make_application(ctx), ssl_options=context, max_body_size=JSON_BYTES_MAX, idle_connection_timeout=IDLE_S)
    server.add_sockets(bound)
    return server


def sites(hosts: Iterable[str], port: int, default: int) -> frozenset[str]:
    """Return what a Host header may say for these names and addresses; the scheme's `default` port may be left out."""
    named = {f"[{host}]" if ":" in host else host.lower() for host in hosts}
    return frozenset({f"{host}:{port}" for host in named} | (named if port == default else set()))
