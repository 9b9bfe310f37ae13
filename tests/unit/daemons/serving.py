"""A head's API for tests: real sockets, with fakes behind it."""

from __future__ import annotations

import asyncio
import http.client
import json
from dataclasses import dataclass

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import ApiContext
from dgpunet_dask.daemons.indexes import Indexes
from dgpunet_dask.errors import TokenRefused
from dgpunet_dask.jobs.model_owners import ModelOwners
from dgpunet_dask.testing.jobs import FakeJobs

KEY = "a-key"
DIGEST = "ab" * 32


class Served:
    """A served context; requests run in threads, so that the loop can answer them."""

    def __init__(self, ctx):
        self.ctx = ctx
        self.client = ApiClient(f"http://127.0.0.1:{ctx.port}", KEY)

    def as_user(self, key):
        return ApiClient(f"http://127.0.0.1:{self.ctx.port}", key)

    async def ask(self, method, path, body=None, **headers):
        """Return status and parsed body of one request; a header of None is left out."""
        status, _, text = await self.fetch(method, path, body, **headers)
        return status, json.loads(text) if text else None

    async def fetch(self, method, path, body=None, **headers):
        """Return status, headers and text of one request."""
        sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        return await asyncio.to_thread(self._ask, method, path, body, {k: v for k, v in sent.items() if v is not None})

    def _ask(self, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.ctx.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in {**headers, "Content-Length": headers.get("Content-Length", str(len(body or b"")))}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


class FakeWhy:
    """Answers with what it was asked."""

    async def fleet(self):
        return {"devices": []}

    async def demand(self, request):
        return request

    async def job(self, job_id):
        return {"job_id": job_id}


@dataclass
class FakeUser:
    user: str
    scope: str


class FakeKeys:
    """Keys named ``USER:SCOPE``; those in `revoked` do not count."""

    def __init__(self):
        self.revoked = set()

    def who(self, text, now):
        user, _, scope = text.partition(":")
        return FakeUser(user, scope) if scope and text not in self.revoked else None


class FakeMembership:
    """Notes what it is asked and answers with it."""

    def __init__(self):
        self.calls = []
        self.ca = "-----BEGIN CERTIFICATE-----\n"

    async def _noted(self, *call):
        self.calls.append(call)
        return {"did": call[0]}

    async def ca_pem(self):
        return self.ca

    async def enrol(self, request, peer_address):
        if request.get("token") != "good":
            raise TokenRefused(why="it was used already", reason="used")
        return await self._noted("enrol", request, peer_address)

    async def join_check(self, request, peer_address):
        if request.get("token") != "good":
            raise TokenRefused(why="it was used already", reason="used")
        return await self._noted("join_check", request, peer_address)

    async def heartbeat(self, host, body):
        return await self._noted("heartbeat", host, body)

    async def me(self, host):
        return await self._noted("me", host)

    async def renew(self, host, body):
        return await self._noted("renew", host, body)

    async def leave(self, host):
        await self._noted("leave", host)

    async def nodes(self):
        return [{"host": "node-a"}]

    async def node_action(self, host, action, body):
        return await self._noted(action, host, body)

    async def doctor(self, body):
        return await self._noted("doctor", body)

    async def token_create(self, body):
        return await self._noted("token_create", body)

    async def tokens(self):
        return [{"id": "t1"}]

    async def token_revoke(self, token_id):
        return await self._noted("token_revoke", token_id)

    async def key_create(self, body):
        return await self._noted("key_create", body)

    async def keys(self):
        return [{"id": "k1"}]

    async def key_revoke(self, key_id):
        return await self._noted("key_revoke", key_id)


def make_context(uploads, stopped, **more):
    """Return a context whose shutdowns are told to the list `stopped`."""

    async def status():
        return {"head_pid": 1, "workers": []}

    async def placements(since):
        return [{"seq": since + 1}]

    async def reload():
        return {"digest": "new"}

    home = Home(uploads / "home")
    return ApiContext(
        key=KEY, service=FakeJobs(), status=status, placements=placements, why=FakeWhy(), policy=lambda: {"digest": "old"}, reload=reload,
        shutdown=stopped.append, embedded=True, uploads=uploads, **{"indexes": Indexes(home), "models": ModelOwners(home.model_owners), **more},
    )  # fmt: skip
