"""What plain Dask tasks have taught outlives the scheduler that learned it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpunet_dask.daemons.tasklearning import TaskLearning
from dgpunet_dask.errors import StartFailed
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates


class Plugin:
    """A scheduler's plugin that may be away."""

    def __init__(self) -> None:
        self.own = NO_ESTIMATES
        self.away = False

    async def exchange(self, estimates: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.away:
            raise StartFailed(why="it is away", logs="logs")
        self.own = self.own.joined(Estimates.from_json(estimates))
        return self.own.to_json()


def kept(path: Path) -> Learning:
    learning = Learning(path)
    learning.load()
    return learning


async def test_a_new_scheduler_knows_what_the_last_one_learned(tmp_path: Path) -> None:
    path, first = tmp_path / "learned-tasks.json", Plugin()
    first.own = NO_ESTIMATES.with_run("fit", None, "5090", 2.0, speed=4.0, share=1)
    following = TaskLearning(kept(path), first.exchange)
    await following.once()

    second = Plugin()
    following.exchange = second.exchange
    await following.once()
    assert second.own.run_s("fit", None, "5090") == 2.0

    third = Plugin()
    await TaskLearning(kept(path), third.exchange).once()
    assert third.own == first.own


async def test_a_scheduler_that_is_away_costs_nothing_that_is_known(tmp_path: Path) -> None:
    path, plugin = tmp_path / "learned-tasks.json", Plugin()
    following = TaskLearning(kept(path), plugin.exchange)
    following.kept.estimates = NO_ESTIMATES.with_run("fit", None, "5090", 2.0, speed=4.0, share=1)
    plugin.away = True
    await following.once()
    plugin.away = False
    await following.once()
    assert plugin.own == following.kept.estimates == kept(path).estimates
