"""What finished work has taught: seconds of a unit, seconds of a load, peak VRAM. Pure: every update returns new values.

*Seconds* are an exponentially weighted mean: a new sample counts `ALPHA`, the weight that TCP gives a new round trip (RFC 6298 §2.3),
and among the first few each counts the same, so that a slow first call is soon outweighed. Kept are the mean per device class and,
over all classes, the mean *work*: seconds × speed of the device, which stands in where a class has not been met.

*Peaks* are kept with `MARGIN` on top, since a caching allocator needs more than the tensors it holds and the next unit may be a little
larger, but never above the charge that has just proved enough. The estimate is the 95th percentile of the last `WINDOW` of them. An
out-of-memory raises it at once to the grown demand, until `WINDOW` further units have been measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.fleet import Device

FORMAT_VERSION: Final = 1
#: Weight of a new sample, once there are 1 ÷ ALPHA of them.
ALPHA: Final = 1 / 8
#: Peaks that are kept of each stage and model.
WINDOW: Final = 64
QUANTILE: Final = 0.95
MARGIN: Final = 0.10
#: Needs are rounded up to multiples of this, so that each unit does not make another demand of its like.
STEP_MIB: Final = 64
#: Stages and models that are kept; the one that was heard of longest ago goes first.
MOST: Final = 1024

Key = tuple[str | None, str | None]
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def device_class(device: Device) -> str:
    """Return what devices of like speed have in common: the card's model, its name where that is not known, ``cpu`` for a CPU."""
    return "cpu" if device.kind == "cpu" else device.model or device.name


@dataclass(frozen=True)
class Mean:
    """An exponentially weighted mean of `count` samples; it never leaves their range."""

    value: float = 0.0
    count: int = 0

    def with_sample(self, sample: float) -> Mean:
        """Return the mean with one more sample."""
        weight = max(ALPHA, 1 / (self.count + 1))
        return Mean(self.value + weight * (sample - self.value) if self.count else sample, self.count + 1)


@dataclass(frozen=True)
class Learned:
    """What is known of one stage and model.

    Parameters
    ----------
    run_s, load_s
        By device class.
    work_s
        Seconds × speed, over all classes.
    needs_mib
        The last peaks with their margin, oldest first.
    floor_mib, larger_than_mib
        What an out-of-memory has shown to be needed at least, and the VRAM of the largest card whose whole usable memory was too small;
        0: no such thing was met.
    floor_for
        For how many more measured units these two count.
    """

    run_s: Mapping[str, Mean] = field(default_factory=lambda: _NOTHING, hash=False)
    load_s: Mapping[str, Mean] = field(default_factory=lambda: _NOTHING, hash=False)
    work_s: Mean = Mean()
    needs_mib: tuple[int, ...] = ()
    floor_mib: int = 0
    floor_for: int = 0
    larger_than_mib: int = 0


_UNKNOWN: Final = Learned()


