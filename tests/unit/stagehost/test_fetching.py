"""Where folders lie on a host, and models that were noted and not copied."""

import json

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import FolderMissing
from dgpunet_dask.stagehost import fetching
from dgpunet_dask.stagehost.fetching import find_folder, listed_files, local_only, note_model


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_noted_model_is_found_where_it_lies_and_read_once(home, model, monkeypatch):
    digest = note_model(home, model)
    assert find_folder(home, "model", digest) == model
    monkeypatch.setattr(fetching, "entries_of", lambda *_: pytest.fail("read again"))
    assert note_model(home, model) == digest
    assert [entry.name for entry in listed_files(home, "model", digest)] == ["config.json"]


@pytest.mark.parametrize("change", [lambda f: (f / "config.json").write_text("[0]"), lambda f: (f / "config.json").unlink()])
def test_a_changed_model_is_not_what_was_noted(home, model, change):
    digest = note_model(home, model)
    change(model)
    assert find_folder(home, "model", digest) is None
    assert listed_files(home, "model", digest) is None


def test_a_file_that_was_added_makes_another_model(home, model):
    digest = note_model(home, model)
    (model / "more.bin").touch()
    assert note_model(home, model) != digest


@pytest.mark.parametrize("text", ["", "{}", "[]", json.dumps({"version": 99, "folder": "/", "files": []}), json.dumps({"version": 1, "folder": 3, "files": [[1]]})])
def test_a_damaged_note_is_none(home, model, text):
    digest = note_model(home, model)
    (home.models / f"{digest}.json").write_text(text)
    assert find_folder(home, "model", digest) is None
    assert note_model(home, model) == digest


async def test_a_host_alone_has_what_it_has(home, model):
    digest = note_model(home, model)
    fetch = local_only(home)
    assert await fetch("model", digest) == model
    with pytest.raises(FolderMissing, match="knows no other"):
        await fetch("workload", digest)
