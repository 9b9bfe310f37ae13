"""The thin function that Dask workers run: one unit through one stage, in the worker or in the stage host of its device."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import home_from
from dgpunet_dask.errors import DgpunetError, ForeignMemory, StageHostLost, StageHung, StageOutOfMemory
from dgpunet_dask.failpoints import hit
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.placement.estimate import device_class
from dgpunet_dask.plugins.worker import current_device, current_host, current_vram_mib, device_facts, sharing
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.frames import Buffer
from dgpunet_dask.stagehost.inline import call_light
from dgpunet_dask.stagehost.spec import CallResult, StageCallSpec

#: Compute threads of a stage on a card; the agent sets it where simulated cards share the cores of one machine.
THREADS_VARIABLE: Final = "DGPUNET_STAGE_THREADS"
#: Computes the work of cards on this torch device instead: for clusters whose cards do not exist.
TORCH_DEVICE_VARIABLE: Final = "DGPUNET_TORCH_DEVICE"
#: Where the agent of this host listens; the agent sets it too.
SOCKET_VARIABLE: Final = "DGPUNET_AGENT_SOCKET"
#: The fields of an error that tell of its cause, where it has them (`stagehost.evidence`, `stagehost.oom`).
EVIDENCE: Final = (
    "kind", "why", "how", "pid", "seconds", "exit_signal", "exit_status", "cgroup_oom_kills", "log_tail", "free_disk_bytes",
    "deadline_s", "charge_mib", "peak_mib", "error_kind", "errno", "xid", "thermal",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What one call has taught: on which class of device, at which speed, between how many stages that was shared, and what it took.

    `load_s`: of the load, where this call had to; `peak_mib`: what was measured, ``None`` where nothing was; `charge_mib`: under which
    charge, ``None`` on a CPU.
    """

    device_class: str
    speed: float
    share: int
    seconds: float
    load_s: float | None
    peak_mib: int | None
    charge_mib: int | None


