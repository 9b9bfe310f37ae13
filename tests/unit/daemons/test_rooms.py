"""What has to go: never more than stays allowed, never what is in use, the longest unused first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.daemons.rooms import Entry, events_cut, log_most, risen, room_of, to_remove

NOW = 1000.0
ENTRIES = st.lists(
    st.builds(
        Entry, kind=st.sampled_from(["model", "env"]), name=st.text("abc", min_size=1, max_size=3), size=st.integers(0, 50),
        used_s=st.floats(0, NOW), in_use=st.booleans(),
    ),
    max_size=12, unique_by=lambda e: (e.kind, e.name),
)  # fmt: skip
AGES = st.none() | st.floats(0, NOW)


@given(ENTRIES, st.integers(0, 200), AGES, st.floats(0, NOW))
def test_what_stays_is_within_the_bounds_unless_all_of_it_is_wanted(entries: list[Entry], most: int, age_s: float | None, rest_s: float) -> None:
    gone = to_remove(entries, most, NOW, age_s=age_s, rest_s=rest_s)
    stays = [entry for entry in entries if entry not in gone]
    wanted = [entry for entry in entries if entry.in_use or entry.used_s > NOW - rest_s]
    assert not set(gone) & set(wanted)
    if sum(entry.size for entry in stays) > most:
        assert all(entry in wanted or not entry.size for entry in stays)
    if age_s is not None:
        assert all(entry in wanted or entry.used_s >= NOW - age_s for entry in stays)


@given(ENTRIES, st.integers(0, 200), AGES)
def test_nothing_goes_without_need_and_the_oldest_go_first(entries: list[Entry], most: int, age_s: float | None) -> None:
    gone = to_remove(entries, most, NOW, age_s=age_s)
    assert gone == sorted(gone, key=lambda e: (e.used_s, e.kind, e.name))
    young = [entry for entry in gone if age_s is None or entry.used_s >= NOW - age_s]
    if young:  # without the last that went for its size, there was too much
        left = sum(e.size for e in entries) - sum(e.size for e in gone) + young[-1].size
        assert left > most
        kept = [e for e in entries if e not in gone and not e.in_use and e.size]
        assert all((e.used_s, e.kind, e.name) >= (young[-1].used_s, young[-1].kind, young[-1].name) for e in kept)


def test_the_order_of_the_entries_decides_nothing() -> None:
    entries = [Entry(kind="model", name=name, size=10, used_s=5.0) for name in "abc"]
    assert to_remove(entries, 10, NOW) == to_remove(entries[::-1], 10, NOW) == entries[:2]


def test_a_disk_that_was_low_has_to_rise_some_way_above_its_floor() -> None:
    assert [room_of(1000, free, 100, was_low=low).low for free, low in ((100, False), (99, False), (99, True), (105, True), (110, True))] == [
        False, True, True, True, False,
    ]  # fmt: skip
    assert room_of(1000, 90, 100, was_low=False).wanted_bytes == risen(100) - 90
    assert room_of(1000, 200, 100, was_low=True).wanted_bytes == 0
    assert not room_of(1000, 0, 0, was_low=True).low


@given(st.integers(1 << 20, 1 << 34), st.integers(0, 500))
def test_all_logs_and_what_is_kept_of_each_stay_within_the_bound(most: int, logs: int) -> None:
    assert 2 * logs * log_most(most, logs) <= most


@pytest.mark.parametrize(("size", "cut"), [(100, None), (801, (100, 300)), (800, None)])
def test_events_are_cut_to_half_of_what_they_may_have(size: int, cut: tuple[int, int] | None) -> None:
    found = events_cut(size, 800)
    assert (None if found is None else (found.head, found.tail)) == cut
