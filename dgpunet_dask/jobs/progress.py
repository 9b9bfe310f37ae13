"""How fast a job gets on, and when it will have ended. Pure: moments are arguments."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: The rate is that of the last so many seconds.
WINDOW_S: Final = 60.0
#: Samples are taken no more often than this.
SAMPLE_S: Final = 0.5


@dataclass
class Pace:
    """The rate of a growing count over the last `WINDOW_S` seconds."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, done: int, now: float) -> None:
        """Take in that `done` were done at `now`, in seconds of a clock that never goes back."""
        if len(self._samples) > 1 and now - self._samples[-2][0] < SAMPLE_S:
            self._samples.pop()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] > WINDOW_S:
            self._samples.popleft()

    def rate_per_s(self) -> float | None:
        """Return how many were done a second, ``None`` before there is anything to tell."""
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began) if ended > began and last > first else None


def eta_s(done: int, total: int | None, expected: int | None, rate_per_s: float | None) -> float | None:
    """Return the seconds until the end at this rate; ``None`` where the rate or how much there is is not known.

    Parameters
    ----------
    total, expected
        Units: as counted once the source has ended, and as can be said before.
    """
    whole = total if total is not None else expected
    if whole is None or rate_per_s is None:
        return None
    return max(0.0, (whole - done) / rate_per_s)


def expected_units(units: int, items: int, expected_items: int | None) -> int | None:
    """Return how many units there will be, from what the source said of its items and how many the units so far have held."""
    if expected_items is None or not units or not items:
        return None
    return max(units, round(units * expected_items / items))


@dataclass
class Tally:
    """What each stage and each device has done for a job."""

    stages: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, spent: Mapping[str, tuple[int, float]]) -> Tally:
        """Return the tally of a job that has done so many calls, in so many seconds, on each device; its stages are counted anew."""
        calls, seconds = {d: calls for d, (calls, _) in spent.items()}, {d: s for d, (_, s) in spent.items()}
        return cls(devices=Counter(calls), seconds=Counter(seconds))

    def note(self, stage: str, device: str | None, seconds: float) -> None:
        """Take in one finished call."""
        self.stages[stage] += 1
        if device is not None:
            self.devices[device] += 1
            self.seconds[device] += seconds  # type: ignore[assignment]  # a Counter of floats

    def rows(self, stages: Iterable[str], waiting: Mapping[str, int], running: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Return ``{"stages": […], "devices": […]}``.

        Parameters
        ----------
        stages
            All of the job's, in the order of the data.
        waiting
            How many units wait at each stage.
        running
            Stage and device of each call that runs.
        """
        at_work = list(running)
        by_stage, by_device = Counter(s for s, _ in at_work), Counter(d for _, d in at_work)
        return {
            "stages": [{"stage": s, "waiting": waiting.get(s, 0), "running": by_stage[s], "done": self.stages[s]} for s in stages],
            "devices": [
                {"device": d, "running": by_device[d], "done": self.devices[d], "seconds": round(float(self.seconds[d]), 3)}
                for d in sorted({*self.devices, *by_device})
            ],
        }
