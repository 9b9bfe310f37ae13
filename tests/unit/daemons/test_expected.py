"""The file of devices that a scheduler which starts again counts on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dgpunet_dask.daemons import expected as module
from dgpunet_dask.daemons.expected import Expected, read_expected
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.wire import to_wire

HOST = Host(name="h", roles=("batch",), idle_s=3.0, power="mains")
CARD = Device(name="c0", host="h", vram_mib=8192, capability=(8, 9), features=frozenset({"fp8"}))
CPU = Device(name="h/cpu", host="h", kind="cpu")


LOADED = Charge(holder="e1", device="c0", vram_mib=600, kind="resident", stage="embed", model="minilm", reload_s=2.0)
UNIT = Charge(holder="embed-1-2-3", device="c0", vram_mib=100, stage="embed")


def seen(*devices, host=HOST, charges=()):
    return {"hosts": [to_wire(host)], "devices": [to_wire(d) for d in devices], "charges": [to_wire(c) for c in charges], "states": {}}


def names(fleet):
    return [device.name for device in fleet.devices]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "devices.json"


def test_what_was_seen_is_there_for_the_next_scheduler(file):
    Expected(file).keep(seen(CARD, CPU))
    found = read_expected(file)
    assert found.devices == (CARD, CPU)
    assert found.hosts == (Host(name="h", roles=("batch",)),)
    assert file.stat().st_mode & 0o777 == 0o600


def test_it_is_written_when_the_devices_change_and_not_when_somebody_touches_the_mouse(file):
    expected = Expected(file)
    expected.keep(seen(CARD))
    before = file.stat().st_ino
    expected.keep(seen(CARD, host=Host(name="h", roles=("batch",), idle_s=4.0)))
    assert file.stat().st_ino == before
    expected.keep(seen(CARD, CPU))
    assert names(read_expected(file)) == ["c0", "h/cpu"]
    expected.keep(seen())
    assert read_expected(file) == Fleet((Host(name="h", roles=("batch",)),))


def test_what_is_cordoned_is_kept_and_what_is_lost_or_closing_is_not(file):
    expected = Expected(file)
    expected.keep({**seen(CARD, CPU), "states": {"c0": "cordoned", "h/cpu": "draining"}})
    assert read_expected(file).states == {"c0": "cordoned"}
    expected.begin(["h/cpu"])
    assert (names(read_expected(file)), read_expected(file).states) == (["h/cpu"], {})


def test_all_are_kept_where_nobody_knows_who_belongs(file):
    Expected(file).keep(seen(CARD, CPU))
    Expected(file).begin(None)
    assert names(read_expected(file)) == ["c0", "h/cpu"]


def test_what_is_loaded_is_kept_and_what_runs_is_not(file):
    expected = Expected(file)
    expected.keep(seen(CARD, charges=[UNIT, LOADED]))
    assert read_expected(file).charges == (replace(LOADED, evictable=True),)
    before = file.stat().st_ino
    expected.keep(seen(CARD, charges=[replace(LOADED, evictable=True)]))
    assert file.stat().st_ino == before, "it only was busy"


def test_a_head_begins_with_what_still_belongs_to_it(file):
    Expected(file).keep(seen(CARD, CPU, charges=[LOADED]))
    Expected(file).begin({"c0", "never-seen"})
    assert (names(read_expected(file)), len(read_expected(file).charges)) == (["c0"], 1)
    Expected(file).begin({"h/cpu"})
    assert (names(read_expected(file)), read_expected(file).charges) == ([], ()), "it was left out before"
    Expected(file).begin(())
    assert names(read_expected(file)) == []


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"version": 2}', '{"version": 1, "hosts": [{}], "devices": 7}',
        '{"version": 1, "hosts": [{"x": 1}], "devices": [], "charges": []}',
        '{"version": 1, "hosts": [], "devices": [], "charges": [{"kind": "resident", "x": 1}]}',
    ],
)  # fmt: skip
def test_a_file_that_says_nothing_is_no_reason_not_to_start(file, text, caplog):
    file.write_text(text)
    assert read_expected(file) == Fleet()
    assert "not waited for" in caplog.text


def test_without_a_file_nothing_is_expected(file, caplog):
    assert read_expected(file) == Fleet()
    assert caplog.text == ""


def test_a_full_disk_is_no_reason_to_stop_and_the_next_look_writes_it(file, monkeypatch, caplog):
    def full(path, text):
        raise OSError(28, "No space left on device")

    expected = Expected(file)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_private", full)
        expected.keep(seen(CARD))
    assert "No space left" in caplog.text
    expected.keep(seen(CARD))
    assert json.loads(file.read_text())["version"] == module.VERSION
