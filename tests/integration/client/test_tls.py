"""Both clients against the head's own API under TLS, with a submitter's key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.client import AsyncClient, Client
from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.async_api import AsyncApi
from dgpunet_dask.cluster.tls import Trust
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import CertificateRefused, CodeNotAllowed, NoHead, NoSuchJob, NotAllowed
from tests.integration.cluster.test_api_tls import Site, free_port, serving
from tests.unit.client.serving import a_workload


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("DGPUNET_CA_FILE", raising=False)
    async with serving(Site(tmp_path / "home")) as made:
        monkeypatch.setenv("DGPUNET_API_KEY", made.key(scope="submitter"))
        yield made


async def test_a_submitter_submits_what_is_shipped_and_waits(site: Site, home: Home, tmp_path: Path) -> None:
    async with AsyncClient(site.api, home=home) as client:
        with pytest.raises(CodeNotAllowed):
            await client.submit(a_workload(tmp_path / "words"))
        job = await client.submit("embed-codebase", {"path": [str(tmp_path)], "index": "here"}, retry=1)
        assert site.ctx.service.requests[-1]["workload"] == "embed-codebase"
        waiting = [asyncio.create_task(client.wait(job.job_id)) for _ in range(10)]
        await client.cancel(job.job_id)
        assert {status.state for status in await asyncio.gather(*waiting)} == {"cancelled"}
        with pytest.raises(NoSuchJob):
            await client.show("none")


async def test_the_blocking_client_does_the_same(site: Site, home: Home, tmp_path: Path) -> None:
    def work() -> str:
        with Client(site.api, home=home) as client:
            array = client.submit("embed-codebase", {"path": [str(tmp_path)]}, array=[{"index": "a"}, {"index": "b"}])
            assert len(array.jobs) == 2
            client.cancel(array.jobs[0].job_id)
            return client.wait(array.jobs[0].job_id).state

    assert await asyncio.to_thread(work) == "cancelled"


async def test_who_asks_is_told_what_is_wrong(site: Site, tmp_path: Path) -> None:
    asked = calls.jobs()
    async with serving(Site(tmp_path / "foreign")) as stranger:
        with pytest.raises(CertificateRefused):
            await AsyncApi(ApiClient(site.api, site.key(), trust=Trust(ca_file=stranger.authority.folder / "ca.crt"))).do(asked)
    with pytest.raises(NotAllowed, match="DGPUNET_API_KEY"):
        await AsyncApi(ApiClient(site.api, "no key", trust=Trust(pki=site.authority.folder))).do(asked)
    with pytest.raises(NoHead):
        await AsyncApi(ApiClient(f"https://127.0.0.1:{free_port()}", "no key", trust=Trust(pki=site.authority.folder))).do(asked)
    with pytest.raises(NoHead):  # it speaks no HTTP in the clear there
        await AsyncApi(ApiClient(f"http://{site.where}", "no key")).do(asked)
