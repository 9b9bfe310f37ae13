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
_PER_CALL: Final = ("deadline_s", "batch_items", "batch_tokens", "job_id", "vram_mib", "unit", "epoch", "copy", "keep_s")
#: What the result of a call with a unit depends on.
_DECIDES: Final = ("unit", "stage", "run", "digest", "env", "load", "models", "job_id", "batch_items", "batch_tokens")


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
    keep_s
        There: so long its process may be kept instead, idle, and serve another job of the same workload and user, for which it loads anew.
    home
        ``$DGPUNET_HOME`` for stages on the head's host, else ``None``.
    user, operates, shared
        There too: whose job it is, whether that user may do all, and whether every user may read what comes of it.
    batch_items, batch_tokens
        The most items, or padded tokens, of one call of the stage.
    unit
        The id (hex) of the unit that is passed through the stage. A call that tells it is kept by the agent (`kept`); empty: it is not.
    epoch
        The lease of the unit that the call is made under. Only told: a successor's call gets what its predecessor's has computed.
    copy
        The call is a second one of a unit that another call is slow with: it runs by itself beside that one.
    interactive
        The stage's own demand says `priority="interactive"`: its process keeps the agent's OS priority, and every other one is put behind
        all that people wait for (`lowering`). Part of what a process is, since the kernel lets none of them come back.
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
    unit: str = ""
    epoch: int = 0
    copy: bool = False
    keep_s: float = 0.0
    interactive: bool = False

    @property
    def of_one_job(self) -> bool:
        """Whether the stage host serves one job only: a source or a gather stage."""
        return self.folder is not None

    @property
    def process_key(self) -> tuple[object, ...] | None:
        """What a kept process was started with, and for whom: calls of equal key may have it one after another. ``None``: it is not kept."""
        if not self.of_one_job or self.keep_s <= 0 or self.on_card:
            return None
        return self.digest, self.env, self.device, self.threads, self.home, self.user, self.operates, self.interactive

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

    @property
    def call_key(self) -> str:
        """The digest (hex) of all that decides the result of a call with a `unit`: not where it runs, nor under which lease.

        The job is part of it, so that no job is given what another one printed or was told.
        """
        facts = self.to_json()
        decides = {name: facts[name] for name in _DECIDES}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

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
    log
        What the stage has printed meanwhile, its beginning and its end where that is much (`logs.LogFile.text`).
    adopted
        The call was made by another caller before: this one joined it, or got the result that was kept.
    device
        Where it ran: an adopted call perhaps elsewhere on this host than it was asked for. ``None`` in the calling process.
    """

    frames: Sequence[Buffer]
    items: int
    counts: dict[str, Any]
    seconds: float
    load_s: float | None = None
    peak_mib: int | None = None
    log: str = ""
    adopted: bool = False
    device: str | None = None
