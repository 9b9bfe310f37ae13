"""Commands in this process against a served API."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.daemons.api import listen
from tests.unit.daemons.serving import KEY, FakeKeys, make_context


@pytest.fixture
async def ctx(tmp_path, monkeypatch, member):
    """Serve the membership `member`, which the test module gives, as the cluster of all commands."""
    made = make_context(tmp_path, [], keys=FakeKeys(), membership=member)
    server = listen(made)
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DGPUNET_CLUSTER", f"127.0.0.1:{made.port}")
    monkeypatch.setenv("DGPUNET_API_KEY", KEY)
    yield made
    server.stop()
    await server.close_all_connections()


@pytest.fixture
def run(ctx, capfd):
    """Run a command against `ctx`; gives exit code, stdout and stderr."""

    async def call(*words):
        code = await asyncio.to_thread(cli_main.run, list(words))
        return code, *capfd.readouterr()

    return call
