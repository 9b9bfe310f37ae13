"""A workload: stages joined into a graph, and the parameters a user may set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dgpunet_dask.model.demand import Demand

ParamType = Literal["path", "name", "model", "string", "int", "float", "bool"]


@dataclass(frozen=True, kw_only=True)
class Param:
    """One parameter of a workload."""

    name: str
    type: ParamType = "string"
    list: bool = False
    required: bool = False
    default: Any = None
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage as job.yaml states it.

    Parameters
    ----------
    run
        ``module:Class`` inside the workload's folder.
    after
        The stage whose results it takes; ``None`` for the source.
    batch_items, batch_tokens
        The most items, or padded tokens, of one call; ``None``: a unit's items at once.
    env
        A lock file (pip's requirement format) in the workload's folder.
    gather
        Called once, on the head's host, with all results.
    at_head
        Called on the head's host wherever it can be, with that host's home: for what has to be looked up there. Only a light stage may be.
    unit_items, unit_bytes
        How many of the source's items make one unit (for the source only).
    deadline_s
        How long one call may go without progress before its process is killed.
    retries
        How often a unit is tried again after its process died.
    keep_s
        How long the process of a source or gather stage is kept after its call, for the next job of the same workload and user; 0: it ends.
    """

    name: str
    run: str
    after: str | None = None
    batch_items: int | None = None
    batch_tokens: int | None = None
    env: str | None = None
    gather: bool = False
    at_head: bool = False
    unit_items: int = 64
    unit_bytes: int = 1 << 20
    deadline_s: float = 600.0
    retries: int = 2
    keep_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What only the code knows of a stage, read in the stage's own interpreter."""

    demand: Demand | None
    light: bool
    load_params: tuple[str, ...] = ()
    load_required: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A folder with a job.yaml, by the digest of its files.

    `stages` are in the order of the data: the source first, then each after the one it takes from; `gather` last.
    """

    name: str
    digest: str
    folder: str
    params: Mapping[str, Param] = field(default_factory=dict)
    stages: tuple[StageSpec, ...] = ()

    @property
    def source(self) -> StageSpec:
        """The stage that reads the input."""
        return self.stages[0]

    @property
    def unit_stages(self) -> tuple[StageSpec, ...]:
        """The stages that every unit passes, in order."""
        return tuple(s for s in self.stages[1:] if not s.gather)

    @property
    def gather(self) -> StageSpec | None:
        """The stage that takes all results, if there is one."""
        return self.stages[-1] if self.stages[-1].gather else None
