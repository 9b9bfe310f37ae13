"""When a job is judged by what is here, after the scheduler was started again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dgpunet_dask.daemons import settling as settling_module
from dgpunet_dask.daemons.settling import Settling
from dgpunet_dask.errors import StartFailed
from dgpunet_dask.model.fleet import Device, Fleet, Host


def fleet(*names: str) -> Fleet:
    return Fleet((Host(name="h"),), tuple(Device(name=name, host="h", kind="cpu") for name in names))


class Answers:
    """A scheduler that gives these answers, the last one again and again; ``None``: none."""

    def __init__(self, *answers: Fleet | None) -> None:
        self.answers = list(answers)

    async def __call__(self) -> Fleet:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise StartFailed(why="the scheduler does not answer", logs="-")
        return answer


def needs(*names: str) -> Callable[[Fleet], bool]:
    return lambda found: {device.name for device in found.devices}.issuperset(names)


ALL = needs("all that will ever come")


def names(found: Fleet) -> list[str]:
    return [device.name for device in found.devices]


async def test_what_cannot_do_without_waits_for_workers_that_were_here_before() -> None:
    live = Answers(fleet("a", "b"), None, fleet(), fleet("a"), fleet("a", "b"))
    settling = Settling(live, lambda: True)
    assert names(await settling.fleet(ALL)) == ["a", "b"]
    assert names(await settling.fleet(ALL)) == ["a", "b"]
    assert len(live.answers) == 1


async def test_what_can_do_with_those_that_are_here_does_not_wait_and_the_others_are_still_waited_for() -> None:
    live = Answers(fleet("a", "b", "c"), fleet(), fleet("a"), fleet("a", "b"), fleet("a", "b", "c"))
    settling = Settling(live, lambda: True)
    await settling.fleet(ALL)
    assert names(await settling.fleet(needs("a"))) == ["a"]
    assert names(await settling.fleet(needs("b"))) == ["a", "b"]
    assert names(await settling.fleet(ALL)) == ["a", "b", "c"]


async def test_nothing_is_judged_before_the_policies_are_in_force() -> None:
    told = iter([False, False, False, True])
    live = Answers(fleet(), fleet("a"), fleet("a", "b"))
    assert names(await Settling(live, lambda: next(told, True)).fleet(needs())) == ["a", "b"]


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling_module, "REJOIN_S", 0.1)
    settling = Settling(Answers(fleet("a", "b"), fleet("a")), lambda: True)
    await settling.fleet(ALL)
    assert names(await settling.fleet(ALL)) == ["a"]
    monkeypatch.setattr(settling_module, "REJOIN_S", 600)
    assert names(await settling.fleet(ALL)) == ["a"], "it has been waited for once"


async def test_who_is_to_come_may_be_known_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    awaited = {"a", "b"}
    settling = Settling(Answers(fleet("a"), fleet("a"), fleet("a", "b")), lambda: True, lambda: awaited)
    assert names(await settling.fleet(ALL)) == ["a", "b"]
    awaited.add("c")
    monkeypatch.setattr(settling_module, "REJOIN_S", 0.1)
    assert names(await settling.fleet(ALL)) == ["a", "b"]


async def test_a_scheduler_that_stays_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling_module, "REJOIN_S", 0.1)
    with pytest.raises(StartFailed):
        await Settling(Answers(None), lambda: True).fleet(needs())
