"""A source whose process dies is begun anew, and gives each unit once."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dgpunet_dask.errors import JobFailed, StageFailed, StageHostLost, StageHung
from dgpunet_dask.jobs.sourcing import AT_LEAST, AWAY_S, SourceReader, anew
from dgpunet_dask.jobs.units import Naming
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.frames import pack
from dgpunet_dask.stagehost.spec import CallResult

RECIPE = "00" * 32
LOST = StageHostLost(stage="source", device="box/cpu", how="SIGKILL", attempts=1, log="a.log")
HUNG = StageHung(stage="source", device="box/cpu", deadline_s=1.0, log="a.log", tail="")
PLAN: Any = SimpleNamespace(call=SimpleNamespace(spec=None), spec=SimpleNamespace(name="source", unit_items=1, unit_bytes=1, retries=2))


class FakeAgent:
    """Streams scripted runs, one for each time it is asked: numbers are units, ``None`` a piece without items, errors are raised."""

    def __init__(self, *runs: list[Any]) -> None:
        self.runs = list(runs)
        self.ended = 0

    def stream(self, *_: Any) -> Iterator[CallResult]:
        return self._run(self.runs.pop(0))

    def _run(self, run: list[Any]) -> Iterator[CallResult]:
        try:
            for step in run:
                if isinstance(step, Exception):
                    raise step
                yield CallResult([] if step is None else pack([step]), 0 if step is None else 1, {}, 0.0)
        finally:
            self.ended += 1

    def close(self) -> None:
        """Nothing is held open."""


class Waits(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def reader(*runs: list[Any], waits: Waits | None = None, told: list[Any] | None = None) -> SourceReader:
    sleep = Waits() if waits is None else waits
    return SourceReader(FakeAgent(*runs), PLAN, RECIPE, sleep, [].append if told is None else told.append)


async def read(source: SourceReader) -> list[str | None]:
    found = []
    while (pair := await source.next())[0] is not None:
        found.append(pair[1])
    return found


def ids(*numbers: int) -> list[str]:
    naming = Naming(RECIPE)
    return [naming.id_of(pack([number])) for number in numbers]


@pytest.mark.parametrize("error", [LOST, HUNG], ids=["killed", "hung"])
@pytest.mark.parametrize("where", range(4))
async def test_a_death_costs_no_unit_and_gives_none_twice(error, where):
    told: list[Any] = []
    source = reader([*range(where), error], [0, 1, 2], told=told)
    assert await read(source) == ids(0, 1, 2)
    assert told == [error]


async def test_equal_units_keep_their_ids():
    assert await read(reader([5, 5, LOST], [5, 5, 5])) == ids(5, 5, 5)


async def test_a_piece_without_items_is_passed_over_too():
    assert await read(reader([0, None, LOST], [0, None, 1])) == [*ids(0), None, *ids(0, 1)[1:]]


async def test_what_came_between_two_deaths_counts():
    runs = [[*range(k), LOST] for k in range(10)]
    assert await read(reader(*runs, list(range(10)))) == ids(*range(10))


async def test_one_that_dies_again_and_again_is_given_up():
    waits = Waits()
    with pytest.raises(StageHostLost):
        await read(reader(*[[0, LOST]] * (AT_LEAST + 1), waits=waits))
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("second", [[1, 0, 2], [0], []], ids=["other", "fewer", "none"])
async def test_a_source_that_gives_other_units_the_second_time_fails_the_job(second):
    with pytest.raises(JobFailed, match="other units"):
        await read(reader([0, 1, LOST], second))


async def test_what_the_source_s_own_code_raises_is_not_tried_again():
    error = StageFailed(stage="source", kind="ValueError", why="no")
    with pytest.raises(StageFailed):
        await read(reader([0, error], [0, 1]))


async def test_closing_ends_it():
    source = reader([0, 1, 2])
    await source.next()
    await source.close()
    await source.close()
    assert source._agent.ended == 1


async def test_a_step_is_done_again_after_a_death_alone():
    waits, results = Waits(), iter([LOST, HUNG, "done"])

    async def step() -> str:
        found = next(results)
        if isinstance(found, Exception):
            raise found
        return found

    assert await anew(step, 2, waits) == "done"
    assert waits == [1.0, 2.0]


def stepping(*results: object):
    """Return a step that gives these one after the other, errors raised, and the last of them for ever."""
    left = list(results)

    async def step() -> object:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return step


async def test_an_agent_that_is_not_there_costs_no_try(tmp_path):
    with pytest.raises(StageHostLost) as away:
        AgentClient(tmp_path / "no.socket").inspect("digest", {}, {})
    waits, told = Waits(), []
    assert await anew(stepping(*[away.value] * 30, LOST, *[away.value] * 30, HUNG, "done"), 2, waits, told.append) == "done"
    assert waits == [1.0] * 30 + [1.0] + [1.0] * 30 + [2.0]
    assert told == [away.value, LOST, away.value, HUNG]


async def test_an_agent_that_stays_away_is_told_at_last(tmp_path):
    with pytest.raises(StageHostLost) as away:
        AgentClient(tmp_path / "no.socket").inspect("digest", {}, {})
    waits = Waits()
    with pytest.raises(StageHostLost, match="does not answer"):
        await anew(stepping(away.value), 2, waits)
    assert sum(waits) == AWAY_S
