"""What a call of a stage is made with, and what comes back. Standard library only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.model.owner import User
from dgpunet_dask.model.stage import StageContext
from dgpunet_dask.stagehost.frames import Buffer

#: May differ from call to call of one stage host.
_PER_CALL: Final = ("deadline_s", "batch_items", "batch_tokens", "job_id", "vram_mib")


@dataclass(frozen=True, kw_only=True)
class StageCallSpec:
    """Which stage to call, on which device, and under which limits. Every field is a plain JSON value.

    Parameters
    ----------
    stage
        Its name in job.yaml.
    run
        ``module:Class`` in the workload's folder.
    digest
        The workload's digest: its folder is ``H/workloads/<digest>``.
    env
        The lock file of the stage's own interpreter, relative to the workload's folder; ``None``: the agent's interpreter.
    load
        Keyword arguments of `Stage.load`.
    models
        The digest of the model that an argument of `load` names, for hosts where that name is no folder (`fetching.with_models`).
    device
        The device's name in the fleet.
    torch_device
        ``cuda:0`` on a real card, else ``cpu``.
    vram_mib
        The charge: what the stage may take of its card at its peak. ``None`` on a CPU.
    resident_mib
        The part of it that stays while the stage is loaded.
    threads
        Compute threads on a CPU.
    deadline_s
        How long the stage may go without progress (a finished batch, a yielded or consumed item, a finished load).
    job_id
        The job that calls.
    folder
        A folder of the job for its source and gather stages. Where it is set the stage host belongs to this job alone and ends with its call.
    home
        ``$DGPUNET_HOME`` for stages on the head's host, else ``None``.
    user, operates, shared
        There too: whose job it is, whether that user may do all, and whether every user may read what comes of it.
    batch_items, batch_tokens
        The most items, or padded tokens, of one call of the stage.
    """

    stage: str
    run: str
    digest: str
    env: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict, hash=False)
    models: Mapping[str, str] = field(default_factory=dict, hash=False)
    device: str = "cpu"
    torch_device: str = "cpu"
    vram_mib: int | None = None
    resident_mib: int = 0
    threads: int = 1
    deadline_s: float = 600.0
    job_id: str = ""
    folder: str | None = None
    home: str | None = None
    user: str | None = None
    operates: bool = False
    shared: bool = False
    batch_items: int | None = None
    batch_tokens: int | None = None

    @property
    def of_one_job(self) -> bool:
        """Whether the stage host serves one job only: a source or a gather stage."""
        return self.folder is not None

    @property
    def on_card(self) -> bool:
        """Whether the device is a card (real or simulated), where a loaded stage takes VRAM."""
        return self.vram_mib is not None

    @cached_property
    def host_key(self) -> str:
        """The digest (16 hex digits) of all that a loaded stage depends on; calls of equal key may share a stage host."""
        facts = self.to_json()
        for name in _PER_CALL:
            if name != "job_id" or not self.of_one_job:
                del facts[name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def context(self) -> StageContext:
        """Return what the stage is told of where it runs."""
        return StageContext(
            device=self.device,
            torch_device=self.torch_device,
            vram_mib=self.vram_mib,
            threads=self.threads,
            job_id=self.job_id,
            folder=None if self.folder is None else Path(self.folder),
            home=None if self.home is None else Path(self.home),
            user=User(self.user, self.operates),
            shared=self.shared,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a mapping of JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"load": dict(self.load), "models": dict(self.models)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StageCallSpec:
        """Return the spec that `to_json` gave."""
        return cls(**raw)


@dataclass(frozen=True)
class CallResult:
    """What one call gave.

    Parameters
    ----------
    frames
        The results, packed (`frames.unpack` reads them).
    items
        How many results they hold. A source's last result may hold none: it carries what was counted after the last item.
    counts
        What the stage counted meanwhile (`model.stage.merge_counts` adds it up).
    seconds
        How long the stage itself took.
    load_s
        How long loading it took, where this call had to; else ``None``.
    peak_mib
        What its process took of the card at most; ``None`` where that was not measured (a CPU, a simulated card, no torch).
    """

    frames: Sequence[Buffer]
    items: int
    counts: dict[str, Any]
    seconds: float
    load_s: float | None = None
    peak_mib: int | None = None
