"""What the scheduler itself learns: how long units of a stage ran, as Dask measured them.

It counts for work that the head does not know, such as tasks of plain Dask clients. Of a stage and model that the head has met, the
head's estimates stand, which know loads and peaks as well; so nothing counts twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from dgpunet_dask.model.fleet import Device
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates, device_class

#: Samples of one stage on one class of devices that are kept between two foldings: older ones would hardly count.
KEPT: Final = 32


#: What Dask reports of a finished task.
StartStops: TypeAlias = Iterable[Mapping[str, Any]] | None
#: The seconds that a unit ran, on a device of which speed, as one of how many.
Sample: TypeAlias = tuple[float, float, int]


class Observer:
    """Run seconds of finished tasks. `estimates`: what the head has told, and beside it what was seen here."""

    def __init__(self) -> None:
        self.told: Estimates = NO_ESTIMATES
        self.own: Estimates = NO_ESTIMATES
        self._seen: dict[tuple[str, str | None, str], deque[Sample]] = {}

    def see(self, stage: str, model: str | None, device: Device, seconds: float, share: int) -> None:
        """Take in one unit."""
        key = (stage, model, device_class(device))
        samples = self._seen.get(key)
        if samples is None:
            samples = self._seen[key] = deque(maxlen=KEPT)
        samples.append((seconds, device.speed, share))

    @property
    def news(self) -> bool:
        """Whether something was seen since the last folding."""
        return bool(self._seen)

    def fold(self) -> Estimates:
        """Return all that is known, with what was seen since the last time."""
        for (stage, model, kind), samples in self._seen.items():
            for seconds, speed, share in samples:
                self.own = self.own.with_run(stage, model, kind, seconds, speed=speed, share=share)
        self._seen.clear()
        return self.estimates

    @property
    def estimates(self) -> Estimates:
        """What is known: the head's word first."""
        return self.told.joined(self.own) if self.own.learned else self.told


def run_seconds(startstops: StartStops) -> float | None:
    """Return the seconds that a task computed, as Dask reports them; ``None`` where it does not."""
    spans = [s["stop"] - s["start"] for s in startstops or () if s.get("action") == "compute"]
    return sum(spans) if spans else None
