from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.skips import SKIPPED, Skip, SkipList, keep_skips, read_skips, skip_of


def written(folder: Path, skips: list[Skip], **bounds: int) -> list[Skip]:
    skipped = SkipList(folder, **bounds)
    for skip in skips:
        skipped.add(skip)
    skipped.close()
    return list(read_skips(folder))


def test_what_is_written_is_read(tmp_path):
    skips = [Skip("binary", "a.png"), Skip("fetch_failed", "http://example.com/ü\n", "404 Not Found"), Skip("ignored", "line\u2028end")]
    assert written(tmp_path, skips) == skips
    assert list(read_skips(tmp_path, "ignored")) == skips[2:]


@pytest.mark.parametrize(
    ("reason", "skip"),
    [("binary", Skip("binary", "p")), ("timeout: 30 s", Skip("timeout", "p", "30 s")), ("fetch_failed: a: b", Skip("fetch_failed", "p", "a: b"))],
)
def test_a_reason_is_a_code_and_perhaps_why(reason, skip):
    assert skip_of(reason, "p") == skip


def test_no_code_crowds_out_another_and_the_whole_is_bounded(tmp_path):
    many = [Skip("symlink", f"l{n}") for n in range(50)] + [Skip("binary", "b.png")]
    assert written(tmp_path, many, rows_max=3) == [*many[:3], many[-1]]
    line = len(json.dumps(list(many[0]))) + 1
    assert len(written(tmp_path, many, bytes_max=4 * line + line // 2)) == 4
    assert (tmp_path / SKIPPED).stat().st_size <= 4 * line + line // 2
    assert written(tmp_path, [Skip("binary", "x" * 100_000)]) == []


def test_a_list_made_anew_holds_nothing_of_the_one_before(tmp_path):
    written(tmp_path, [Skip("binary", "old")])
    assert written(tmp_path, []) == []
    assert (tmp_path / SKIPPED).exists()


def test_without_a_list_or_with_a_damaged_one_what_there_is_is_told(tmp_path):
    assert list(read_skips(tmp_path)) == []
    (tmp_path / SKIPPED).write_text('["binary", "a", ""]\n["binary", "b"]\n{"no": 1}\n["binary", "c", ""]\n')
    assert [s.path for s in read_skips(tmp_path)] == ["a", "b"]
    (tmp_path / SKIPPED).write_bytes(b'["binary", "a", ""]\n["binary", "' + b"x" * 200_000)
    assert [s.path for s in read_skips(tmp_path)] == ["a"]


def test_a_segment_keeps_the_list_of_its_job(tmp_path):
    job, segment = tmp_path / "job", tmp_path / "segment"
    job.mkdir()
    segment.mkdir()
    keep_skips(job, segment)
    assert list(segment.iterdir()) == []
    skips = [Skip("binary", "a")]
    written(job, skips)
    keep_skips(job, segment)
    assert list(read_skips(segment)) == skips


def test_an_index_tells_each_path_that_is_not_in_it(ingest, tree, home):
    ingest(tree({"a.py": "one", "b.bin": "\0", "Cargo.lock": "x", ".gitignore": "out/", "out/c.py": ""}))
    index = Index(home, "x")
    manifest = index.manifest()
    listed = list(read_skips(index.segment(manifest)))
    assert sorted(listed) == [Skip("binary", "b.bin"), Skip("ignored", "out"), Skip("lockfile", "Cargo.lock")]
    assert {skip.code: 1 for skip in listed} == dict(manifest.skipped)
    tree({"b.bin": None})
    ingest(tree({}))
    assert [s.code for s in read_skips(index.segment(index.manifest()))] == ["lockfile", "ignored"]
