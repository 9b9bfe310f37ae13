"""How fast a job gets on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.jobs.progress import SAMPLE_S, WINDOW_S, Pace, Tally, eta_s, expected_units


@given(st.floats(0.05, 30), st.integers(1, 9), st.integers(3, 400))
def test_a_steady_pace_is_told_as_it_is(step_s: float, each: int, steps: int) -> None:
    pace = Pace()
    for n in range(steps):
        pace.note(n * each, n * step_s)
    rate = pace.rate_per_s()
    assert rate == pytest.approx(each / step_s, rel=0.35 if step_s > SAMPLE_S / 4 else 0.2)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=200))
def test_samples_are_few_and_rates_above_zero_or_not_told(steps: list[tuple[float, int]]) -> None:
    pace, now, done = Pace(), 0.0, 0
    for wait_s, more in steps:
        now, done = now + wait_s, done + more
        pace.note(done, now)
        rate = pace.rate_per_s()
        assert rate is None or rate > 0
    assert len(pace._samples) <= WINDOW_S / SAMPLE_S + 4


def test_what_was_fast_long_ago_does_not_count() -> None:
    pace = Pace()
    pace.note(0, 0.0)
    pace.note(1000, 1.0)
    for n in range(1, 200):
        pace.note(1000 + n, 1.0 + n)
    assert pace.rate_per_s() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("done", "total", "expected", "rate", "left"),
    [(5, 10, None, 1.0, 5.0), (5, None, 25, 2.0, 10.0), (5, 10, 99, 1.0, 5.0), (5, None, None, 1.0, None), (5, 10, None, None, None),
     (10, None, 9, 1.0, 0.0)],
)  # fmt: skip
def test_the_rest_takes_as_long_as_the_pace_says(
    done: int, total: int | None, expected: int | None, rate: float | None, left: float | None
) -> None:
    assert eta_s(done, total, expected, rate) == left


def test_units_are_expected_from_the_items_so_far() -> None:
    assert expected_units(4, 100, 1000) == 40
    assert expected_units(4, 100, 50) == 4, "there are that many already"
    assert expected_units(0, 0, 1000) is None
    assert expected_units(4, 100, None) is None


def test_the_tally_tells_each_stage_and_device() -> None:
    tally = Tally()
    tally.note("embed", "a", 1.5)
    tally.note("embed", "a", 0.5)
    tally.note("chunk", None, 9.0)
    rows = tally.rows(["chunk", "embed"], {"chunk": 3}, [("embed", "b")])
    assert rows["stages"] == [
        {"stage": "chunk", "waiting": 3, "running": 0, "done": 1},
        {"stage": "embed", "waiting": 0, "running": 1, "done": 2},
    ]
    assert rows["devices"] == [
        {"device": "a", "running": 0, "done": 2, "seconds": 2.0},
        {"device": "b", "running": 1, "done": 0, "seconds": 0.0},
    ]


def test_a_tally_goes_on_from_what_is_known() -> None:
    tally = Tally.of({"a0": (3, 4.5)})
    tally.note("work", "a0", 0.5)
    rows = tally.rows(["work"], {}, [])
    assert rows["devices"] == [{"device": "a0", "running": 0, "done": 4, "seconds": 5.0}]
    assert rows["stages"] == [{"stage": "work", "waiting": 0, "running": 0, "done": 1}]
