"""Workload folders: named by content, shipped as an archive that can do no harm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from dgpunet_dask.errors import BadWorkload, MalformedFile, MissingPath, NoSuchWorkload
from dgpunet_dask.jobs.store import add_workload, digest_of, find_workload, pack_workload, read_workload

JOB = 'version: 1\nname: mine\nstages:\n  read: {run: "stages:Read"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    (made / "job.yaml").write_text(JOB)
    (made / "stages.py").write_text("class Read: ...\n")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir()
    return made


def test_shipped_names_take_hyphens_and_underscores_alike(tmp_path: Path) -> None:
    assert find_workload("embed-codebase", cwd=tmp_path) == find_workload("embed_codebase", cwd=tmp_path)


def test_unknown_names_and_paths(tmp_path: Path, folder: Path) -> None:
    assert find_workload("./mine", cwd=tmp_path) == folder
    assert find_workload("mine", cwd=tmp_path) == folder
    with pytest.raises(NoSuchWorkload, match="did you mean 'embed-codebase'"):
        find_workload("embed-codebas", cwd=tmp_path)
    with pytest.raises(MissingPath):
        find_workload("./gone", cwd=tmp_path)
    with pytest.raises(BadWorkload, match=r"no job\.yaml"):
        find_workload(".", cwd=tmp_path)


def test_the_digest_follows_names_and_contents_only(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "stages.pyc").write_bytes(b"x")
    (folder / "stages.py").touch()
    assert digest_of(folder) == before
    (folder / "stages.py").rename(folder / "other.py")
    assert digest_of(folder) != before


def test_links_out_of_the_folder_are_not_shipped(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    (folder / "leak").symlink_to(secret)
    assert b"key" not in pack_workload(folder)


def test_a_folder_arrives_whole_and_twice_is_once(folder: Path, store: Path) -> None:
    digest = digest_of(folder)
    arrived = add_workload(store, digest, pack_workload(folder))
    assert digest_of(arrived) == digest
    assert add_workload(store, digest, b"not looked at") == arrived
    assert [p.name for p in store.iterdir()] == [digest]


def archive(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        tar.addfile(entry, io.BytesIO(b""))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "packed",
    [
        archive("job.yaml"),
        archive("../../escape"),
        archive("/tmp/escape"),
        archive("link", tarfile.SYMTYPE, "/etc/passwd"),
        archive("hard", tarfile.LNKTYPE, "../x"),
        archive("pipe", tarfile.FIFOTYPE),
        b"no archive at all",
        b"",
    ],
)
def test_hostile_archives_leave_nothing_behind(store: Path, packed: bytes) -> None:
    with pytest.raises(BadWorkload):
        add_workload(store, "0" * 64, packed)
    assert list(store.iterdir()) == []
    assert not (store.parent / "escape").exists()


@pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "0" * 63, "0" * 64 + "/"])
def test_a_digest_names_no_other_path(store: Path, digest: str) -> None:
    with pytest.raises(BadWorkload, match="64 hexadecimal digits"):
        add_workload(store, digest, b"")


def test_missing_modules_and_bad_encodings_are_told(folder: Path) -> None:
    (folder / "stages.py").unlink()
    with pytest.raises(BadWorkload, match=r"no stages\.py"):
        read_workload(folder)
    (folder / "job.yaml").write_bytes(b"version: 1\nname: \xff\n")
    with pytest.raises(MalformedFile, match=r"job\.yaml:2:7"):
        read_workload(folder)
