"""Whose memory a card holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.hardware.usage import NEWS_MIB, Use, is_news, use_of
from dgpunet_dask.placement.foreign import foreign_mib

OURS, WORKERS = frozenset({1, 2, 3}), frozenset({1})
mib = st.integers(0, 1 << 16)
processes = st.dictionaries(st.integers(1, 9), st.none() | mib, max_size=9)


@pytest.mark.parametrize(
    ("used", "ours", "others", "charged", "foreign"),
    [
        (1000, 0, 0, 0, 1000),  # nothing of ours there: all of it is theirs
        (1000, 600, 400, 600, 400),
        (1000, 600, 0, 5000, 400),  # a unit that has been given more than it uses yet
        (1000, None, 0, 600, 400),  # sizes are hidden: the ledger stands in
        (1000, 0, 0, 600, 400),  # none of ours in sight although something is loaded: a container hides it
        (1000, 0, 700, 600, 700),  # but those are surely not ours
        (1000, None, 0, 5000, 0),
        (500, 600, 0, 0, 0),  # read at two moments
    ],
)
def test_cases(used, ours, others, charged, foreign):
    assert foreign_mib(used, ours, others, charged) == foreign


@given(mib, st.none() | mib, mib, mib)
def test_never_negative_and_never_more_than_is_used(used, ours, others, charged):
    assert 0 <= foreign_mib(used, ours, others, charged) <= used


@given(processes, mib)
def test_what_is_ours_is_never_counted_as_foreign(listed, charged):
    """The list is whole: what is used is the sum of all processes."""
    used = sum(size or 0 for size in listed.values())
    ours = sum(size or 0 for pid, size in listed.items() if pid in OURS)
    seen = use_of(used, listed.items(), ours=OURS, workers=WORKERS, alive=listed)
    if seen.ours_mib is None:  # then the ledger stands in, which holds what ours use
        charged = max(charged, ours)
    assert foreign_mib(used, seen.ours_mib, seen.others_mib, charged) <= used - ours
    assert seen.others_mib + ours == used
    assert seen.context_mib <= (seen.ours_mib if seen.ours_mib is not None else ours)


@given(processes, mib)
def test_numbers_of_another_name_space_are_nobodys(listed, used):
    seen = use_of(used, listed.items(), ours=frozenset(), workers=frozenset(), alive=frozenset())
    assert (seen.ours_mib, seen.others_mib) == (0, 0)
    assert foreign_mib(used, seen.ours_mib, seen.others_mib, used + 1) == 0


def test_hidden_sizes_and_lists():
    assert use_of(5, None, ours=OURS, workers=WORKERS, alive=OURS) == Use(used_mib=5)
    hidden = use_of(5, [(2, None), (7, 3)], ours=OURS, workers=WORKERS, alive={7})
    assert hidden == Use(used_mib=5, ours_mib=None, others_mib=3, context_mib=0)
    assert use_of(None, [], ours=OURS, workers=WORKERS, alive=()) == Use(used_mib=None, ours_mib=0)


def test_only_news_are_told():
    told = Use(used_mib=1000, ours_mib=500, others_mib=500, context_mib=100)
    assert is_news(None, told)
    assert not is_news(told, told)
    assert not is_news(told, Use(used_mib=1000 + NEWS_MIB - 1, ours_mib=500, others_mib=500, context_mib=100))
    assert is_news(told, Use(used_mib=1000 + NEWS_MIB, ours_mib=500, others_mib=500, context_mib=100))
    assert is_news(told, Use(used_mib=1000, ours_mib=300, others_mib=700, context_mib=100))
    assert is_news(told, Use(used_mib=None))
    by_ledger = Use(used_mib=1000, ours_mib=0)
    assert is_news(by_ledger, by_ledger)
