"""What a submitter's job may read: real paths below the owner's roots, whatever a path looks like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue, NotAllowed, PathNotAllowed
from dgpunet_dask.jobs.roots import allowed, bounded
from dgpunet_dask.model.pipeline import Param, Workload


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``open`` is a root; ``secret`` lies beside it; links lead out, in, to each other and nowhere."""
    for folder in ("open/a/b", "secret/keys", "opening"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "open/a/file").write_text("x")
    (tmp_path / "secret/keys/file").write_text("x")
    links = {
        "open/out": tmp_path / "secret", "open/up": Path(".."), "open/in": Path("a"), "open/loop": Path("loop"), "open/far": Path("/"),
        "open/a/back": Path("../../secret/keys"), "open/chain": Path("in/back"), "open/gone": tmp_path / "secret/none", "way": tmp_path / "open",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("open", "open"), ("open/", "open"), ("open/a/file", "open/a/file"), ("open/./a//b", "open/a/b"), ("open/a/../a", "open/a"),
        ("open/in/b", "open/a/b"), ("way/a", "open/a"), ("open/none/yet", "open/none/yet"), ("secret/../open/a", "open/a"), ("open/up/open/a", "open/a"),
    ],
)  # fmt: skip
def test_a_path_below_a_root_is_allowed_as_what_it_really_is(tree: Path, named: str, meant: str) -> None:
    assert allowed(f"{tree}/{named}", [tree / "open"]) == tree / meant


@pytest.mark.parametrize(
    "named",
    [
        "", "secret", "opening", "open/..", "open/../secret", "open/out", "open/out/keys", "open/up", "open/up/secret", "open/a/back/file", "open/chain",
        "open/chain/file", "open/gone", "open/far/etc", "open/loop/../out", "open/loop/../../secret", "open/none/../../secret", "open/in/../up",
    ],
)  # fmt: skip
def test_a_way_out_of_the_root_is_refused(tree: Path, named: str) -> None:
    with pytest.raises(PathNotAllowed) as raised:
        allowed(f"{tree}/{named}", [tree / "open"])
    assert isinstance(raised.value, NotAllowed)
    assert str(tree / "open") in str(raised.value)


def test_without_roots_nothing_is_allowed(tree: Path) -> None:
    with pytest.raises(PathNotAllowed, match="none"):
        allowed(str(tree / "open"), [])


def test_a_root_that_is_a_link_stands_for_what_it_leads_to(tree: Path) -> None:
    assert allowed(str(tree / "open/a"), [tree / "way"]) == tree / "open/a"


def test_what_exists_is_told_like_what_does_not(tree: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(PathNotAllowed) as raised:
            allowed(str(path), [tree / "open"])
        return str(raised.value).replace(str(path), "PATH")

    assert told(tree / "secret/keys/file") == told(tree / "secret/keys/none") == told(tree / "open/gone") == told(tree / "secret/keys/file/none")


def test_a_private_folder_stays_closed_and_so_does_what_holds_it(tree: Path) -> None:
    home = tree / "open/a/b"
    assert allowed(str(tree / "open/a/file"), [tree / "open"], [home]) == tree / "open/a/file"
    for path in (home, home / "pki", tree / "open", tree / "open/a", tree / "open/in/b"):
        with pytest.raises(PathNotAllowed):
            allowed(str(path), [tree / "open"], [home])


@pytest.mark.parametrize("path", ["a", "~/x", "~root", "./a", "../a", "", "/a\0b"])
def test_only_whole_paths_name_something(path: str) -> None:
    with pytest.raises(BadValue):
        allowed(path, [Path("/")])


@pytest.mark.parametrize("path", ["/" + "a" * 10_000, "/\udcff\ud800"])
def test_what_can_be_no_path_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises((PathNotAllowed, BadValue)):
        allowed(path, [tmp_path])


def test_what_is_resolved_once_is_resolved(tree: Path) -> None:
    found = allowed(str(tree / "open/in/b"), [tree / "open"])
    assert allowed(str(found), [tree / "open"]) == found


PARTS = st.sampled_from(["open", "a", "b", "..", ".", "out", "up", "in", "loop", "far", "back", "chain", "gone", "secret", "keys", "file", "way", ""])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, max_size=8))
def test_whatever_is_allowed_is_opened_below_the_root(tree: Path, parts: list[str]) -> None:
    """The system's own walk over the path that the job gets, with every link followed, ends below the root."""
    try:
        found = allowed("/".join([str(tree), *parts]), [tree / "open"])
    except PathNotAllowed:
        return
    try:
        fd = os.open(found, os.O_RDONLY | os.O_PATH)
    except OSError:  # it does not exist
        return
    try:
        opened = Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)
    assert opened == found
    assert opened == tree / "open" or tree / "open" in opened.parents


# Parameters

WORKLOAD = Workload(
    name="w", digest="d", folder="/w", stages=(),
    params={p.name: p for p in (Param(name="path", type="path", list=True), Param(name="model", type="model"), Param(name="text"), Param(name="one", type="path"))},
)  # fmt: skip


def test_paths_and_local_models_are_bounded_and_nothing_else(tree: Path) -> None:
    values = {"path": [f"{tree}/open/in", f"{tree}/open"], "model": f"{tree}/open/a", "text": "/etc/passwd", "one": None, "unknown": "/etc"}
    found = bounded(WORKLOAD, values, [tree / "open"])
    assert found == values | {"path": [f"{tree}/open/a", f"{tree}/open"]}


@pytest.mark.parametrize("model", ["minilm", "BAAI/bge-small-en-v1.5", "a/b"])
def test_a_name_on_a_hub_is_no_path(model: str) -> None:
    assert bounded(WORKLOAD, {"model": model}, []) == {"model": model}


@pytest.mark.parametrize("model", ["a/..", "../a", "./a", "a/../../etc", "~/m", "a/b/c", "a//etc", "a/", ".", "a/.ssh", "", "a\0", 5, {"a": 1}])
def test_what_is_neither_is_refused(model: object) -> None:
    with pytest.raises(BadValue, match="model"):
        bounded(WORKLOAD, {"model": model}, [Path("/")])


@pytest.mark.parametrize("values", [{"path": ["{tree}/secret"]}, {"path": "{tree}/secret"}, {"one": "{tree}/open/out"}, {"model": "{tree}/secret/keys"}])
def test_what_lies_elsewhere_is_refused_for_every_kind_of_parameter(tree: Path, values: dict) -> None:
    here = {k: [i.format(tree=tree) for i in v] if isinstance(v, list) else v.format(tree=tree) for k, v in values.items()}
    with pytest.raises(PathNotAllowed):
        bounded(WORKLOAD, here, [tree / "open"])


@pytest.mark.parametrize("value", [5, {"a": "/x"}, ["/x", 5], True])
def test_a_path_is_text(value: object) -> None:
    with pytest.raises(BadValue):
        bounded(WORKLOAD, {"path": value}, [Path("/")])
