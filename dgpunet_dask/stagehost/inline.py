"""Light stages (no `load`, no environment) called in the calling process: the CPU worker."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dgpunet_dask.model.stage import Stage
from dgpunet_dask.stagehost import loader
from dgpunet_dask.stagehost.calls import run_call
from dgpunet_dask.stagehost.frames import Buffer, pack, unpack
from dgpunet_dask.stagehost.logs import TAIL_BYTES
from dgpunet_dask.stagehost.printed import printed
from dgpunet_dask.stagehost.reports import failure_of
from dgpunet_dask.stagehost.spec import CallResult, StageCallSpec

#: Stages that one thread keeps.
KEPT: Final = 16


class _Kept(threading.local):
    """The stages of one thread by host key, the last used at the end."""

    def __init__(self) -> None:
        self.stages: OrderedDict[str, Stage] = OrderedDict()


_kept = _Kept()


def call_light(spec: StageCallSpec, frames: Sequence[Buffer], workloads_dir: Path | str) -> CallResult:
    """Run one unit through a light stage, as a stage host would, in the calling thread.

    Each thread has its own instance of the stage. Items and results are copies, so neither side changes the other's. `deadline_s` is not
    kept: a thread cannot be killed.

    Raises
    ------
    StageFailed, DgpunetError
        As `AgentClient.call` does.
    """
    with printed() as log:
        try:
            result = _called(spec, frames, workloads_dir)
        except (Exception, SystemExit) as error:
            told = failure_of(error, spec.stage)
            told.fields["log_tail"] = log.text[-TAIL_BYTES:]
            raise told from (None if told is error else error)
    return replace(result, log=log.text)


def _called(spec: StageCallSpec, frames: Sequence[Buffer], workloads_dir: Path | str) -> CallResult:
    stage = _stage(spec, workloads_dir)
    stage.context = spec.context()
    stage.take_counts()
    items = unpack([bytearray(frame) for frame in frames])
    started = time.monotonic()
    results = run_call(stage, spec, items, lambda: None)
    seconds = time.monotonic() - started
    return CallResult([bytes(frame) for frame in pack(results)], len(results), stage.take_counts(), seconds)


def _stage(spec: StageCallSpec, workloads_dir: Path | str) -> Stage:
    stages = _kept.stages
    if spec.host_key not in stages:
        loader.install(workloads_dir)
        stages[spec.host_key] = loader.load_stage(spec.digest, spec.run)()
        if len(stages) > KEPT:
            stages.popitem(last=False)
    stages.move_to_end(spec.host_key)
    return stages[spec.host_key]