@dataclass(frozen=True)
class StageRecord:
    """What one stage did with one unit.

    Parameters
    ----------
    items, counts, seconds
        What it gave, what it counted, and its own seconds.
    attempts
        How often it was started.
    device, host
        Where; the device ``None`` for a light stage.
    seen
        What it taught; ``None`` for a light stage, and for a call that was adopted: whoever began it may have told of it.
    log
        What it printed, as `CallResult.log`.
    adopted
        The result of a call that another task had begun.
    failures
        Of the attempts that failed before, one mapping each, as `failure_of`.
    """

    items: int
    counts: Mapping[str, Any]
    attempts: int
    device: str | None
    seconds: float
    seen: Seen | None = None
    log: str = ""
    adopted: bool = False
    host: str | None = None
    failures: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Parcel:
    """A unit on its way: packed items, opaque to the scheduler and the head, and a record per stage that it has passed."""

    frames: Sequence[Buffer]
    items: int
    records: Mapping[str, StageRecord] = field(default_factory=dict)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Hand the frames to Dask out of band, so that its comms send them as they lie in memory."""
        frames = [pickle.PickleBuffer(f) for f in self.frames] if protocol >= 5 else [bytes(f) for f in self.frames]
        return Parcel, (frames, self.items, dict(self.records))

    def __sizeof__(self) -> int:
        return sum(memoryview(f).nbytes for f in self.frames)


@dataclass(frozen=True)
class StageCall:
    """What a task needs besides the unit: the stage, without the device it will run on, and how often to start it again.

    `of_unit` makes the call of one unit, which the agent keeps.
    """

    spec: StageCallSpec
    light: bool
    retries: int

    def of_unit(self, unit: str, epoch: int, *, copy: bool = False) -> StageCall:
        """Return this call for the unit with that id under that lease; `copy`: beside one that is slow."""
        return replace(self, spec=replace(self.spec, unit=unit, epoch=epoch, copy=copy))


def run_stage(call: StageCall, parcel: Parcel) -> Parcel:
    """Pass one unit through one stage. Runs in a worker's thread.

    A stage host that crashes or hangs is replaced and the unit tried again, here, so that the unit keeps its device and its charge. One
    that ran out of memory is not: it wants another charge, or another card.

    Raises
    ------
    JobFailed
        Its subclasses, for the reason that the last attempt had. ``fields["device"]`` and ``fields["host"]`` tell where that was, and
        ``fields["failures"]`` of all attempts.
    """
    host, device = current_host(), None if call.light else device_facts(current_device())
    failures: list[Mapping[str, Any]] = []
    hit("task.began", stage=call.spec.stage, unit=call.spec.unit)
    try:
        if device is None:
            result, seen = call_light(call.spec, parcel.frames, _workloads_with(call.spec.digest)), None
        else:
            result, seen = _on_card_or_cpu(call, parcel, device, failures)
    except DgpunetError as error:
        told = failure_of(error, host, device)
        error.fields |= {"host": told["host"], "device": told["device"], "failures": [*failures, told]}
        raise
    record = StageRecord(
        result.items,
        result.counts,
        len(failures) + 1,
        None if device is None else result.device or device.name,
        result.seconds,
        seen,
        result.log,
        result.adopted,
        host,
        tuple(failures),
    )
    return Parcel(result.frames, result.items, {**parcel.records, call.spec.stage: record})


def _on_card_or_cpu(
    call: StageCall, parcel: Parcel, device: Device, failures: list[Mapping[str, Any]]
) -> tuple[CallResult, Seen | None]:
    """Return what the stage host of `device` gave, and what that taught."""
    share, spec = sharing(), _on_device(call.spec, device, current_vram_mib())
    hit("task.before_call", stage=spec.stage, unit=spec.unit)
    try:
        result = _call_with_retries(spec, call.retries, parcel.frames, failures)
    except (StageOutOfMemory, ForeignMemory) as error:
        raise _of_card(error, spec, device) from error
    hit("task.after_call", stage=spec.stage, unit=spec.unit)
    if result.adopted:  # under another charge perhaps, and on another device
        return result, None
    return result, Seen(
        device_class(device), device.speed, share, result.seconds, result.load_s, result.peak_mib, spec.vram_mib
    )


def failure_of(error: DgpunetError, host: str | None, device: Device | None) -> dict[str, Any]:
    """Return what an attempt that failed leaves behind: the error's code and message, where it was, and its evidence.

    Parameters
    ----------
    host, device
        Where the task ran; the error may know its device better.
    """
    known: dict[str, Any] = {name: error.fields[name] for name in EVIDENCE if name in error.fields}
    where = {"host": host, "device": error.fields.get("device", None if device is None else device.name)}
    return {"code": error.code, "message": error.message, **known, **where}


def _workloads_with(digest: str) -> Path:
    """Return the folder of workloads, once that with `digest` is in it: the agent brings what this host has not run before."""
    workloads = home_from().workloads
    if not (workloads / digest).is_dir():
        AgentClient(os.environ[SOCKET_VARIABLE]).ensure("workload", digest)
    return workloads


def _call_with_retries(
    spec: StageCallSpec, retries: int, frames: Sequence[Buffer], failures: list[Mapping[str, Any]]
) -> CallResult:
    """Call the stage, up to `retries` times anew where its process ended; each attempt that failed and is tried again goes to `failures`."""
    agent = AgentClient(os.environ[SOCKET_VARIABLE])
    for _ in range(retries):
        try:
            return agent.call(spec, frames)
        except (StageHostLost, StageHung) as error:
            failures.append(failure_of(error, current_host(), device_facts(spec.device)))
    try:
        return agent.call(spec, frames)
    except (StageHostLost, StageHung) as error:
        raise type(error)(**{**error.fields, "attempts": retries + 1}) from error


def _of_card(error: StageOutOfMemory | ForeignMemory, spec: StageCallSpec, device: Device) -> StageOutOfMemory | ForeignMemory:
    """Return `error` with what its card has: how much in all, and whether the whole of what is usable was charged."""
    # of a whole card a little less may have been charged, where foreign use already fills its reserve
    whole = device.usable_mib is not None and (spec.vram_mib or 0) >= device.usable_mib - device.reserve_mib
    return type(error)(**{**error.fields, "card_mib": device.vram_mib, "whole": whole})


def _on_device(spec: StageCallSpec, device: Device, charged_mib: int | None) -> StageCallSpec:
    """Return `spec` bound to `device` with what was charged there; where that is not known, what was stated, else the whole card.

    A simulated card is computed on the CPU.

    On a CPU a stage keeps to the cores that its demand was admitted with; several units at once run in a process each.
    """
    if device.kind == "cpu":
        return replace(spec, device=device.name, torch_device="cpu", vram_mib=None, resident_mib=0)
    threads = int(os.environ.get(THREADS_VARIABLE) or usable_cpus())
    vram_mib = charged_mib or spec.vram_mib or device.usable_mib
    torch_device = os.environ.get(TORCH_DEVICE_VARIABLE) or ("cuda:0" if device.uuid else "cpu")
    return replace(spec, device=device.name, torch_device=torch_device, vram_mib=vram_mib, threads=threads)
