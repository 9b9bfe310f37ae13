"""A head's ledger lies on a second host, from where it is put back after the head's own was destroyed; nothing committed is computed again."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.cluster import backups
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.register import supervisor_of
from tests.acceptance.realcluster.site import WHY_NOT, Site, short_folder, site
from tests.helpers import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"hosts in namespaces: {WHY_NOT}"),
]

COUNT = 240


@pytest.fixture
def two(homes: Path) -> Iterator[Site]:
    with site(short_folder(homes, "b"), ("m18", "xps"), ["xps"]) as made:
        Home(made.lab.home("m18")).config.write_text("version: 1\ndisk: {ledger_backup: {host: auto, every: 10s}}\n")
        yield made


def copy_on(two: Site, name: str) -> Path | None:
    """Return the last copy of the ledger that lies on a host."""
    found = backups.copies(Home(two.lab.home(name)))
    return found[-1] if found else None


def committed(two: Site, job: str) -> int:
    return int((two.job(job).get("units") or {}).get("done", 0))


def destroy(two: Site) -> None:
    """End all that runs on the head's host, and spoil its ledger and its own copies."""
    home = Home(two.lab.home("m18"))
    supervisor = supervisor_of(home)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not two.lab.left("m18"), 30, "the end of all on m18")
    for tail in ("", "-wal"):  # a small ledger lies in its write-ahead log as a whole
        home.ledger.with_name(home.ledger.name + tail).write_bytes(os.urandom(1 << 16))
    shutil.rmtree(home.backups)


def test_a_ledger_that_was_destroyed_comes_back_from_the_second_host_and_its_job_ends(two):
    job = two.begin("backed", COUNT, 0.5)
    until(lambda: committed(two, job) >= 10, 90, "the first commits")
    first = until(lambda: copy_on(two, "xps"), 60, "a copy on xps", every_s=0.2)
    until(lambda: copy_on(two, "xps") != first and committed(two, job) < COUNT - 10, 60, "a later copy on xps", every_s=0.2)
    (found,) = [f for f in two.lab.cli("m18", "doctor", "--json").json["findings"] if f["check"] == "ledger_backup"]
    assert (found["level"], found["evidence"]["host"]) == ("ok", "xps"), found
    assert "keeps a copy of the ledger" in two.lab.ok("m18", "nodes").err
    refused = two.lab.cli("m18", "ledger", "restore")
    assert refused.code == 2, refused
    done = committed(two, job)
    assert done < COUNT - 20, "the job is in its middle"

    destroy(two)
    assert two.lab.cli("m18", "ledger", "check").code == 3
    brought = two.lab.folder / "brought"
    copy = copy_on(two, "xps")
    assert copy is not None
    shutil.copytree(copy, brought / copy.name)
    put_back = two.lab.ok("m18", "ledger", "restore", "--from", str(brought / copy.name), "--json").json
    assert put_back["units"] >= done
    assert put_back["taken_back"] == 0
    assert two.lab.ok("m18", "ledger", "check", "--json").json["units"] >= done

    begun = len(two.notes("backed"))
    two.start_head()
    two.check_whole(job, "backed", COUNT, timeout_s=150)
    again = len(two.notes("backed")) - COUNT
    print(f"figure: units committed {done}, begun {begun} before, computed again {again}")
    assert again <= begun - done
    assert two.lab.cli("m18", "ledger", "check").code == 0
