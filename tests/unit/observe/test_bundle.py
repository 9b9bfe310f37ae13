"""What goes into a report, and how it is written."""

from __future__ import annotations

import json
import os
import tarfile

import pytest
from hypothesis import given

from dgpunet_dask.observe.bundle import LOGS, Item, contents, item, jobs, json_item, logs, tail, write_bundle
from dgpunet_dask.observe.redact import Rules
from tests.unit.observe.test_local import anything

BOB = "/" + "home/bob"  # in two pieces, for it is no path of a machine of ours
LINE = "2026-01-01 10:00:00,1 INFO x: {}\n"


def test_jobs_tell_nothing_of_what_they_worked_on():
    row = {"job_id": "j", "state": "failed", "params": {"path": "/srv/plans", "q": "my question"}, "error": {"code": "stage_failed", "message": "my text"}}
    told = jobs([row | {"metrics": {"index": "mine"}, "owner": "bob"}])
    assert told[0]["error"] == "stage_failed"
    assert told[0]["params"] == {"path": ".../plans", "q": "[11 characters]"}
    assert not {"metrics", "owner"} & set(told[0])


def test_the_last_whole_lines_of_a_file(tmp_path):
    path = tmp_path / "x.log"
    path.write_text("first\nsecond\nthird\n")
    assert tail(path, 8) == "third\n"
    assert tail(path, 100) == "first\nsecond\nthird\n"


def test_logs_below_the_folder_the_newest_alone_and_no_links(tmp_path):
    folder = tmp_path / "logs"
    (folder / "stages").mkdir(parents=True)
    (tmp_path / "outside.log").write_text(LINE.format("outside"))
    (folder / "link.log").symlink_to(tmp_path / "outside.log")
    for number in range(LOGS + 2):
        path = folder / "stages" / f"{number:03d}.log"
        path.write_text(LINE.format("password=hunter2") + "printed\n")
        os.utime(path, (number, number))
    found = list(logs(folder, Rules(), with_output=False))
    assert [one.name for one in found] == [f"logs/stages_{number:03d}.log" for number in range(2, LOGS + 2)]
    assert {one.text for one in found} == {LINE.format("password=[redacted]")}
    assert {(one.left_out, one.redacted["named secret"]) for one in found} == {(1, 1)}
    assert "printed" in next(logs(folder, Rules(), with_output=True)).text
    assert list(logs(tmp_path / "none", Rules(), with_output=False)) == []


def test_json_stays_json_and_a_key_tells_a_secret():
    found = json_item("x.json", {"password": "hunter2", "deep": [{"api_key": "hunter2"}], "token": 5, "path": f"{BOB}/x"}, Rules())
    assert json.loads(found.text) == {"password": "[redacted]", "deep": [{"api_key": "[redacted]"}], "token": 5, "path": "~/x"}
    assert found.redacted == {"named secret": 2, "home folder": 1}


@given(anything)
def test_any_value_becomes_json(value):
    json.loads(json_item("x.json", value, Rules(users=["a"], hosts=["b"])).text)


def test_the_contents_name_size_and_what_was_taken_out():
    one = item("a.txt", f"password=x {BOB}/y\n", Rules())
    assert contents([one]) == f"a.txt  {one.size} bytes  (home folder: 1, named secret: 1)\n"
    assert item(f"{BOB}/a.txt", "", Rules()).name == "~_a.txt"


def test_an_archive_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.tar.gz"
    with pytest.raises(AttributeError):
        write_bundle(path, [Item("a", "x"), None], 5.0)
    assert list(tmp_path.iterdir()) == []
    write_bundle(path, [Item("a", "x")], 5.0)
    with tarfile.open(path) as archive:
        assert [(m.name, m.mtime, m.mode, m.uname) for m in archive.getmembers()] == [("dgpunet-report/a", 5, 0o600, "")]
