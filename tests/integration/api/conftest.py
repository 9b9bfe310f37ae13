"""A head's API on both listeners, with fakes behind it."""

from __future__ import annotations

import pytest

from dgpunet_dask.daemons.api import listen
from dgpunet_dask.security.pinning import trusting
from tests.integration.cluster.test_api_tls import Site, serving
from tests.unit.daemons.serving import FakeKeys


@pytest.fixture
async def site(tmp_path):
    async with serving(Site(tmp_path / "home")) as made:
        made.ctx.keys = FakeKeys()
        made.client_context = trusting(made.authority.certificate_pem)
        plain = listen(made.ctx)
        yield made
        plain.stop()
        await plain.close_all_connections()


@pytest.fixture(params=["plain", "tls"])
def way(request, site):
    """Port and context of each listener."""
    return (site.ctx.port, None) if request.param == "plain" else (site.ctx.tls_port, site.client_context)
