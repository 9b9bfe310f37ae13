"""The base of all routes: checks who asks and from where, before anything else; answers in JSON, errors too."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakSet

from tornado.web import HTTPError, RequestHandler

from dgpunet_dask.cluster.wire import error_to_wire
from dgpunet_dask.daemons.api.callers import Caller, Need, Peer, caller_of, refusal
from dgpunet_dask.daemons.api.context import ApiContext, Membership
from dgpunet_dask.errors import (
    BadValue,
    CertificateRefused,
    DgpunetError,
    JobFailed,
    LoopbackOnly,
    NotAllowed,
    NotFound,
    TokenRefused,
    TooManyAttempts,
    UsageError,
)
from dgpunet_dask.stagehost.reports import full_disk

log = logging.getLogger(__name__)

#: What is not a matter of how it was asked.
_STATUS: Final[Mapping[type[DgpunetError], int]] = {
    NotAllowed: 403, TokenRefused: 403, CertificateRefused: 403, LoopbackOnly: 409, TooManyAttempts: 429,
}  # fmt: skip


class Handler(RequestHandler):
    """One route. `needs` says what each of its methods asks for; a method that it does not list is refused."""

    ctx: ApiContext
    needs: Mapping[str, Need]
    asker: Caller | Peer | None = None
    wait_s: float = 0.0

    def initialize(self, ctx: ApiContext, needs: Mapping[str, Need]) -> None:
        """Take the shared context and what the route asks for; called by tornado for each request."""
        self.ctx = ctx
        self.needs = needs

    def set_default_headers(self) -> None:
        """Name the type of every answer, and forbid guessing and keeping it."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")
        if isinstance(self.asker, Peer):
            self.set_header("Connection", "close")  # see `_spend_connection`
        if self.wait_s > 0:
            self.set_header("Retry-After", str(int(self.wait_s) + 1))

    def prepare(self) -> None:
        """Refuse requests for another host, from another site, without a key, with too small a one, or by a method that is not listed."""
        self.check_site()
        need = self.needs.get(self.request.method or "")
        if need == "public":
            return
        self.asker = self.who()
        self.set_default_headers()
        if need is None:
            raise HTTPError(405)
        why = refusal(self.asker, need)
        if why is not None:
            raise NotAllowed(what=f"{self.request.method} {self.request.path}", why=why)

    def check_site(self) -> None:
        """Refuse requests for another host (DNS rebinding) and those that a foreign page sends."""
        scheme = self.request.protocol
        own = self.ctx.sites.get(scheme, frozenset())
        if self.request.headers.get("Host", "").lower() not in own:
            raise HTTPError(403, reason="unknown Host header")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"{scheme}://{host}" for host in own}:
            raise HTTPError(403, reason="foreign Origin")

    def who(self) -> Caller | Peer:
        """Return who asks; 401 for nobody that is known, 429 for an address that has guessed too often.

        The local key is tried first, so that nobody can lock this machine's own commands out.
        """
        given, certificate = self.credentials()
        now = self.ctx.clock.wall()
        found = caller_of(given, None, self.local_key(), None, now)
        if found is None:
            if given is not None:
                self.check_attempts()  # a host's certificate is nothing that is guessed: its reports pass
            found = caller_of(given, certificate, None, self.ctx.keys, now)
        if found is None:
            if given is not None:
                self.note_failure()
            raise HTTPError(401, reason="the API key is missing or wrong")
        if isinstance(found, Peer):
            self._spend_connection()
        return found

    def _spend_connection(self) -> None:
        """Let a host's connection carry one request: a certificate is held against the revocation list when a connection begins."""
        spent: WeakSet[object] = self.application.settings.setdefault("spent", WeakSet())
        connection = self.request.server_connection
        if connection in spent:
            raise HTTPError(403, reason="a host's connection serves one request; connect anew")
        spent.add(connection)

    def local_key(self) -> tuple[str, str | None] | None:
        """Return the key of this machine's own commands and their user, ``None`` on a listener that others reach."""
        return (self.ctx.key, self.ctx.user) if self.request.protocol == "http" else None

    def credentials(self) -> tuple[str | None, Mapping[str, Any] | None]:
        """Return the Authorization header and the certificate that the listener has verified, where there is one."""
        certificate = self.request.get_ssl_certificate() if self.request.protocol == "https" else None
        return self.request.headers.get("Authorization"), certificate if isinstance(certificate, dict) and certificate else None

    @property
    def peer_address(self) -> str:
        """The address that the request comes from."""
        return str(self.request.remote_ip)

    def check_attempts(self) -> None:
        """Refuse to look at what an address sends that has failed too often."""
        self.wait_s = self.ctx.attempts.wait_s(self.peer_address, self.ctx.clock.monotonic())
        if self.wait_s > 0:
            raise TooManyAttempts(wait_s=self.wait_s)

    def note_failure(self) -> None:
        """Count a failed attempt of the address."""
        self.ctx.attempts.failed(self.peer_address, self.ctx.clock.monotonic())

    @property
    def caller(self) -> Caller:
        """The user who asks, on a route that asks for a user's scope."""
        assert isinstance(self.asker, Caller)
        return self.asker

    @property
    def membership(self) -> Membership:
        """The machines of the cluster.

        Raises
        ------
        LoopbackOnly
            If no other machine can join this cluster.
        """
        if self.ctx.membership is None:
            raise LoopbackOnly(what=f"{self.request.method} {self.request.path}")
        return self.ctx.membership

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
            told = error_to_wire(full_disk(error) or DgpunetError(detail=f"{type(error).__name__}: {error}"))
        self.finish(json.dumps({"error": told}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a traceback only for what nobody expected."""
        if not isinstance(value, DgpunetError | HTTPError):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=(typ, value, tb))


class Missing(Handler):
    """Everything that has no route."""

    def prepare(self) -> None:
        """Check the caller first: without the key, nobody learns which routes there are."""
        self.check_site()
        self.asker = self.who()
        raise HTTPError(404, reason="no such route")


def http_status(error: DgpunetError) -> int:
    """Return the HTTP status that fits `error`."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, NotFound):
        return 404
    return 500 if not isinstance(error, JobFailed) and error.exit_code == 1 else 409
