"""What `submit --watch` hears of, and what it tells its jobs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dgpunet_dask.cli.watching import Pending, changes, heard, index_of, roots_of
from dgpunet_dask.model.pipeline import Param, Workload
from dgpunet_dask.retrieval.changes import PATHS_MAX

KNOWN = ("path", "changed", "since")


def pending(version: str | None = "v1") -> Pending:
    made = Pending()
    made.add(None, 1.0)
    made.done(version)
    return made


def test_a_job_is_told_what_has_changed_since_the_last_version():
    made = pending()
    made.add(frozenset(["/b"]), 2.0)
    made.add(frozenset(["/a"]), 3.0)
    assert made.told(KNOWN) == {"changed": ["/a", "/b"], "since": "v1"}
    assert (made.count, made.since_s) == (2, 2.0)
    made.done("v2")
    assert (made.count, made.since_s) == (0, None)
    made.add(frozenset(["/c"]), 4.0)
    assert made.told(KNOWN) == {"changed": ["/c"], "since": "v2"}


@pytest.mark.parametrize("batch", [None, frozenset(["/a\ufffd"]), frozenset(str(n) for n in range(PATHS_MAX + 1))])
def test_where_more_may_have_changed_all_is_looked_at(batch):
    made = pending()
    made.add(batch, 2.0)
    assert (made.told(KNOWN), made.count > 0) == ({}, True)


def test_what_is_not_known_is_not_told():
    first = Pending()
    first.add(frozenset(["/a"]), 1.0)
    assert first.told(KNOWN) == {}
    without = pending(None)
    without.add(frozenset(["/a"]), 1.0)
    assert without.told(KNOWN) == {}
    other = pending()
    other.add(frozenset(["/a"]), 1.0)
    assert other.told(("path",)) == {}


def test_what_a_failed_job_was_told_is_not_forgotten():
    made = pending()
    made.add(frozenset(["/a"]), 2.0)
    made.whole = True  # as after a job that failed
    made.add(frozenset(["/b"]), 9.0)
    assert (made.told(KNOWN), made.count, made.since_s) == ({}, 2, 2.0)


def test_what_no_walk_enters_is_not_heard_of():
    accepts = heard([Path("/r/vendor/tree")])
    for path in ("a.py", ".git", "sub/.git", "node_modules", ".git/info/exclude", ".idea/x.xml", ".gitignore"):
        assert accepts(1, f"/r/vendor/tree/{path}"), path
    for path in (".git/index", "node_modules/x/a.js", "sub/.hg/store", ".a.py.swp", "a.py~"):
        assert not accepts(1, f"/r/vendor/tree/{path}"), path


def test_roots_are_told_of_without_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    workload = Workload(name="w", digest="d", folder="f", params={"path": Param(name="path", type="path", list=True)})
    roots = roots_of(workload, {"path": [str(tmp_path / "link")]})
    assert roots == [(tmp_path / "real").resolve()]
    assert (index_of({"index": None}, roots), index_of({"index": "x"}, roots)) == ("real", "x")


def test_a_real_tree_is_heard_of_and_looked_at_now_and_then(tmp_path):
    found = changes([tmp_path.resolve()], reconcile_s=1e9)
    assert next(found) is None
    threading.Timer(0.1, (tmp_path / "a.py").write_text, ("one",)).start()
    assert next(found) == {str(tmp_path.resolve() / "a.py")}
    found.close()
    often = changes([tmp_path.resolve()], reconcile_s=0.0)
    assert [next(often), next(often)] == [None, None]
    often.close()