@dataclass(frozen=True)
class Estimates:
    """All that has been learned, by stage and model."""

    learned: Mapping[Key, Learned] = field(default_factory=dict, hash=False)

    def of(self, stage: str | None, model: str | None) -> Learned:
        """Return what is known of a stage and model."""
        return self.learned.get((stage, model), _UNKNOWN)

    # Asked by placement

    def run_s(self, stage: str | None, model: str | None, device_class: str) -> float | None:
        """Return the seconds of one unit alone on a device of this class, ``None`` where none has been seen there."""
        mean = self.of(stage, model).run_s.get(device_class)
        return None if mean is None else mean.value

    def work_s(self, stage: str | None, model: str | None) -> float | None:
        """Return the seconds of one unit at speed 1, over all classes; ``None`` where none has been seen at all."""
        work = self.of(stage, model).work_s
        return work.value if work.count else None

    def run_s_on(self, stage: str | None, model: str | None, device: Device) -> float | None:
        """Return the seconds of one unit on `device`: those of its class, else the work ÷ its speed."""
        found = self.run_s(stage, model, device_class(device))
        if found is None and device.speed > 0 and (work := self.work_s(stage, model)) is not None:
            return work / device.speed
        return found

    def speed(self, device_class: str) -> float | None:
        """Return how fast devices of this class have proved to be, on the scale of the devices' stated speeds; ``None`` if not met.

        For each stage and model, the work of a unit over its seconds here; the mean over all of them.
        """
        met = [(k.work_s.value, k.run_s[device_class].value) for k in self.learned.values() if k.work_s.count and device_class in k.run_s]
        ratios = [work / run for work, run in met if run > 0]
        return sum(ratios) / len(ratios) if ratios else None

    def load_s(self, stage: str | None, model: str | None, device_class: str) -> float | None:
        """Return the seconds of a load on a device of this class, else the mean over the classes that are known."""
        known = self.of(stage, model).load_s
        if device_class in known:
            return known[device_class].value
        return sum(mean.value for mean in known.values()) / len(known) if known else None

    def peak_mib(self, stage: str | None, model: str | None) -> int | None:
        """Return the VRAM to charge for a unit that states none: the 95th percentile with its margin; ``None`` where not known."""
        known = self.of(stage, model)
        measured = percentile(known.needs_mib, QUANTILE) if known.needs_mib else 0
        return max(int(measured), known.floor_mib) or None

    def larger_than_mib(self, stage: str | None, model: str | None) -> int | None:
        """Return the VRAM of the largest card that was too small as a whole: only larger ones will do. ``None``: there was none."""
        return self.of(stage, model).larger_than_mib or None

    # Updates

    def with_run(
        self, stage: str | None, model: str | None, device_class: str, seconds: float, *, speed: float = 1.0, share: int = 1
    ) -> Estimates:
        """Return these with one more unit, which took `seconds` on a device of `speed` as one of `share` that ran there."""
        known, alone = self.of(stage, model), _sample("seconds", seconds) / max(1, share)
        work = known.work_s.with_sample(alone * speed) if speed > 0 else known.work_s
        return self._with(stage, model, replace(known, run_s=_with_sample(known.run_s, device_class, alone), work_s=work))

    def with_load(self, stage: str | None, model: str | None, device_class: str, seconds: float) -> Estimates:
        """Return these with one more load."""
        known = self.of(stage, model)
        loads = _with_sample(known.load_s, device_class, _sample("seconds", seconds))
        return self._with(stage, model, replace(known, load_s=loads))

    def with_peak(self, stage: str | None, model: str | None, mib: int, *, charge_mib: int | None = None) -> Estimates:
        """Return these with the measured peak of one more unit, which has run to its end under a charge of `charge_mib`."""
        known = self.of(stage, model)
        need = -(-math.ceil(_sample("MiB", mib) * (1 + MARGIN)) // STEP_MIB) * STEP_MIB
        if charge_mib is not None:
            need = min(need, max(charge_mib, mib))
        needs, left = (*known.needs_mib, need)[-WINDOW:], known.floor_for - 1
        if left > 0:
            return self._with(stage, model, replace(known, needs_mib=needs, floor_for=left))
        return self._with(stage, model, replace(known, needs_mib=needs, floor_for=0, floor_mib=0, larger_than_mib=0))

    def with_oom(
        self, stage: str | None, model: str | None, *, need_mib: int | None, too_small_mib: int | None = None
    ) -> Estimates:
        """Return these with an out-of-memory.

        Parameters
        ----------
        need_mib
            What is needed at least from now on. ``None``: what was known is worth nothing, and the whole card is to be taken.
        too_small_mib
            The VRAM of the card, where the whole of what is usable of it was charged: no card of that size will do.
        """
        known = self.of(stage, model)
        too_small = max(known.larger_than_mib, too_small_mib or 0)
        if need_mib is None:
            return self._with(stage, model, replace(known, needs_mib=(), floor_mib=0, floor_for=WINDOW, larger_than_mib=too_small))
        floor = max(known.floor_mib, need_mib)
        return self._with(stage, model, replace(known, floor_mib=floor, floor_for=WINDOW, larger_than_mib=too_small))

    def without_oom(self, stage: str | None, model: str | None) -> Estimates:
        """Return these without what an out-of-memory has shown: nothing helped, and whoever tries again has changed something."""
        return self._with(stage, model, replace(self.of(stage, model), floor_mib=0, floor_for=0, larger_than_mib=0))

    def without(self, stage: str | None = None, model: str | None = None) -> Estimates:
        """Return these without what is known of `stage` (``None``: any) and `model` (``None``: any)."""
        kept = {k: v for k, v in self.learned.items() if (stage or k[0]) != k[0] or (model or k[1]) != k[1]}
        return Estimates(kept)

    def joined(self, other: Estimates) -> Estimates:
        """Return what both know; of a stage and model that both have met, what these say."""
        return Estimates({**other.learned, **self.learned})

    def _with(self, stage: str | None, model: str | None, learned: Learned) -> Estimates:
        found = {key: value for key, value in self.learned.items() if key != (stage, model)}
        found[stage, model] = learned
        while len(found) > MOST:
            del found[next(iter(found))]
        return Estimates(found)

    # Keeping

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; `from_json` reads them back."""
        rows = [{"stage": stage, "model": model, **_row(known)} for (stage, model), known in self.learned.items()]
        return {"version": FORMAT_VERSION, "stages": rows}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Estimates:
        """Return the estimates that `to_json` gave.

        Raises
        ------
        BadValue
            If they are of another version, or no estimates at all.
        """
        if not isinstance(raw, Mapping) or raw.get("version") != FORMAT_VERSION:
            raise BadValue(what="estimates", value=_version(raw), why=f"this release reads version {FORMAT_VERSION}")
        try:
            return cls({(row["stage"], row["model"]): _learned(row) for row in raw["stages"]})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadValue(what="estimates", value="…", why=f"{type(error).__name__}: {error}") from error


NO_ESTIMATES: Final = Estimates()


def percentile(values: Sequence[float], quantile: float) -> float:
    """Return the smallest of `values` that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]


