"""A damaged index is named when it is read, and made anew when its tree is submitted again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpunet_dask.errors import BadName, DamagedFile, DgpunetError, MalformedFile, NoSuchIndex, UnreadablePath
from dgpunet_dask.retrieval.index import MANIFEST, Index, check_index_name, open_index
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.search import _opened


def garble(file: Path) -> None:
    file.write_bytes(b"no such format")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["chunks.parquet", "vectors.faiss", "files.parquet"])
@pytest.mark.parametrize("harm", [garble, shorten, Path.unlink])
def test_a_damaged_segment_is_told_by_search_and_cured_by_a_submission(ingest, tree, home, name: str, harm: Callable[[Path], None]) -> None:
    root = tree({"a.py": "one\n\ntwo", "b.py": "three"})
    ingest(root)
    index, manifest = open_index(home, "x")
    harm(index.segment(manifest) / name)
    with pytest.raises(MalformedFile, match="damaged"):
        _opened(home, "x")
    made = ingest(root)
    assert (made.chunks, made.reused) == (3, 0)
    assert _opened(home, "x").manifest.chunks == 3


def test_a_missing_segment_is_made_anew(ingest, tree, home) -> None:
    root = tree({"a.py": "one"})
    ingest(root)
    index, manifest = open_index(home, "x")
    shutil.rmtree(index.segment(manifest))
    assert ingest(root).embedded == 1


def test_rows_that_cannot_be_reused_fail_the_job_by_name_and_leave_the_index(ingest, tree, home) -> None:
    root = tree({"a.py": "one\n\ntwo"})
    ingest(root)
    index, manifest = open_index(home, "x")
    chunks = index.segment(manifest) / "chunks.parquet"
    content = bytearray(chunks.read_bytes())
    content[8:200] = bytes(192)  # pages, not the footer: what it holds is only read when it is needed
    chunks.write_bytes(content)
    with pytest.raises(DamagedFile, match="Remove it"):
        ingest(root)
    assert index.manifest() == manifest


@pytest.mark.parametrize(
    ("field", "value"),
    [("segment", "../../other/segments"), ("segment", 5), ("segment", ""), ("files", "many"), ("skipped", []), ("roots", 3), ("model", None)],
)
def test_a_manifest_with_wrong_values_is_refused(ingest, tree, home, field: str, value: object) -> None:
    ingest(tree({"a.py": "one"}))
    file = home.indexes / "x" / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(MalformedFile, match="remove the index"):
        open_index(home, "x")


def test_a_manifest_that_the_system_refuses_is_named(home) -> None:
    (home.indexes / "x" / MANIFEST).mkdir(parents=True)
    with pytest.raises(UnreadablePath, match="directory"):
        open_index(home, "x")


def test_a_name_is_no_longer_than_a_file_system_takes(home) -> None:
    assert check_index_name("a" * 200)
    with pytest.raises(BadName):
        check_index_name("a" * 201)
    with pytest.raises(NoSuchIndex):
        open_index(home, "a" * 300)


def test_removing_what_never_was_leaves_nothing_behind(tmp_path, home) -> None:
    with pytest.raises(NoSuchIndex):
        Index(home, "never").remove()
    assert not (home.root / "locks").exists()


@pytest.mark.parametrize("name", ["", "{folder}"])
def test_a_nameless_model_and_a_garbled_configuration_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("garbage")
    with pytest.raises(DgpunetError) as refused:
        find_model(name.format(folder=tmp_path))
    assert refused.value.code == "model_unavailable"
