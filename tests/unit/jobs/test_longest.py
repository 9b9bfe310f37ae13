"""Longer units go first, and none waits for ever."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.jobs.longest import LongestFirst
from tests.unit.jobs.runs import running

SIZES = st.lists(st.integers(0, 10**9), min_size=1, max_size=60)
WINDOWS = st.integers(1, 64)


def order(sizes: list[int], window: int) -> list[int]:
    """Return the units' numbers in the order of their turns."""
    given_turns = LongestFirst()
    turns = [given_turns.turn(number, size, window) for number, size in enumerate(sizes)]
    return sorted(range(len(sizes)), key=lambda number: (turns[number], number))


@given(st.integers(0, 10**9), st.integers(1, 60), WINDOWS)
def test_units_of_one_size_go_in_the_order_of_the_source(size: int, count: int, window: int) -> None:
    assert order([size] * count, window) == list(range(count))


@given(SIZES, WINDOWS)
def test_none_is_passed_by_one_that_came_more_than_a_window_later(sizes: list[int], window: int) -> None:
    place = {number: at for at, number in enumerate(order(sizes, window))}
    assert not [
        (late, early) for early in place for late in place if late > early + window and place[late] < place[early]
    ]


def test_a_long_unit_passes_the_short_ones_of_its_window() -> None:
    assert order([100, 1, 1, 1, 100, 1], 8) == [0, 4, 1, 2, 3, 5]


def test_a_unit_twice_as_long_goes_half_a_window_earlier() -> None:
    assert order([100, 0, 0, 0, 50, 0], 4) == [0, 1, 2, 4, 3, 5]


async def test_the_tasks_of_a_long_unit_have_the_higher_priority(tmp_path: Path) -> None:
    short, long = b"-", b"-" * 100_000
    async with running(tmp_path, [long, short, short, long, short]) as run:
        await run.runner.run()
    served = sorted(run.dask.starts, key=lambda start: -start.priority)  # Dask serves the highest first
    assert [start.number for start in served] == [0, 3, 1, 2, 4]
