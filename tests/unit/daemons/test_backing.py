"""When the head copies its ledger, what a copy holds, and which host may have it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dgpunet_dask.cluster import backups
from dgpunet_dask.config.settings import Backup
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.daemons.backing import Backing, BackingPorts, ports_of, second_host
from dgpunet_dask.errors import DiskFull
from tests.unit.daemons.members import ManualClock


class Head:
    """A head's jobs, hosts and ledger, changed by hand."""

    def __init__(self, home, **backup):
        self.home, self.clock = home, ManualClock()
        self.ended, self.unfinished, self.hosts, self.said = {}, [], [], {}
        self.ledger, self.failing, self.serves, self.copied = b"ledger", None, True, 0
        watch = SettingsWatch(home.config)
        wanted = Backup(**{"host": "auto", "every_s": 600.0, **backup})
        watch.settings = replace(watch.settings, disk=replace(watch.settings.disk, ledger_backup=wanted))
        ports = BackingPorts(
            copy=self.copy, boot=lambda: 7, serving=lambda: self.serves, unfinished=self.which, ended=lambda: self.ended,
            hosts=lambda: self.hosts, kept=self.said.get,
        )  # fmt: skip
        self.backing = Backing(home, "pc", watch, ports, self.clock)

    async def copy(self, into):
        self.copied += 1
        if self.failing is not None:
            raise self.failing
        into.write_bytes(self.ledger)

    async def which(self):
        return self.unfinished

    async def after(self, seconds):
        """Let time pass, and look; return how many copies were made by now."""
        self.clock.now += seconds
        await self.backing.step()
        return self.copied


@pytest.fixture
def head(home):
    return Head(home)


async def test_a_copy_is_made_soon_then_every_so_often_and_after_jobs_end_but_not_for_each(head):
    assert await head.after(59) == 0
    assert await head.after(1) == 1
    assert await head.after(599) == 1
    assert await head.after(1) == 2
    for number in range(5):  # jobs end, one after the other
        head.ended[f"j{number}"] = float(number)
        assert await head.after(10) == 2
    assert await head.after(10) == 3
    assert await head.after(100) == 3


async def test_nothing_is_copied_before_there_is_a_ledger(head):
    head.serves = False
    assert await head.after(6000) == 0
    head.serves = True
    assert await head.after(1) == 1


async def test_a_copy_is_private_and_tells_when_and_of_whom_and_holds_the_records_of_unfinished_jobs(head, home):
    head.unfinished = ["b", "a", "gone"]
    for job in ("a", "b", "c"):
        (home.jobs / job).mkdir()
        (home.jobs / job / "job.json").write_text(json.dumps({"job_id": job}, indent=1))
    await head.after(60)
    (folder,) = backups.copies(home)
    assert backups.is_whole(folder)
    assert (folder / "ledger.db").read_bytes() == b"ledger"
    assert [json.loads(line)["job_id"] for line in (folder / "jobs.jsonl").read_text().splitlines()] == ["a", "b"]
    assert backups.about(folder) == {"version": 1, "at": head.clock.wall(), "host": "pc", "boot": 7}
    assert {path.stat().st_mode & 0o077 for path in (home.backups, folder, folder / "jobs.jsonl", folder / "backup.json")} == {0}


async def test_the_last_two_copies_stay_and_nothing_half_done(head, home):
    for _ in range(4):
        await head.after(600)
    assert [backups.made_at(folder) for folder in backups.copies(home)] == [head.clock.wall() - 600, head.clock.wall()]
    assert not list(home.backups.glob(".*"))


async def test_a_copy_that_fails_is_tried_again_a_minute_later_and_told(head, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.daemons.backing.LOOK_S", 0.0)
    head.failing = DiskFull(path="/h")
    head.clock.now += 60
    task = asyncio.create_task(head.backing.run())
    async with asyncio.timeout(20):
        while head.backing.error is None:  # noqa: ASYNC110  # files are written in threads
            await asyncio.sleep(0.01)
    assert head.backing.status()["error"] == str(head.failing)
    head.failing = None
    head.clock.now += 60
    async with asyncio.timeout(20):
        while head.backing.error is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert head.copied == 2


async def test_one_other_host_is_offered_the_last_copy_and_stays_the_one_while_it_is_there(head, home):
    await head.after(60)
    assert head.backing.offer.host is None
    head.hosts = ["xps", "rig"]
    await head.after(1)
    assert head.backing.offered_to("xps") is None
    assert head.backing.offered_to("rig")["name"] == backups.copies(home)[-1].name
    head.hosts = ["xps", "rig", "apex"]
    await head.after(1)
    assert head.backing.offer.host == "rig"
    await head.after(600)
    assert head.backing.offered_to("rig")["name"] == backups.copies(home)[-1].name
    head.hosts = ["xps", "apex"]
    await head.after(1)
    assert backups.read_offer(home).host == "apex"


@pytest.mark.parametrize(
    ("wanted", "ready", "present", "host"),
    [("auto", [], None, None), ("auto", ["pc"], None, None), ("auto", [], "a", None), ("b", [], "a", "b"), ("pc", ["a"], "a", None), ("auto", ["b", "a"], "b", "b")],
)
def test_who_keeps_copies(wanted, ready, present, host):
    assert second_host(wanted, "pc", ready, present) == host


async def test_a_head_that_starts_again_goes_on_with_the_same_host(head, home, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.daemons.backing.LOOK_S", 0.0)
    head.hosts = ["rig"]
    await head.after(60)
    again = Head(home)
    again.hosts = ["apex", "rig"]
    task = asyncio.create_task(again.backing.run())
    async with asyncio.timeout(20):
        while again.backing.offer is None:  # noqa: ASYNC110  # files are read in threads
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert again.backing.offer.host == "rig"


async def test_status_tells_what_the_other_host_says_as_far_as_it_can_be_believed(head):
    head.hosts = ["rig"]
    await head.after(60)
    told = head.backing.status()
    assert (told["host"], told["host_at"], told["others"], told["at"]) == ("rig", None, 1, head.clock.wall())
    head.said["rig"] = {"at": 5.0, "error": "no room"}
    assert (head.backing.status()["host_at"], head.backing.status()["host_error"]) == (5.0, "no room")
    head.said["rig"] = {"at": "soon", "error": {}}
    assert (head.backing.status()["host_at"], head.backing.status()["host_error"]) == (None, None)


async def test_jobs_of_a_service_are_asked_once_it_serves():
    service = SimpleNamespace(ledger=SimpleNamespace(boot=0))
    held = [None]
    ports = ports_of(lambda: held[0])
    assert not ports.serving()
    held[0] = service
    assert not ports.serving()
    service.ledger.boot = 3
    assert ports.serving()
    assert ports.boot() == 3

    async def listed():
        return [SimpleNamespace(job_id="a", state="running"), SimpleNamespace(job_id="b", state="done")]

    service.list = listed
    assert await ports.unfinished() == ["a"]
