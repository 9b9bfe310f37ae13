"""The process that holds one stage: ``python -m dgpunet_dask.stagehost.child [--low-priority] --socket FD``. Standard library only.

The agent starts it in a session of its own, with stdout and stderr on its log file, and speaks with it over an inherited socket (`wire`):

=========  ============================================  =================================================================
from agent  fields, frames                               answers
=========  ============================================  =================================================================
load       spec, workloads                               ``loaded`` or ``error``
call       spec; the items                               ``progress``…, then ``result`` (items, counts, seconds) or ``error``
gather     spec, files                                   the same
stream     spec, unit_items, unit_bytes, credits         ``result`` per unit while credits last, then ``end`` or ``error``
credit     n                                             (allows n more results of the running stream)
cancel                                                   ``end`` of the running stream
inspect    digest, workloads, stages, params             ``facts`` or ``error``
end                                                      unloads the stage and exits with status 0
=========  ============================================  =================================================================

It ends with its process group as soon as the agent is gone: then the write end of the inherited pipe in ``$DGPUNET_LIFELINE_FD`` closes,
even when the agent was killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from dgpunet_dask.config.descriptors import restore_limit
from dgpunet_dask.errors import DgpunetError, StageFailed
from dgpunet_dask.failpoints import hit
from dgpunet_dask.model.stage import Stage, is_light
from dgpunet_dask.stagehost import loader, memory
from dgpunet_dask.stagehost.calls import run_call, run_gather, source_units
from dgpunet_dask.stagehost.frames import pack, unpack
from dgpunet_dask.stagehost.lowering import lower_priority
from dgpunet_dask.stagehost.reports import error_to_json, failure_of
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet, Wire

LIFELINE_VARIABLE: Final = "DGPUNET_LIFELINE_FD"
LOW_PRIORITY: Final = "--low-priority"
#: Progress is told at most this often: a source may yield a hundred thousand items a second.
PROGRESS_EVERY_S: Final = 0.1
#: What torch keeps for the next call goes back to the card when none has come for this long: nothing is charged for it any more. In a
#: steady flow of calls it stays.
TRIM_AFTER_S: Final = 0.5


class StageHost:
    """Serves one connection: one stage, one call at a time."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._stage: Stage | None = None
        self._told = 0.0
        self._credits = 0
        self._untrimmed: StageCallSpec | None = None

    def serve(self) -> None:
        """Answer until ``end``, or until the agent closes the connection."""
        answers: dict[str, Callable[[Packet], Packet]] = {
            "load": self._load,
            "call": self._call,
            "gather": self._gather,
            "stream": self._stream,
            "inspect": self._inspect,
        }
        while (packet := self._next()) is not None and packet.kind != "end":
            answer = answers.get(packet.kind)
            if answer is not None:  # a credit or a cancel may come late, when its stream has ended
                self._wire.send_packet(self._guarded(answer, packet))
                if packet.kind in ("call", "gather"):
                    hit("stage.replied", stage=packet.fields["spec"]["stage"])
        self._unload()

    def _next(self) -> Packet | None:
        """Return the next request."""
        if self._untrimmed is not None and not self._wire.readable(TRIM_AFTER_S):
            memory.trim(self._untrimmed)
            self._untrimmed = None
        return self._wire.receive()

    def _guarded(self, answer: Callable[[Packet], Packet], packet: Packet) -> Packet:
        """Return what `answer` gives, or the error that user code raised, whatever it is."""
        try:
            return answer(packet)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            return Packet.of("error", {"error": error_to_json(_failure(error, packet))})

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_EVERY_S:
            self._told = now
            self._wire.send("progress")

    def _load(self, packet: Packet) -> Packet:
        started = time.monotonic()
        spec = StageCallSpec.from_json(packet.fields["spec"])
        loader.install(packet.fields["workloads"])
        self._leave(spec)
        stage = loader.load_stage(spec.digest, spec.run)()
        stage.context = spec.context()
        memory.cap_torch_once_imported(spec)
        stage.load(**spec.load)
        memory.cap_torch(spec)
        memory.trim(spec)
        self._stage = stage
        hit("stage.loaded", stage=spec.stage)
        return Packet.of("loaded", {"seconds": time.monotonic() - started, "held_mib": memory.held_mib(spec)})

    def _leave(self, spec: StageCallSpec) -> None:
        """Leave the job before, where the process was kept for that of `spec`, and go to its folder."""
        try:
            self._unload()
        except Exception:  # no fault of this job
            traceback.print_exc()
        if spec.folder is not None and os.environ.get("TMPDIR") != spec.folder:
            os.chdir(spec.folder)
            os.environ["TMPDIR"] = spec.folder
            tempfile.tempdir = None  # it is looked for once

    def _ready(self, packet: Packet) -> tuple[Stage, StageCallSpec]:
        """Return the stage and the spec of this call; what an earlier, failed call counted is forgotten."""
        spec = StageCallSpec.from_json(packet.fields["spec"])
        if self._stage is None:
            raise StageFailed(stage=spec.stage, kind="RuntimeError", why="it was called before it was loaded")
        self._stage.context = spec.context()
        self._stage.take_counts()
        hit("stage.before", stage=spec.stage)
        return self._stage, spec

    def _call(self, packet: Packet) -> Packet:
        stage, spec = self._ready(packet)
        memory.cap_torch(spec)
        self._untrimmed = spec if spec.on_card else None
        items = unpack(packet.frames())
        started = time.monotonic()
        result = _result(stage, run_call(stage, spec, items, self._progress), started)
        result.fields["peak_mib"] = memory.peak_mib(spec)
        hit("stage.after", stage=spec.stage)
        return result

    def _gather(self, packet: Packet) -> Packet:
        stage, spec = self._ready(packet)
        started = time.monotonic()
        result = _result(stage, run_gather(stage, packet.fields["files"], self._progress), started)
        hit("stage.after", stage=spec.stage)
        return result

    def _stream(self, packet: Packet) -> Packet:
        stage, spec = self._ready(packet)
        self._credits = int(packet.fields["credits"])
        started = time.monotonic()
        units = source_units(stage, packet.fields["unit_items"], packet.fields["unit_bytes"], self._progress)
        with contextlib.closing(units):
            for unit in units:
                result = _result(stage, unit, started)
                hit("stage.after", stage=spec.stage)
                if not self._take_credit():
                    break
                self._wire.send_packet(result)
                hit("stage.replied", stage=spec.stage)
                started = time.monotonic()
        return Packet.of("end", {"counts": stage.take_counts(), "seconds": time.monotonic() - started})

    def _take_credit(self) -> bool:
        """Wait until the stream may give a result: its reader sets the pace. False if it was cancelled."""
        while self._credits <= 0:
            packet = self._wire.receive()
            if packet is None or packet.kind != "credit":
                return False
            self._credits += int(packet.fields["n"])
        self._credits -= 1
        return True

    def _inspect(self, packet: Packet) -> Packet:
        loader.install(packet.fields["workloads"])
        digest, params = packet.fields["digest"], packet.fields["params"]
        return Packet.of("facts", {name: facts_of(digest, run, env, params) for name, (run, env) in packet.fields["stages"].items()})

    def _unload(self) -> None:
        if self._stage is not None:
            stage, self._stage = self._stage, None
            stage.unload()


