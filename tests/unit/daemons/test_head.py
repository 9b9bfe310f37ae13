"""What the head makes of a scheduler that was started again."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import head as head_module
from dgpunet_dask.daemons.head import Head, HeadOptions
from dgpunet_dask.errors import StartFailed
from dgpunet_dask.model.fleet import Device, Fleet, Host


def fleet(*names: str) -> Fleet:
    return Fleet((Host(name="h"),), tuple(Device(name=name, host="h", kind="cpu") for name in names))


class Answers(Head):
    """A head whose scheduler gives these answers, the last one again and again; ``None``: none."""

    def __init__(self, home: Home, *answers: Fleet | None) -> None:
        super().__init__(HeadOptions(home, fleet("a", "b")), lambda _: None)
        self.answers = list(answers)

    async def live(self) -> Fleet:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise StartFailed(why="the scheduler does not answer", logs="-")
        return answer


def names(found: Fleet) -> list[str]:
    return [device.name for device in found.devices]


def test_a_job_waits_for_workers_that_were_here_before(home: Home) -> None:
    head = Answers(home, fleet("a", "b"), None, fleet(), fleet("a"), fleet("a", "b"))

    async def main() -> None:
        assert names(await head.settled()) == ["a", "b"]
        assert names(await head.settled()) == ["a", "b"]
        assert len(head.answers) == 1

    asyncio.run(main())


def test_it_does_not_wait_for_ever(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "REJOIN_S", 0.1)
    head = Answers(home, fleet("a", "b"), fleet("a"))

    async def main() -> None:
        await head.settled()
        assert names(await head.settled()) == ["a"]
        monkeypatch.setattr(head_module, "REJOIN_S", 600)
        assert names(await head.settled()) == ["a"], "it has been waited for once"

    asyncio.run(main())


def test_a_scheduler_that_stays_silent_is_an_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "REJOIN_S", 0.1)
    with pytest.raises(StartFailed):
        asyncio.run(Answers(home, None).settled())
