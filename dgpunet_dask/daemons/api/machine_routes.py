"""Routes about the machines of a cluster: enrolment, what agents send, and what operators do. Each calls one method of the membership."""

from __future__ import annotations

from typing import Any, cast

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dgpunet_dask.daemons.api.answers import Json
from dgpunet_dask.daemons.api.asked import Ask
from dgpunet_dask.daemons.api.bodies import json_of
from dgpunet_dask.daemons.api.context import NodeAction
from dgpunet_dask.daemons.api.forms import KeyRequest, NodeRequest, TokenRequest
from dgpunet_dask.errors import BadValue

# Whoever joins


async def authority(asked: Ask) -> Response:
    """Send the authority's certificate as PEM, to anyone: whoever joins compares its fingerprint with the token's."""
    return PlainTextResponse(await asked.membership.ca_pem())


async def joined(asked: Ask, body: dict[str, Any]) -> Response:
    """Take a host in. The token in the request is the credential, and guessing it is slowed down."""
    with asked.guarded():
        return Json(await asked.membership.enrol(body, asked.peer_address))


async def join_checked(asked: Ask, body: dict[str, Any]) -> Response:
    """Tell what a host that joins would find. The token is not used up."""
    with asked.guarded():
        return Json(await asked.membership.join_check(body, asked.peer_address))


# Agents. Who they are is said by their certificate, and by nothing in the request.


async def heartbeat(asked: Ask, body: dict[str, Any]) -> Response:
    """Take a host's report; send epoch, commands, peers and the revocation list."""
    return Json(await asked.membership.heartbeat(asked.host, body))


async def me(asked: Ask) -> Response:
    """Show the host that asks."""
    return Json(await asked.membership.me(asked.host))


async def renewed(asked: Ask, body: dict[str, Any]) -> Response:
    """Send a new certificate."""
    return Json(await asked.membership.renew(asked.host, body))


async def left(asked: Ask) -> Response:
    """Let the host go."""
    await asked.membership.leave(asked.host)
    return Json({})


# Operators


async def nodes(asked: Ask) -> Response:
    """List the hosts."""
    return Json(await asked.membership.nodes())


async def node_changed(asked: Ask, host: str, action: str, body: NodeRequest) -> Response:
    """Cordon, uncordon, drain or remove a host."""
    return Json(await asked.membership.node_action(host, cast("NodeAction", action), body.model_dump(exclude_unset=True)))


async def doctor(asked: Ask, request: Request) -> Response:
    """Examine the cluster. Each argument's value is JSON."""
    return Json(await asked.membership.doctor(_arguments(request.query_params)))


def _arguments(query: QueryParams) -> dict[str, Any]:
    found = {}
    for name, text in query.items():
        try:
            found[name] = json_of(text)
        except ValueError:
            raise BadValue(what=name[:80], value=text[:80], why="its value must be JSON") from None
    return found


async def tokens(asked: Ask) -> Response:
    """List the join tokens, without their secrets."""
    return Json(await asked.membership.tokens())


async def token_made(asked: Ask, body: TokenRequest) -> Response:
    """Make a join token. Its text is told this once."""
    return Json(await asked.membership.token_create(body.model_dump(exclude_unset=True)), 201)


async def token_revoked(asked: Ask, token_id: str) -> Response:
    """Make a join token worthless."""
    return Json(await asked.membership.token_revoke(token_id))


async def keys(asked: Ask) -> Response:
    """List the API keys, without their secrets."""
    return Json(await asked.membership.keys())


async def key_made(asked: Ask, body: KeyRequest) -> Response:
    """Make an API key. Its text is told this once."""
    return Json(await asked.membership.key_create(body.model_dump(exclude_unset=True)), 201)


async def key_revoked(asked: Ask, key_id: str) -> Response:
    """Make an API key worthless."""
    return Json(await asked.membership.key_revoke(key_id))
