"""Certificates that live for seconds: all listeners go on under new ones, and work that runs is not disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from tests.acceptance.realcluster.inside import inside
from tests.acceptance.realcluster.site import WHY_NOT, Site, short_folder, site
from tests.acceptance.realcluster.strangers import as_dask, is_open, listeners, refused, shown, tls
from tests.helpers import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"hosts in namespaces: {WHY_NOT}"),
]

LIFE_S = 16.0
PEER = 8788


@pytest.fixture(scope="module")
def two(homes: Path) -> Iterator[Site]:
    extra = {"DGPUNET_CERTIFICATE_LIFE_S": str(LIFE_S)}
    with site(short_folder(homes, "r"), ("m18", "xps"), ["xps"], more=["mallory"], extra=extra) as made:
        yield made


def expires(two: Site, name: str) -> float:
    """Return when the certificate that lies on a host ends, in seconds since 1970."""
    return x509.load_pem_x509_certificate((two.lab.home(name) / "pki" / "node.pem").read_bytes()).not_valid_after_utc.timestamp()


@contextmanager
def asleep(two: Site, name: str) -> Iterator[None]:
    """Let a host stand still, as a laptop does whose lid is closed."""
    pids = list(two.lab.left(name))
    tell(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        tell(pids, signal.SIGCONT)


def tell(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signum)


def test_certificates_are_renewed_on_running_listeners_while_a_job_runs(two):
    ends = sorted(end for name in ("m18", "xps") for end in listeners(two.lab.lan.host(name)) if not end[0].startswith(("127.", "::1")))
    assert len(ends) == 5 + 4 + 1
    look = partial(inside, two.lab.lan.host("mallory").namespace)
    first = {end: look(partial(shown, *end)) for end in ends}

    def old() -> list[tuple[str, int]]:
        return [end for end in ends if look(partial(shown, *end)) == first[end]]

    workers = {name: two.pids(name, "worker_main") for name in ("m18", "xps")}
    stolen = two.lab.folder / "stolen"
    shutil.copytree(two.lab.home("xps") / "pki", stolen)
    began = time.monotonic()
    job = two.begin("renewal", 110, 0.4)

    until(lambda: not old(), 2 * LIFE_S, "another certificate on every listener", every_s=1)
    two.measured(f"certificates of {LIFE_S:.0f} s: all listeners renewed", time.monotonic() - began)
    until(lambda: time.monotonic() > began + LIFE_S + 1, LIFE_S + 5, "the end of the first certificates")
    assert two.job(job)["state"] == "running"
    two.check_whole(job, "renewal", 110)
    assert two.job(job)["units"]["attempts"] == 110
    assert {name: two.pids(name, "worker_main") for name in workers} == workers
    assert two.ready("m18", "xps")

    fresh = two.lab.home("xps") / "pki"
    dask = [f"tls://{address}:{port}" for address, port in ends if port not in (8787, PEER)]
    xps = two.lab.lan.host("xps")
    assert None not in as_dask(xps, two.lab.environment("xps"), fresh, dask)
    assert as_dask(xps, two.lab.environment("xps"), stolen, dask) == [None] * len(dask)
    for address, port in (end for end in ends if end[1] == PEER):
        assert inside(xps.namespace, partial(is_open, address, port, fresh / "node.pem"))
        assert refused(inside(xps.namespace, partial(tls, address, port, stolen / "node.pem")))


@pytest.mark.parametrize("name", ["xps", "m18"])
def test_a_host_that_slept_for_longer_than_its_certificate_lives_comes_back_by_itself(two, name):
    end = expires(two, name)
    with asleep(two, name):
        until(lambda: time.time() > end + 2, 2 * LIFE_S, "the end of its certificate", every_s=0.2)
    two.measured(f"{name} slept for longer than its certificate lives, ready", two.until_ready("m18", "xps", timeout_s=90))
    job = two.begin(f"after-{name}", 6, 0.2)
    two.check_whole(job, f"after-{name}", 6)
    assert expires(two, name) > end
