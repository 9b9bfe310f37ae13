"""What finished units have taught: kept in memory, told to the scheduler's plugin, and durable in one file of the head.

A head that is killed loses what it learned within the last second; that is learned again. A file that cannot be read is set aside.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import BadValue, DgpunetError, NewerFormat
from dgpunet_dask.errors.fullness import SHORTAGES
from dgpunet_dask.jobs.commit import commit_text
from dgpunet_dask.jobs.task import Seen, StageRecord
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.estimate import FORMAT_VERSION, NO_ESTIMATES, Estimates
from dgpunet_dask.placement.oom import Overrun

log = logging.getLogger(__name__)

#: The plugin is told, and the file written, at most this often.
EVERY_S: Final = 1.0

Tell = Callable[[Mapping[str, Any]], Awaitable[Any]]


async def _nobody(_: Mapping[str, Any]) -> None:
    """Tell nobody."""


@dataclass(eq=False)
class Learning:
    """The estimates of one head.

    Parameters
    ----------
    path
        Where they are kept; ``None``: nowhere.
    tell
        Gives them, as JSON values, to the scheduler's plugin; may fail with `OSError` or one of ours while the scheduler is away.
    """

    path: Path | None = None
    tell: Tell = _nobody
    estimates: Estimates = NO_ESTIMATES
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _kept: Estimates = field(default=NO_ESTIMATES, init=False)
    _told: Estimates | None = field(default=NO_ESTIMATES, init=False)
    _schedulers: int = field(default=0, init=False)

    def load(self) -> None:
        """Read the file, if there is one.

        Raises
        ------
        NewerFormat
            If a newer release wrote it: it would be lost with the first unit that ends.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            found = raw.get("version") if isinstance(raw, dict) else None
            if isinstance(found, int) and found > FORMAT_VERSION:
                raise NewerFormat(path=self.path, found=found, known=FORMAT_VERSION)
            self.estimates = self._kept = Estimates.from_json(raw)
        except (OSError, ValueError, BadValue) as error:
            self._set_aside(self.path, error)
        self.again()

    def _set_aside(self, path: Path, why: Exception) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
        except OSError as error:
            log.warning("%s cannot be read (%s) nor set aside (%s); nothing that is learned now will be kept", path, why, error)
        else:
            log.warning("%s cannot be read (%s); it is now %s, and what it held is learned again", path, why, aside)

    def unit(self, demand: Demand | None, record: StageRecord) -> None:
        """Take in what one unit took at one stage."""
        if demand is None or record.seen is None:
            return
        self.estimates = with_seen(self.estimates, demand, record.seen)
        self._changed.set()

    def overrun(self, demand: Demand, found: Overrun, next_demand: Demand) -> None:
        """Take in that a unit ran out of memory, and that it asks for `next_demand` now."""
        too_small = found.card_mib if found.whole else None
        self.estimates = self.estimates.with_oom(
            demand.stage, demand.model, need_mib=next_demand.vram_mib, too_small_mib=too_small
        )
        self._changed.set()

    def held(self, demand: Demand) -> None:
        """Take in that a unit was given up for want of memory: what was shown on the way must not keep a mended workload from running."""
        self.estimates = self.estimates.without_oom(demand.stage, demand.model)
        self._changed.set()

    def again(self) -> None:
        """Tell the plugin all of it again: it is a new one."""
        self._told, self._schedulers = None, self._schedulers + 1
        self._changed.set()

    async def now(self) -> None:
        """Tell the plugin what has changed, at once; while the scheduler is away, later."""
        now, scheduler = self.estimates, self._schedulers
        if now is self._told:
            return
        try:
            await self.tell(now.to_json())
            self._told = now if scheduler == self._schedulers else None
        except (OSError, DgpunetError) as error:
            log.info("the scheduler cannot be told what was learned: %s", error)
            await asyncio.sleep(EVERY_S)
            self._changed.set()

    async def run(self) -> None:
        """Tell and keep what has changed, until cancelled; then keep the rest."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self.now()
                await in_thread(self.keep)
                await asyncio.sleep(EVERY_S)
        finally:
            self.keep()

    def keep(self) -> None:
        """Make the estimates durable, unless they are. A full disk costs what was learned, not the cluster."""
        now = self.estimates
        if self.path is None or now is self._kept:
            return
        try:
            commit_text(self.path, json.dumps(now.to_json(), indent=1))
            self._kept = now
        except (OSError, *SHORTAGES) as error:
            log.warning("what was learned cannot be kept in %s: %s", self.path, error)


def with_seen(estimates: Estimates, demand: Demand, seen: Seen) -> Estimates:
    """Return `estimates` with what one call of `demand` has taught."""
    stage, model = demand.stage, demand.model
    found = estimates.with_run(stage, model, seen.device_class, seen.seconds, speed=seen.speed, share=seen.share)
    if seen.load_s is not None:
        found = found.with_load(stage, model, seen.device_class, seen.load_s)
    if seen.peak_mib is not None:
        found = found.with_peak(stage, model, seen.peak_mib, charge_mib=seen.charge_mib)
    return found
