"""Facts of this machine: real ones, and questions that fail or hang."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from dgpunet_dask.observe import probes
from dgpunet_dask.observe.collect import Wanted, answered, collect_local
from dgpunet_dask.observe.local import check_host


def test_the_facts_of_this_machine_are_json_and_every_probe_answers(tmp_path):
    found = collect_local(Wanted(home=tmp_path / "none" / "yet"))
    json.dumps(found)
    assert {name: row["error"] for name, row in found["probes"].items() if row["error"]} == {}
    assert {"software", "memory", "disk", "home", "limits", "network"} <= set(found)
    assert not (tmp_path / "none").exists()
    assert not [finding for finding in check_host(found) if finding.check == "facts"]


def test_a_probe_that_raises_is_told_and_the_others_go_on(tmp_path):
    def broken():
        raise OSError("no such thing")

    found = collect_local(Wanted(home=tmp_path), asked={"cards": broken, "memory": probes.memory})
    assert found["probes"]["cards"]["error"] == "OSError: no such thing"
    assert "cards" not in found
    assert found["memory"]["total_mib"] > 0
    assert [(f.check, f.level, f.cause) for f in check_host(found) if f.level != "ok"] == [("probe", "warn", "system")]


def test_a_probe_that_hangs_is_left_alone():
    end = threading.Event()
    try:
        assert answered(end.wait, 0.05) == (None, "no answer within 0.05 s")
    finally:
        end.set()


def test_who_listens_on_a_port():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        number, second = server.getsockname()[1], other.getsockname()[1]
        mine = probes.ports([(number, "agent"), (second, "API")], {os.getpid()})
        theirs = probes.ports([(number, "agent")], ())
    free = probes.ports([(number, "agent")], ())
    assert [row["state"] for row in mine] == ["ours", "ours"]
    assert [(row["state"], row["pid"]) for row in theirs] == [("foreign", os.getpid())]
    assert [row["state"] for row in free] == ["free"]


@pytest.mark.parametrize(("driver", "told"), [("nvidia", "nvidia"), (None, None)])
def test_cards_on_the_bus(tmp_path, driver, told):
    for name, vendor, kind in (("0000:01:00.0", "0x10de", "0x030000"), ("0000:01:00.1", "0x10de", "0x040300"), ("0000:02:00.0", "0x8086", "0x030000")):
        folder = tmp_path / "devices" / name
        folder.mkdir(parents=True)
        for file, text in (("vendor", vendor), ("class", kind), ("device", "0x2204")):
            (folder / file).write_text(f"{text}\n")
    if driver is not None:
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (tmp_path / "devices" / "0000:01:00.0" / "driver").symlink_to(tmp_path / "drivers" / driver)
    assert probes.pci(tmp_path / "devices") == [{"address": "0000:01:00.0", "device": "0x2204", "driver": told}]
    assert probes.pci(tmp_path / "none") is None


def test_errors_in_the_kernels_log(tmp_path):
    file = tmp_path / "kmsg"
    file.write_text("4,1,5000000,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.\n")
    (row,) = probes.xids(file)
    assert (row["pci"], row["xid"], row["uuid"]) == ("0000:01:00", 79, None)
    assert row["at"] == pytest.approx(probes.psutil.boot_time() + 5, abs=1)
    assert probes.xids(tmp_path / "none") is None


@pytest.mark.long  # imports torch in a process of its own
def test_the_canary_runs_on_the_processor_where_there_is_no_card(monkeypatch):
    monkeypatch.setattr(probes, "card_facts", list)
    assert probes.canaries(otherwise_cpu=False) == []
    (row,) = probes.canaries(otherwise_cpu=True)
    assert (row["device"], row["ok"], row["mismatches"]) == ("cpu", True, 0)


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    assert probes.home(tmp_path / "new")["writable"] is True
    monkeypatch.setattr(probes.tempfile, "TemporaryFile", refuse)  # root may write anywhere, so the mode alone would not do
    assert probes.home(tmp_path)["writable"] is False
    assert not list(tmp_path.iterdir())


def test_the_file_system_of_the_longest_mount_counts(tmp_path, monkeypatch):
    share = tmp_path / "share"
    share.mkdir()

    class Mount:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = str(mountpoint), fstype

    monkeypatch.setattr(probes.psutil, "disk_partitions", lambda **_: [Mount("/", "ext4"), Mount(share, "nfs4")])
    assert probes.home(share / "deep")["network"] is True
    assert probes.home(tmp_path)["network"] is False
