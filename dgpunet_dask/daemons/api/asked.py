"""One request: who asks and from where, checked before anything else of it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request, cookie_parser
from starlette.types import Receive, Scope

from dgpunet_dask.daemons.api.answers import Refused
from dgpunet_dask.daemons.api.callers import Caller, Certificate, Need, Peer, caller_of, refusal
from dgpunet_dask.daemons.api.context import ApiContext, Membership
from dgpunet_dask.daemons.api.limits import AGAIN_S, ALL, Open
from dgpunet_dask.daemons.api.server import Connection
from dgpunet_dask.errors import DgpunetError, LoopbackOnly, NotAllowed, TooManyAttempts

#: Headers that decide who asks and where the request ends: two of one kind mean two things to two readers.
_SINGLE = ("host", "authorization", "origin", "content-type", "content-length", "transfer-encoding", "idempotency-key")


class Asked:
    """A request, of HTTP or for a websocket.

    Parameters
    ----------
    ctx
        What all requests share.
    scope
        What the server says of it.
    receive
        Gives its body.
    """

    def __init__(self, ctx: ApiContext, scope: Scope, receive: Receive) -> None:
        self.ctx, self.scope, self.receive = ctx, scope, receive
        self.headers = Headers(scope=scope)
        self.scheme = "https" if scope["scheme"] in {"https", "wss"} else "http"
        self.method = str(scope.get("method", "GET"))
        self.path = scope["raw_path"].decode("latin-1")
        self.connection: Connection = scope["state"]["connection"]
        self.connection.requests += 1
        self.asker: Caller | Peer | None = None
        self._is_local = False  # asked with the key of this machine's own commands

    # Before anything else

    def check_site(self) -> None:
        """Refuse requests for another host (DNS rebinding), those that a foreign page sends, and those that can be read in two ways."""
        names = [name.lower() for name, _ in self.headers.items()]
        if any(names.count(name) > 1 for name in _SINGLE) or {"content-length", "transfer-encoding"}.issubset(names):
            raise Refused(400, "a header is there twice, or contradicts another", close=True)
        own = self.ctx.sites.get(self.scheme, frozenset())
        if self.headers.get("host", "").lower() not in own:
            raise Refused(403, "unknown Host header")
        origin = self.headers.get("origin")
        if origin is not None and origin.lower() not in {f"{self.scheme}://{host}" for host in own}:
            raise Refused(403, "foreign Origin")

    def identify(self, *, cookie: str | None = None) -> Caller | Peer:
        """Find out who asks; 401 for nobody that is known, 429 for an address that has guessed too often.

        The local key is tried first, so that nobody can lock this machine's own commands out.
        """
        given, certificate = self.credentials(cookie)
        now = self.ctx.clock.wall()
        found = caller_of(given, None, self.local_key(), None, now)
        self._is_local = found is not None
        if found is None:
            if given is not None:
                self.check_attempts()  # a host's certificate is nothing that is guessed: its reports pass
            found = caller_of(given, certificate, None, self.ctx.keys, now)
            if isinstance(found, Caller):
                self._check_rate(found)
        if found is None:
            if given is not None:
                self.note_failure()
            raise Refused(401, "the API key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})
        if isinstance(found, Peer) and self.connection.requests > 1:
            # a certificate is held against the revocation list when a connection begins
            raise Refused(403, "a host's connection serves one request; connect anew", close=True)
        self.asker = found
        return found

    def check_still_known(self) -> None:
        """Refuse, after a wait, whose key was revoked or has expired meanwhile."""
        if isinstance(self.asker, Caller) and not self._is_local:
            given, certificate = self.credentials()
            if given is not None and caller_of(given, certificate, None, self.ctx.keys, self.ctx.clock.wall()) is None:
                raise Refused(401, "the API key was revoked or has expired", headers={"WWW-Authenticate": "Bearer"})

    def check_need(self, needs: Mapping[str, Need]) -> None:
        """Refuse a method that the route does not list, and whoever may not use it."""
        need = needs.get(self.method)
        if need is None:
            raise Refused(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(needs))})
        why = refusal(self.asker, need) if self.asker is not None else None
        if why is not None:
            raise NotAllowed(what=f"{self.method} {self.path}", why=why)

    def _check_rate(self, caller: Caller) -> None:
        wait_s = self.ctx.rates.take(caller.user or "", self.ctx.clock.monotonic())
        if wait_s > 0:
            raise Refused(429, "this user asks too often", wait_s=wait_s)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Answer the request meanwhile; 429 where too many are open: of its user, of its address, of all users but operators.

        Not bound are hosts and this machine's own commands. Who needs no key, on routes that are public, counts by address.
        """
        if isinstance(self.asker, Peer) or self._is_local:
            yield
            return
        request = {} if self.asker is None else {"user": self.asker.user or ""}
        request |= {"address": self.peer_address} if self.scheme == "https" else {}
        request |= {} if self.asker is not None and self.asker.operates else {"all": ALL}
        with self._one_of(self.ctx.open, **request):
            yield

    @contextmanager
    def waits(self) -> Iterator[None]:
        """Wait for something meanwhile; 429 where too many requests of the user do."""
        if self._is_local:
            yield
            return
        with self._one_of(self.ctx.waiting, user=self.caller.user or ""):
            yield

    @contextmanager
    def _one_of(self, bound: Open, **request: str) -> Iterator[None]:
        if (kind := bound.full(**request)) is not None:
            what = {"user": "this user", "address": "this address", "all": "all users"}[kind]
            raise Refused(429, f"{bound.bounds[kind]} requests of {what} are waiting for their answers already", wait_s=AGAIN_S)
        with bound.held(**request):
            yield

    # Who asks

    def local_key(self) -> tuple[str, str | None] | None:
        """Return the key of this machine's own commands and their user, ``None`` on a listener that others reach."""
        return (self.ctx.key, self.ctx.user) if self.scheme == "http" else None

    def credentials(self, cookie: str | None = None) -> tuple[str | None, Certificate | None]:
        """Return the Authorization header and the certificate that the listener has verified, where there is one.

        Parameters
        ----------
        cookie
            The name of one whose session stands for a key where there is no header; ``None``: none does.
        """
        given = self.headers.get("authorization")
        if given is None and cookie is not None and (session := self.cookie(cookie)):
            key = self.ctx.sessions.key(session, self.ctx.clock.monotonic())
            return (None, None) if key is None else (f"Bearer {key}", None)
        return given, self.connection.certificate

    def cookie(self, name: str) -> str:
        """Return a cookie's text, empty without one."""
        return cookie_parser(self.headers.get("cookie", "")).get(name, "")

    @property
    def peer_address(self) -> str:
        """The address that the request comes from."""
        client = self.scope.get("client")
        return str(client[0]) if client else ""

    @property
    def caller(self) -> Caller:
        """The user who asks, on a route that asks for a user's scope."""
        assert isinstance(self.asker, Caller)
        return self.asker

    @property
    def host(self) -> str:
        """The host that asks, on a route of agents: its certificate says so, and nothing in the request."""
        assert isinstance(self.asker, Peer)
        return self.asker.host

    # Those who guess

    def check_attempts(self) -> None:
        """Refuse to look at what an address sends that has failed too often."""
        wait_s = self.ctx.attempts.wait_s(self.peer_address, self.ctx.clock.monotonic())
        if wait_s > 0:
            raise TooManyAttempts(wait_s=wait_s)

    def note_failure(self) -> None:
        """Count a failed attempt of the address."""
        self.ctx.attempts.failed(self.peer_address, self.ctx.clock.monotonic())

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Count what is refused as a failed attempt of the address; refuse one that has failed too often."""
        self.check_attempts()
        try:
            yield
        except DgpunetError:
            self.note_failure()
            raise

    @property
    def membership(self) -> Membership:
        """The machines of the cluster.

        Raises
        ------
        LoopbackOnly
            If no other machine can join this cluster.
        """
        if self.ctx.membership is None:
            raise LoopbackOnly(what=f"{self.method} {self.path}")
        return self.ctx.membership


async def _asked_of(request: Request) -> Asked:
    """Return what the gate has made of the request."""
    return asked_of(request)


def asked_of(connection: HTTPConnection) -> Asked:
    """Return what the gate has made of a request."""
    found = connection.scope["asked"]
    assert isinstance(found, Asked)
    return found


#: A parameter of a route.
Ask = Annotated[Asked, Depends(_asked_of)]
