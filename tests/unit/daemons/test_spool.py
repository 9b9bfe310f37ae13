"""Reports that outlive their agent and their head."""

from __future__ import annotations

import errno
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.daemons.spool import AT_ONCE, KEPT, Spool


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run" / "reports.json"


def test_reports_outlive_a_restart_and_go_once_they_are_known(file):
    spool = Spool(file)
    for number in range(3):
        spool.add("note", what=number)
    again = Spool(file)
    assert again.id == spool.id != Spool(file.with_name("other")).id
    assert [(r["n"], r["what"]) for r in again.batch()] == [(1, 0), (2, 1), (3, 2)]
    again.acknowledged(2)
    again.add("note", what=3)
    assert [r["n"] for r in Spool(file).batch()] == [3, 4]
    assert file.stat().st_mode & 0o777 == 0o600


def test_numbers_that_the_disk_does_not_know_of_are_never_given_for_others(file, monkeypatch):
    spool = Spool(file)
    spool.add("note", what="kept")
    monkeypatch.setattr("dgpunet_dask.daemons.spool.write_private", full_disk)
    spool.add("note", what="in memory")
    told = (spool.id, spool.batch()[-1]["n"])
    monkeypatch.undo()
    again = Spool(file)
    again.add("note", what="another")
    assert again.batch()[-1]["n"] == told[1]
    assert again.id != told[0]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "no space")


@given(steps=st.lists(st.integers(-1, 40), max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_numbers_only_rise_and_nothing_unknown_is_forgotten(tmp_path, steps):
    """-1 adds a report, any other number acknowledges up to it."""
    file = tmp_path / "reports.json"
    file.unlink(missing_ok=True)
    spool, numbers, known = Spool(file), [], 0
    for step in steps:
        if step < 0:
            spool.add("note")
            numbers.append(len(numbers) + 1)
        else:
            spool.acknowledged(step)
            known = max(known, min(step, len(numbers)))
        assert [r["n"] for r in spool.reports] == numbers[known:]
    assert Spool(file).next == len(numbers) + 1 or not numbers


def test_what_a_long_silence_drops_is_told_until_it_is_known(file):
    spool = Spool(file)
    spool.reports = [{"n": n, "kind": "note"} for n in range(1, KEPT + 1)]
    spool.next = KEPT + 1
    for _ in range(3):
        spool.add("note")
    batch = Spool(file).batch()
    assert len(batch) == AT_ONCE
    assert (batch[0]["n"], batch[0]["dropped"]) == (4, 3)
    assert "dropped" not in batch[1]
    spool.acknowledged(batch[-1]["n"])
    assert "dropped" not in spool.batch()[0]


@pytest.mark.parametrize(
    "found", ["", "{", "[]", {"next": 5}, {"next": "x", "dropped": 0, "reports": []}, {"next": 5, "dropped": 0, "reports": "abc"},
              {"next": 5, "dropped": 0, "reports": [{"kind": "note"}]}, {"next": 5, "dropped": 0, "reports": [7]}]
)  # fmt: skip
def test_a_damaged_file_is_begun_anew(file, found):
    file.parent.mkdir()
    file.write_text(found if isinstance(found, str) else json.dumps(found))
    spool = Spool(file)
    spool.add("note")
    spool.acknowledged(0)
    assert [r["n"] for r in spool.batch()] == [1]


def test_without_a_disk_reports_are_kept_in_memory(tmp_path, caplog):
    (tmp_path / "run").write_text("a file, where the folder should be")
    spool = Spool(tmp_path / "run" / "reports.json")
    spool.add("note")
    assert [r["n"] for r in spool.batch()] == [1]
    assert "in memory alone" in caplog.text
