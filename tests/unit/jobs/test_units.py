"""Ids of units: the same for the same work, whoever asks again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.jobs.units import Naming, frames_digest, parse_name, recipe_of, result_name

RECIPE = recipe_of("c" * 64, {"count": 1}, {})
pieces = st.lists(st.lists(st.binary(max_size=6), max_size=3), max_size=12)


def named(given_: list[list[bytes]], recipe: str = RECIPE) -> list[str]:
    """Return the ids of one pass."""
    naming = Naming(recipe)
    return [naming.id_of(frames) for frames in given_]


@given(pieces)
def test_a_source_that_runs_again_gives_the_same_ids_and_all_are_different(given_: list[list[bytes]]) -> None:
    ids = named(given_)
    assert ids == named(given_)
    assert len(set(ids)) == len(ids), "also of equal inputs"


@given(pieces, st.randoms())
def test_the_ids_do_not_depend_on_the_order_of_different_inputs(given_: list[list[bytes]], random: Any) -> None:
    shuffled = list(given_)
    random.shuffle(shuffled)
    assert sorted(named(shuffled)) == sorted(named(given_))


@given(pieces.filter(bool), st.data())
def test_a_unit_that_falls_out_takes_no_other_s_id_along(given_: list[list[bytes]], data: Any) -> None:
    gone = data.draw(st.integers(0, len(given_) - 1))
    left = named(given_[:gone] + given_[gone + 1 :])
    assert set(left) < set(named(given_))


@pytest.mark.parametrize(
    "other",
    [
        recipe_of("d" * 64, {"count": 1}, {}),
        recipe_of("c" * 64, {"count": 2}, {}),
        recipe_of("c" * 64, {"count": 1}, {"model": "m"}),
    ],
    ids=["code", "parameter", "model"],
)
def test_whatever_decides_the_result_is_in_the_id(other: str) -> None:
    assert not {*named([[b"a"], [b"a"]])} & {*named([[b"a"], [b"a"]], other)}


def test_the_order_in_which_parameters_were_given_is_not() -> None:
    assert recipe_of("c", {"a": 1, "b": 2}, {}) == recipe_of("c", {"b": 2, "a": 1}, {})


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_where_one_frame_ends_is_a_part_of_the_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (frames_digest(one) == frames_digest(other)) == (one == other)


@given(st.sampled_from(named([[b"a"], [b""]])), st.text("abz.-_09", min_size=1), st.integers(0, 2**63))
def test_the_name_of_a_result_tells_what_it_is(unit_id: str, leaf: str, epoch: int) -> None:
    assert parse_name(result_name(unit_id, leaf, epoch)) == (unit_id, leaf, epoch)


@pytest.mark.parametrize("name", ["manifest.json", "x.read.1.frames", f"{'a' * 32}.frames", f"{'a' * 32}.read.1.frames.tmp", ""])
def test_other_files_are_none(name: str) -> None:
    assert parse_name(name) is None