def _sample(what: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise BadValue(what=what, value=value, why="a measured value is 0 or more")
    return float(value)


def _with_sample(means: Mapping[str, Mean], device_class: str, sample: float) -> Mapping[str, Mean]:
    return {**means, device_class: means.get(device_class, Mean()).with_sample(sample)}


def _row(known: Learned) -> dict[str, Any]:
    return {
        "run_s": {name: [mean.value, mean.count] for name, mean in known.run_s.items()},
        "load_s": {name: [mean.value, mean.count] for name, mean in known.load_s.items()},
        "work_s": [known.work_s.value, known.work_s.count],
        "needs_mib": list(known.needs_mib),
        "floor_mib": known.floor_mib,
        "floor_for": known.floor_for,
        "larger_than_mib": known.larger_than_mib,
    }


def _learned(row: Mapping[str, Any]) -> Learned:
    return Learned(
        run_s={str(name): _mean(pair) for name, pair in row["run_s"].items()},
        load_s={str(name): _mean(pair) for name, pair in row["load_s"].items()},
        work_s=_mean(row["work_s"]),
        needs_mib=tuple(int(_sample("MiB", need)) for need in row["needs_mib"])[-WINDOW:],
        floor_mib=int(row["floor_mib"]),
        floor_for=int(row["floor_for"]),
        larger_than_mib=int(row["larger_than_mib"]),
    )


def _mean(pair: Sequence[float]) -> Mean:
    value, count = pair
    return Mean(_sample("mean", value), int(count))


def _version(raw: object) -> object:
    return raw.get("version") if isinstance(raw, Mapping) else type(raw).__name__
