"""The class that users write. Standard library only: it is imported in a stage's own interpreter too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.owner import OPERATOR, User


@dataclass(frozen=True)
class StageContext:
    """Where and for whom a stage runs.

    Parameters
    ----------
    device
        The device's name in the fleet, e.g. ``4090l`` or ``m18r2/cpu``.
    torch_device
        What to hand to torch: ``cuda:0`` (the stage sees only its own card) or ``cpu``.
    vram_mib
        What the stage may take of its card, its charge, which may differ from call to call; ``None`` on a CPU.
    threads
        Compute threads that it should use on a CPU.
    job_id
        The job that calls.
    folder
        A folder of the job on the head's host, shared by its source and gather stages; ``None`` elsewhere.
    home
        ``$DGPUNET_HOME`` for stages that run on the head's host; ``None`` elsewhere.
    user, shared
        Whose job it is, and whether every user may read it, as the head says it to stages that run on its host.
    """

    device: str = "cpu"
    torch_device: str = "cpu"
    vram_mib: int | None = None
    threads: int = 1
    job_id: str = ""
    folder: Path | None = None
    home: Path | None = None
    user: User = OPERATOR
    shared: bool = False


class Stage:
    """A piece of work that is loaded once and called many times.

    A subclass overrides `__call__` and, where it holds something (a model, a tokenizer), `load` and `unload`.
    A stage with neither `load` nor an `env:` in job.yaml runs in the CPU worker itself; any other gets a process of its own.

    * `load` takes the job parameters that it names, by keyword.
    * A stage without `after:` is a source: `__call__(self)` returns an iterable of items.
    * `__call__(self, batch)` takes a list of items and returns a list, or an iterator to stream its results.
      With ``batch: {tokens: N}`` it must give one result for each item, since the runner sorts items by length and puts results back in order.
    * A stage with ``gather: true`` is called once, with an iterable over all items of the stages before it.
    """

    demand: ClassVar[Demand | None] = None
    context: StageContext = StageContext()
    _counters: dict[str, Any] | None = None

    @classmethod
    def demand_for(cls, **_params: Any) -> Demand | None:
        """Return the demand of this stage in a job with these parameters: `demand` unless overridden.

        Like `load`, an override names the job parameters that it wants, as keywords: ``def demand_for(cls, *, model: str)``.
        """
        return cls.demand

    @property
    def device(self) -> str:
        """The name of the device this stage is loaded on."""
        return self.context.device

    def load(self) -> None:
        """Load what calls need. Called once in each stage host, before the first call."""

    def __call__(self, batch: list[Any]) -> Iterable[Any]:
        """Process `batch`."""
        raise TypeError(f"{type(self).__name__} must define __call__")

    def unload(self) -> None:
        """Let go of what `load` took. Called before the process ends in good order."""

    def count(self, name: str, by: float = 1) -> None:
        """Add `by` to the job's metric `name`; ``skipped.binary`` adds under `skipped`, and ``skipped.`` makes that group."""
        counters = self.take_counts() if self._counters is None else self._counters
        counters[name] = counters.get(name, 0) + by
        self._counters = counters

    def note(self, name: str, value: str | float | None) -> None:
        """Set the job's metric `name` to `value`."""
        counters = self._counters if self._counters is not None else {}
        counters[NOTE_PREFIX + name] = value
        self._counters = counters

    def take_counts(self) -> dict[str, Any]:
        """Return what was counted since the last call, and start again from nothing. The runner calls it after each unit."""
        taken, self._counters = self._counters or {}, None
        return taken


NOTE_PREFIX: Final = "="


def merge_counts(total: dict[str, Any], new: dict[str, Any]) -> None:
    """Add `new` counts into `total` in place: numbers add up, notes replace, dotted names nest one level."""
    for name, value in new.items():
        note = name.startswith(NOTE_PREFIX)
        group, _, leaf = name.removeprefix(NOTE_PREFIX).rpartition(".")
        into = total.setdefault(group, {}) if group else total
        if leaf:
            into[leaf] = value if note else into.get(leaf, 0) + value


def is_light(stage: type[Stage], env: str | None) -> bool:
    """Whether `stage` may run inside a CPU worker: it loads nothing and has no environment of its own."""
    return env is None and stage.load is Stage.load
