"""A damaged index is named when it is read, and made anew when its tree is submitted again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpunet_dask.errors import BadName, DgpunetError, MalformedFile, NoSuchIndex, UnreadablePath
from dgpunet_dask.retrieval.index import MANIFEST, Index, check_index_name, open_index
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.search import _opened
from tests.unit.retrieval.conftest import FakeEncoder


def garble(file: Path) -> None:
    file.write_bytes(b"no such format")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("name", ["chunks.arrow", "vectors.faiss", "keys.arrow", "segment.json"])
@pytest.mark.parametrize("harm", [garble, shorten, Path.unlink])
def test_a_damaged_segment_is_told_by_search_and_cured_by_a_submission(ingest, tree, home, name: str, harm: Callable[[Path], None]) -> None:
    root = tree({"a.py": "one\n\ntwo", "b.py": "three"})
    ingest(root)
    index, manifest = open_index(home, "x")
    harm(index.segments(manifest)[0] / name)
    with pytest.raises(MalformedFile, match="damaged"):
        _opened(home, "x")
    made = ingest(root)
    assert (made.chunks, made.manifest.chunks) == (3, 3)
    assert not set(made.manifest.segments) & set(manifest.segments)
    assert len(_opened(home, "x").nearest(FakeEncoder().encode_queries(["one"])[0], 10)) == 3


@pytest.mark.parametrize("harm", [garble, shorten, Path.unlink])
def test_a_damaged_table_of_files_is_told_by_search_and_cured_by_a_submission(ingest, tree, home, harm: Callable[[Path], None]) -> None:
    root = tree({"a.py": "one\n\ntwo", "b.py": "three"})
    ingest(root)
    index, manifest = open_index(home, "x")
    harm(index.version(manifest) / "files.parquet")
    with pytest.raises(MalformedFile, match="damaged"):
        _opened(home, "x")
    assert ingest(root).reused == 3
    assert sorted(_opened(home, "x").paths.values()) == [["a.py"], ["b.py"]]


def test_a_missing_segment_is_made_anew(ingest, tree, home) -> None:
    root = tree({"a.py": "one"})
    ingest(root)
    index, manifest = open_index(home, "x")
    shutil.rmtree(index.segments(manifest)[0])
    assert ingest(root).chunks == 1
    assert len(_opened(home, "x").nearest(FakeEncoder().encode_queries(["one"])[0], 10)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", "../../other/segments"), ("version", 5), ("version", ""), ("segments", ["../x"]), ("segments", 5), ("files", "many"), ("skipped", []), ("roots", 3), ("model", None)],
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
