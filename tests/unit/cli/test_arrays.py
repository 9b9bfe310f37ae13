"""The jobs of an array, from what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.cli.arrays import MOST, combinations
from dgpunet_dask.errors import BadValue, MissingPath, UnreadablePath


def test_every_combination_in_order(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("ann,bob\n\n  spaced \n")
    found = combinations(["a=1,3..5", "b=@names"], cwd=tmp_path)
    assert found == [[("a", a), ("b", b)] for a in ("1", "3", "4", "5") for b in ("ann,bob", "  spaced ")]


@pytest.mark.parametrize(("text", "values"), [("-2..1", ["-2", "-1", "0", "1"]), ("x..y", ["x..y"]), ("a=b,", ["a=b", ""]), ("7", ["7"])])
def test_values(text: str, values: list[str], tmp_path: Path) -> None:
    assert combinations([f"k={text}"], cwd=tmp_path) == [[("k", value)] for value in values]


@pytest.mark.parametrize("texts", [["k"], ["=1"], ["k="], ["k=2..1"], ["k=1", "k=2"], ["k=1..1001"], ["k=1..99999999999999999"], ["a=1..40", "b=1..40"]])
def test_what_makes_no_array(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        combinations(texts, cwd=tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("\n")
    for name, error in (("none", MissingPath), ("bytes", UnreadablePath), (".", UnreadablePath), ("empty", BadValue)):
        with pytest.raises(error):
            combinations([f"k=@{name}"], cwd=tmp_path)


def test_no_options_make_no_array(tmp_path: Path) -> None:
    assert combinations([], cwd=tmp_path) == []


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_each_combination_comes_once(sizes: list[int]) -> None:
    texts = [f"k{n}=1..{size}" for n, size in enumerate(sizes)]
    wanted = 1
    for size in sizes:
        wanted *= size
    if wanted > MOST:
        with pytest.raises(BadValue, match=str(wanted)):
            combinations(texts, cwd=Path())
        return
    found = [tuple(row) for row in combinations(texts, cwd=Path())]
    assert len(found) == len(set(found)) == wanted
