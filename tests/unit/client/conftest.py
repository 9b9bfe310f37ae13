"""A head that is served, and both clients on it, asked in one way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

from dgpunet_dask.client import AsyncClient, Client
from dgpunet_dask.config.home import Home
from tests.unit.client.serving import Server, a_workload


@pytest.fixture
async def server(home: Home) -> AsyncIterator[Server]:
    made = Server(home)
    await made.start()
    yield made
    await made.kill()


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    return a_workload(tmp_path / "words")


class Blocking:
    """`Client` as `AsyncClient` is asked: each call in a thread, since the head is served by this loop."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.client.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.client.close)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **more: Any) -> Any:
            return await asyncio.to_thread(getattr(self.client, name), *args, **more)

        return call

    async def events(self, *args: Any, **more: Any) -> AsyncIterator[dict[str, Any]]:
        told, end = self.client.events(*args, **more), object()
        while (event := await asyncio.to_thread(next, told, end)) is not end:
            yield event  # type: ignore[misc]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a client of the kind that is tested; what it says goes to its list `said`."""
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    monkeypatch.delenv("DGPUNET_API_KEY", raising=False)

    def make(cluster: str | None = None) -> Any:
        said: list[str] = []
        made: Any = Blocking(Client(cluster, home=home, say=said.append)) if request.param == "blocking" else AsyncClient(cluster, home=home, say=said.append)
        made.said = said
        return made

    return make
