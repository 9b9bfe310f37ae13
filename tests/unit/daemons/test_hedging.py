from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.hedging import HEDGE_LEAST_S, HEDGE_MOST_S, Asking, Pace
from dgpunet_dask.retrieval.shards import shards_of

CUT = shards_of("s", 4, 1, 1)
CORES = {"a": 1, "b": 1, "c": 1}


class Workers:
    """Answer each in its way: at once, never, with an error, or for nothing."""

    def __init__(self, **ways):
        self.ways, self.asked, self.ended = ways, [], []

    async def ask(self, name, shards):
        self.asked.append((name, tuple(shards)))
        way = self.ways.get(name, "at once")
        try:
            if way == "never":
                await asyncio.Event().wait()
            if way == "error":
                raise OSError("it is gone")
        finally:
            self.ended.append(name)
        return {} if way == "nothing" else dict.fromkeys(shards, name)


def asking(workers, held=None, slow=(), paces=()):
    pace = Pace()
    for took_s in paces:
        pace.note(took_s)
    return Asking(held or dict.fromkeys(CUT, ("a", "b")), CORES, workers.ask, pace, SystemClock(), slow)


async def test_each_shard_is_asked_for_once_where_all_answer():
    workers = Workers()
    made = asking(workers)
    assert set(await made.run()) == set(CUT)
    assert sorted(shard for _, part in workers.asked for shard in part) == list(CUT)
    assert not made.late | made.failed


@pytest.mark.parametrize(("way", "failed"), [("error", {"a"}), ("nothing", set())])
async def test_another_is_asked_at_once_where_one_fails(way, failed):
    workers = Workers(a=way)
    made = asking(workers)
    found = await asyncio.wait_for(made.run(answer_s=3600), 20)
    assert found == dict.fromkeys(CUT, "b")
    assert made.failed == failed


async def test_another_is_asked_where_one_takes_long_and_what_it_would_still_say_is_not_waited_for():
    workers = Workers(a="never")
    made = asking(workers, paces=[0.001])
    found = await asyncio.wait_for(made.run(answer_s=3600), 20)
    assert found == dict.fromkeys(CUT, "b")
    assert (made.late, made.failed) == ({"a"}, set())
    await asyncio.sleep(0)
    assert "a" in workers.ended  # it was let go of


async def test_what_nobody_answers_in_time_is_left_out():
    workers = Workers(a="never", b="error")
    made = asking(workers, {CUT[0]: ("a",), CUT[1]: ("b",), CUT[2]: ("c",), CUT[3]: ()})
    assert await made.run(answer_s=0.1) == {CUT[2]: "c"}
    assert made.late == {"a", "b"}


async def test_it_ends_at_once_where_nobody_is_left():
    made = asking(Workers(a="error", b="nothing"))
    assert await asyncio.wait_for(made.run(answer_s=3600), 20) == {}


async def test_slow_ones_are_asked_only_where_nobody_else_is_left():
    workers = Workers()
    await asking(workers, {CUT[0]: ("a", "b"), CUT[1]: ("a",)}, slow={"a"}).run()
    assert sorted(workers.asked) == [("a", (CUT[1],)), ("b", (CUT[0],))]


def test_the_pace_is_the_median_of_what_was_seen_within_bounds():
    pace = Pace()
    assert pace.hedge_s == HEDGE_MOST_S
    for took_s in (0.001, 0.02, 5.0):
        pace.note(took_s)
    assert pace.hedge_s == pytest.approx(0.06)
    for _ in range(64):
        pace.note(0.001)
    assert pace.hedge_s == HEDGE_LEAST_S
    for _ in range(64):
        pace.note(1.0)
    assert pace.hedge_s == HEDGE_MOST_S
