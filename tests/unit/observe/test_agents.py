"""What agents say of themselves, and the copies of the ledger."""

from __future__ import annotations

import pytest

from dgpunet_dask.observe.cluster import check_cluster
from tests.unit.observe.test_cluster import document, told

GOOD = {"at": 9000.0, "name": "n", "error": None, "every_s": 600.0, "now": 9100.0, "wanted": "auto", "others": 1, "host": "b", "host_at": 9000.0, "host_error": None}


def with_backup(**changes):
    return check_cluster({**document(), "backup": {**GOOD, **changes}})


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "b has a copy of the ledger that is 100 s old"),
        ({"at": None, "host": None, "host_at": None}, "ok", "not been copied yet"),
        ({"host": None, "host_at": None, "others": 0}, "ok", "there is no other"),
        ({"host": None, "host_at": None}, "warn", "no second host"),
        ({"host_at": None}, "ok", "has no copy of the ledger yet"),
        ({"host_at": None, "host_error": "no room"}, "warn", "no room"),
        ({"host_at": None, "at": 0.0}, "warn", "has no copy of the ledger yet"),
        ({"host_at": 100.0}, "warn", "that is 2.5 h old"),
        ({"error": "there is no room"}, "fault", "there is no room"),
    ],
)
def test_where_the_ledger_is_copied_to_is_told(changes, level, words):
    (finding,) = [f for f in with_backup(**changes) if f.check == "ledger_backup"]
    assert (finding.level, finding.subject) == (level, "a")
    assert words in finding.what
    assert (finding.cure is None) == (level == "ok")


@pytest.mark.parametrize("backup", [None, {}, "odd", {"now": "x", "every_s": 1}])
def test_of_a_head_that_tells_nothing_of_copies_nothing_is_said(backup):
    assert not [f for f in check_cluster({**document(), "backup": backup}) if f.check in ("ledger_backup", "facts")]


def test_what_has_ended_in_an_agent_is_a_warning():
    doc = document()
    doc["hosts"]["b"]["health"] = {"followers": [{"name": "cards", "ends": 3, "error": "ValueError: odd", "ended_s_ago": 2.0}]}
    (finding,) = [f for f in check_cluster(doc) if f.check == "agent"]
    assert (finding.level, finding.subject) == ("warn", "b")
    assert "looks after the cards has ended 3 times" in finding.what


def test_a_host_without_room_on_its_disk_is_a_fault():
    doc = document()
    del doc["hosts"]["b"]["facts"]["disk"]
    doc["hosts"]["b"]["health"] = {"disk": {"path": "/h", "total": 1 << 40, "free": 1 << 30, "floor": 2 << 30, "low": True}}
    assert ("disk", "fault", "b") in told(check_cluster(doc))
