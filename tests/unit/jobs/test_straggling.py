"""Which units are slow enough for a second copy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.jobs.straggling import AT_LEAST_S, FACTOR, Flight, stragglers

flights = st.lists(
    st.builds(
        Flight, number=st.integers(0, 50), stage=st.sampled_from("ab"), device=st.sampled_from("xy"), since_s=st.floats(0, 100),
        estimate_s=st.none() | st.floats(0, 20), copied=st.booleans(),
    ),
    max_size=8,
)  # fmt: skip


def flight(**more: Any) -> Flight:
    return Flight(**{"number": 0, "stage": "a", "device": "x", "since_s": 0.0, "estimate_s": 10.0, **more})


@pytest.mark.parametrize(
    ("estimate_s", "now", "slow"),
    [(10.0, FACTOR * 10.0, False), (10.0, FACTOR * 10.0 + 0.1, True), (0.001, AT_LEAST_S, False), (0.001, AT_LEAST_S + 0.1, True), (None, 1e9, False)],
)
def test_it_is_slow_once_it_takes_far_longer_than_it_should(estimate_s: float | None, now: float, slow: bool) -> None:
    assert [f.number for f in stragglers([flight(estimate_s=estimate_s)], now, ())] == [0] * slow


def test_one_copy_is_enough_and_none_is_made_while_others_wait_for_a_device() -> None:
    assert not stragglers([flight(copied=True)], 1e6, ())
    assert not stragglers([flight()], 1e6, {"a"})
    assert stragglers([flight()], 1e6, {"b"})


@given(flights, st.floats(0, 200), st.sets(st.sampled_from("ab")))
def test_the_longest_on_its_way_goes_first(found: list[Flight], now: float, waiting: set[str]) -> None:
    slow = stragglers(found, now, waiting)
    assert [f.since_s for f in slow] == sorted(f.since_s for f in slow)
    assert all(f in found and f.overdue(now) and not f.copied and f.stage not in waiting for f in slow)
    later = stragglers(found, now + 1.0, waiting)
    assert len(later) >= len(slow), "what is slow now is slow later"
