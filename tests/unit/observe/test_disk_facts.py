"""What is told of the home's disk and settings, from the file as it is."""

from __future__ import annotations

from pathlib import Path

from dgpunet_dask.observe import probes
from dgpunet_dask.observe.local import check_host


def test_the_floor_of_the_homes_disk_is_that_of_its_settings(tmp_path: Path) -> None:
    (default,) = probes.disk(tmp_path / "not/there/yet")
    assert 0 < default["floor"] <= 20 << 30
    (tmp_path / "config.yaml").write_text("version: 1\ndisk: {floor: 1MiB}")
    (found,) = probes.disk(tmp_path, tmp_path / "temporary")
    assert found["floor"] == 1 << 20
    (tmp_path / "config.yaml").write_text("version: 1\ndisk: {floor: 1}")
    assert probes.disk(tmp_path)[0]["floor"] == default["floor"]


def test_other_disks_have_no_floor(tmp_path: Path) -> None:
    rows = probes.disk(tmp_path, Path("/proc"))
    assert [row.get("floor") is None for row in rows] == [False, True]


def test_every_mistake_of_the_settings_becomes_a_finding(tmp_path: Path) -> None:
    assert probes.settings(tmp_path)["exists"] is False
    (tmp_path / "config.yaml").write_text("version: 1\nroots: [x]\ndisk: {flor: 1}")
    found = probes.settings(tmp_path)
    assert [line.partition("config.yaml:")[2][:4] for line in found["mistakes"]] == ["2:9:", "3:8:"]
    (finding,) = [f for f in check_host({"settings": found}, "pc") if f.check == "settings"]
    assert finding.level == "fault"
    assert "did you mean 'floor'" in finding.what


def test_settings_that_are_newer_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("version: 9")
    assert "format version 9" in probes.settings(tmp_path)["mistakes"][0]
