"""Routes about the machines of a cluster: enrolment, what agents send, and what operators do. Each calls one method of the membership."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from dgpunet_dask.daemons.api.callers import Peer
from dgpunet_dask.daemons.api.handler import Handler
from dgpunet_dask.errors import BadValue, DgpunetError


class Authority(Handler):
    """``GET /v1/ca``, without a key: a certificate is public, and whoever joins compares its fingerprint with the token's."""

    async def get(self) -> None:
        """Send the authority's certificate as PEM."""
        pem = await self.membership.ca_pem()
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write(pem)


class TokenHandler(Handler):
    """What is asked without a key: the token in the request is the credential, and guessing it is slowed down."""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Count what is refused as a failed attempt of the address; refuse one that has failed too often."""
        self.check_attempts()
        try:
            yield
        except DgpunetError:
            self.note_failure()
            raise


class Join(TokenHandler):
    """``POST /v1/join``."""

    async def post(self) -> None:
        """Take a host in."""
        with self.guarded():
            self.answer(await self.membership.enrol(self.body_json(), self.peer_address))


class JoinCheck(TokenHandler):
    """``POST /v1/join/check``."""

    async def post(self) -> None:
        """Send what a host that joins would find. The token is not used up."""
        with self.guarded():
            self.answer(await self.membership.join_check(self.body_json(), self.peer_address))


class AgentHandler(Handler):
    """What agents send. Who they are is said by their certificate, and by nothing in the request."""

    @property
    def host(self) -> str:
        """The name in the certificate."""
        assert isinstance(self.asker, Peer)
        return self.asker.host


class Heartbeat(AgentHandler):
    """``POST /v1/agents/heartbeat``."""

    async def post(self) -> None:
        """Take a host's report; send epoch, commands, peers and the revocation list."""
        self.answer(await self.membership.heartbeat(self.host, self.body_json()))


class Me(AgentHandler):
    """``POST /v1/agents/me``."""

    async def post(self) -> None:
        """Send the host that asks, as `nodes` shows it."""
        self.body_json()
        self.answer(await self.membership.me(self.host))


class Renew(AgentHandler):
    """``POST /v1/agents/renew``."""

    async def post(self) -> None:
        """Send a new certificate."""
        self.answer(await self.membership.renew(self.host, self.body_json()))


class Leave(AgentHandler):
    """``POST /v1/agents/leave``."""

    async def post(self) -> None:
        """Let the host go."""
        self.body_json()
        await self.membership.leave(self.host)
        self.answer({})


class Nodes(Handler):
    """``GET /v1/nodes``."""

    async def get(self) -> None:
        """Send the hosts."""
        self.answer(await self.membership.nodes())


class NodeAction(Handler):
    """``POST /v1/nodes/HOST/ACTION``."""

    async def post(self, host: str, action: Any) -> None:
        """Change what the host may do."""
        self.answer(await self.membership.node_action(host, action, self.body_json()))


class Doctor(Handler):
    """``GET /v1/doctor?NAME=JSON``: each argument's value is JSON."""

    async def get(self) -> None:
        """Send the findings."""
        asked = {name: _json_of(name, values[-1]) for name, values in self.request.query_arguments.items()}
        self.answer(await self.membership.doctor(asked))


def _json_of(name: str, value: bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadValue(what=name, value=value.decode(errors="replace")[:80], why="its value must be JSON") from None


class Tokens(Handler):
    """``GET`` and ``POST /v1/tokens``."""

    async def get(self) -> None:
        """Send the join tokens, without their secrets."""
        self.answer(await self.membership.tokens())

    async def post(self) -> None:
        """Make a token and send its text, this once."""
        made = await self.membership.token_create(self.body_json())
        self.set_status(201)
        self.answer(made)


class RevokeToken(Handler):
    """``POST /v1/tokens/ID/revoke``."""

    async def post(self, token_id: str) -> None:
        """Make the token worthless."""
        self.body_json()
        self.answer(await self.membership.token_revoke(token_id))


class ApiKeys(Handler):
    """``GET`` and ``POST /v1/keys``."""

    async def get(self) -> None:
        """Send the keys, without their secrets."""
        self.answer(await self.membership.keys())

    async def post(self) -> None:
        """Make a key and send its text, this once."""
        made = await self.membership.key_create(self.body_json())
        self.set_status(201)
        self.answer(made)


class RevokeKey(Handler):
    """``POST /v1/keys/ID/revoke``."""

    async def post(self, key_id: str) -> None:
        """Make the key worthless."""
        self.body_json()
        self.answer(await self.membership.key_revoke(key_id))
