"""Overlap and covering of globs, against `fnmatch` on all short texts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.placement.globs import covers, overlap, tokens, unclosed, witness

LETTERS = "ab]!-[c"  # all that stand in the globs below, and one that does not
LONGEST = 4
TEXTS = ["".join(letters) for length in range(LONGEST + 1) for letters in product(LETTERS, repeat=length)]
PARTS = st.sampled_from(["*", "?", "a", "b", "[ab]", "[!a]", "[a-b]", "[]]", "[!]a]", "[", "-", "[b-a]"])
GLOBS = st.lists(PARTS, max_size=3).map("".join)


def matched(glob: str) -> set[str]:
    return {text for text in TEXTS if fnmatchcase(text, glob)}


@settings(max_examples=200, deadline=None)
@given(GLOBS, GLOBS)
def test_against_all_short_texts(one: str, other: str) -> None:
    common = bool(matched(one) & matched(other))
    characters = sum(part != "*" for part in (*tokens(one), *tokens(other)))
    assert overlap(one, other) == common or (
        characters > LONGEST and not common
    )  # a shortest common text has at most a letter for each
    if matched(other) - matched(one):
        assert not covers(one, other)
    assert overlap(one, other) == overlap(other, one)


@given(GLOBS)
def test_a_glob_covers_and_overlaps_itself_and_everything_covers_it(glob: str) -> None:
    found = witness(glob)
    assert (found is not None) == overlap(glob, glob)
    assert found is None or fnmatchcase(found, glob)
    assert covers(glob, glob)
    assert covers("*", glob)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("*-fp8", "bge-*", True),
        ("*-fp8", "*-int8", False),
        ("bge-?", "bge-*l", True),
        ("bge-[a-m]*", "bge-[n-z]*", False),
        ("bge-[!a-m]", "bge-[l-n]", True),
        ("bge-[!a-z]", "bge-é", True),
        ("a?c", "ac", False),
        ("*a*b*", "*b*a*", True),
        ("[[]x", "[x", True),
        ("", "*", True),
        ("", "?*", False),
        ("[z-a]", "*", False),
    ],
)
def test_overlaps_by_hand(one: str, other: str, common: bool) -> None:
    assert overlap(one, other) is common


@pytest.mark.parametrize(
    ("wide", "narrow", "all_of_it"),
    [
        ("embed*", "embed", True),
        ("embed*", "embed-*", True),
        ("embed-*", "embed*", False),
        ("?*", "*", False),
        ("*a*", "*a*a*", True),
        ("[a-z]*", "[b-c]?", True),
        ("[!x]", "?", False),
        ("*", "", True),
        ("**", "*", True),
        ("a*b", "ab", True),
    ],
)
def test_covering_by_hand(wide: str, narrow: str, all_of_it: bool) -> None:
    assert covers(wide, narrow) is all_of_it


def test_a_set_takes_a_bracket_that_comes_first() -> None:
    assert tokens("a[]b]c[!]]**[x") == ("a", "[]b]", "c", "[!]]", "*", "[", "x")
    assert unclosed("a[]")
    assert unclosed("[!]")
    assert not unclosed("[]]")


def test_what_would_take_too_long_is_not_covered() -> None:
    assert not covers("*a" + "?" * 20, "*a" + "?" * 20 + "*")
    assert overlap("*a" + "?" * 200, "*b" + "?" * 199)
