"""What an agent does beside its heartbeats begins again when it breaks, and says so for a while."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.daemons.followers import WELL_S, Followers
from tests.unit.daemons.members import ManualClock


class Broken:
    """Breaks so many times, then goes on; tells when it does."""

    def __init__(self, times, by_itself=False):
        self.left, self.by_itself, self.well, self.begun = times, by_itself, asyncio.Event(), 0

    async def run(self):
        self.begun += 1
        if self.begun <= self.left:
            if self.by_itself:
                return
            raise ValueError("odd")
        self.well.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(("by_itself", "told"), [(False, "ValueError: odd"), (True, "it ended by itself")])
async def test_what_ends_is_begun_again_and_told_until_it_has_been_well(caplog, by_itself, told):
    clock, broken = ManualClock(), Broken(3, by_itself)
    followers = Followers(clock, pause_s=0.0)
    followers.begin("cards", broken.run)
    assert followers.rows() == []
    async with asyncio.timeout(20):
        await broken.well.wait()
    assert followers.rows() == [{"name": "cards", "ends": 3, "error": told, "ended_s_ago": 0.0}]
    assert "looks after the cards has ended" in caplog.text
    clock.now += WELL_S
    assert followers.rows() == []
    await followers.stop()


async def test_one_that_ends_holds_up_no_other_and_all_end_together():
    followers, ended = Followers(ManualClock(), pause_s=0.0), []
    well = Broken(0)

    async def noting():
        try:
            await well.run()
        finally:
            ended.append("well")

    followers.begin("cards", Broken(1 << 30).run)
    followers.begin("disk", noting)
    async with asyncio.timeout(20):
        await well.well.wait()
    await followers.stop()
    assert ended == ["well"]