def _result(stage: Stage, results: list[Any], started: float) -> Packet:
    fields = {"items": len(results), "counts": stage.take_counts(), "seconds": time.monotonic() - started}
    return Packet.of("result", fields, pack(results))


def _failure(error: BaseException, packet: Packet) -> DgpunetError:
    """Return the product's error for what user code raised; out of memory is told apart where the stage runs on a card."""
    raw = packet.fields.get("spec")
    spec = StageCallSpec.from_json(raw) if raw is not None else None
    if spec is None or not spec.on_card:
        return failure_of(error, "?" if spec is None else spec.stage)
    return failure_of(error, spec.stage, spec, memory.measured(spec))


def facts_of(digest: str, run: str, env: str | None, params: dict[str, Any]) -> dict[str, Any]:
    """Return `model.pipeline.StageFacts` of one stage as JSON values; `demand` is a mapping that `Demand.parse` reads."""
    stage = loader.load_stage(digest, run)
    wanted = _named(stage.load)[1:]  # without self
    asked = {p.name: params[p.name] for p in _named(stage.demand_for) if p.name in params}
    demand = stage.demand_for(**asked)
    return {
        "demand": None if demand is None else demand.to_mapping(),
        "light": is_light(stage, env),
        "load_params": [p.name for p in wanted],
        "load_required": [p.name for p in wanted if p.default is p.empty],
    }


def _named(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of `function` that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def guard_lifeline(fd: int, connection: socket.socket) -> None:
    """Leave a guard behind that ends this process and its group once the other end of the pipe `fd` is closed, whoever closed it.

    The guard is a process, forked while this one is still small: a thread would wait for the interpreter's lock, which user code may
    keep, and the kernel's own signal at a parent's end would reach this process alone and not what user code started. It ends with the
    group.
    """
    host = os.getpid()
    if os.fork():
        os.close(fd)
        return
    connection.close()  # so that the agent sees this process's end, and not only the guard's
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(fd, 1):
        pass
    if os.getpgrp() == host:
        os.killpg(host, signal.SIGKILL)
    os.kill(host, signal.SIGKILL)
    os._exit(0)


def _protocol(argv: list[str]) -> socket.socket:
    sock = socket.socket(fileno=int(argv[argv.index("--socket") + 1]))
    sock.set_inheritable(False)  # a process that user code starts must not hold the connection open
    return sock


def main(argv: list[str]) -> int:
    """Serve the inherited socket; return the exit status."""
    faulthandler.enable()
    connection = _protocol(argv)
    restore_limit()
    if LOW_PRIORITY in argv:
        lower_priority()
    lifeline = os.environ.pop(LIFELINE_VARIABLE, None)
    if lifeline is not None:
        guard_lifeline(int(lifeline), connection)
    try:
        StageHost(Wire(connection)).serve()
    except (ConnectionError, DgpunetError):
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
