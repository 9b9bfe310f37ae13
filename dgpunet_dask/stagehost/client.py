"""Calling stages from worker threads and from the head: blocking, safe to share between threads (each request has its own connection).

>>> agent = AgentClient(home.agent_socket)
>>> result = agent.call(spec, pack(items))
>>> for result in agent.stream(spec, unit_items=64, unit_bytes=1 << 20): use(result)
>>> result = agent.gather(spec, files)
>>> facts = agent.inspect(digest, {"embed": ("stages:Embed", "embed.lock")})
>>> agent.evict("4090l", "embed")
>>> agent.held()
[Held(unit='6f…', stage='embed', device='4090l', state='running')]
>>> folder = agent.ensure("workload", digest)
>>> with agent.subscribe(["4090l"], show): work()
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from dgpunet_dask.errors import StageHostLost
from dgpunet_dask.stagehost.frames import Buffer
from dgpunet_dask.stagehost.listening import peer_uid
from dgpunet_dask.stagehost.reports import error_from_json
from dgpunet_dask.stagehost.spec import CallResult, StageCallSpec
from dgpunet_dask.stagehost.wire import Packet, Wire

#: Units that a source may be ahead of its reader: one is read while the next is made.
READ_AHEAD: Final = 2


class Held(NamedTuple):
    """A call of a unit on a device: ``waiting`` for its turn, ``running``, or ``done`` with its result kept."""

    unit: str
    stage: str
    device: str
    state: str


class AgentClient:
    """Requests to the agent of this host. Making the value touches nothing."""

    def __init__(self, socket_path: Path | str) -> None:
        self._path = str(socket_path)
        self._lock = threading.Lock()
        self._open: set[Wire] = set()
        self._closed = False

    def close(self) -> None:
        """End the requests that run, in whatever threads, and refuse others: each raises `StageHostLost`. Subscriptions stay."""
        with self._lock:
            self._closed = True
            for wire in self._open:
                wire.shutdown()

    def call(self, spec: StageCallSpec, frames: Sequence[Buffer]) -> CallResult:
        """Pass one unit's items (packed) through a stage.

        A call that tells its `spec.unit` joins one of that unit that runs on this host, or gets what that gave (``adopted``).

        Raises
        ------
        StageFailed
            The stage's code raised; ``fields["traceback"]`` says where.
        StageOutOfMemory, ForeignMemory
            It ran out of its card's memory: of its own charge, or because others have filled the card.
        StageHostLost, StageHung
            Its process died, or was killed after `spec.deadline_s` without progress; another call gets a fresh one.
        EnvironmentFailed
            Its environment could not be built.
        DgpunetError
            Whatever of our own errors the stage raised, as its own class.
        """
        with self._connected(spec.stage, spec.device) as wire:
            wire.send("call", {"spec": spec.to_json()}, frames)
            return _result(_answer(wire))

    def stream(self, spec: StageCallSpec, unit_items: int, unit_bytes: int, read_ahead: int = READ_AHEAD) -> Iterator[CallResult]:
        """Yield what a source stage yields, in units of at most `unit_items` items and `unit_bytes` packed bytes.

        The source is at most `read_ahead` units (and the one it makes) ahead. Closing the iterator ends it. The last result may have no
        items: it carries what was counted, or printed, after the last one. Raises as `call` does, after the units that were made before.
        """
        with self._connected(spec.stage, spec.device) as wire:
            request = {"spec": spec.to_json(), "unit_items": unit_items, "unit_bytes": unit_bytes, "credits": read_ahead}
            wire.send("stream", request)
            while (packet := _answer(wire)).kind == "result":
                yield _result(packet)
                with suppress(BrokenPipeError):  # it has ended meanwhile, and its last message waits to be read
                    wire.send("credit", {"n": 1})
            if packet.fields["counts"] or packet.fields["log"]:
                yield CallResult([], 0, packet.fields["counts"], packet.fields["seconds"], log=packet.fields["log"])

    def gather(self, spec: StageCallSpec, files: Iterable[Path | str]) -> CallResult:
        """Call a gather stage once with an iterator over the items of the frame `files`, in their order. Raises as `call` does."""
        with self._connected(spec.stage, spec.device) as wire:
            wire.send("gather", {"spec": spec.to_json(), "files": [str(Path(file).absolute()) for file in files]})
            return _result(_answer(wire))

    def inspect(
        self, digest: str, stages: Mapping[str, tuple[str, str | None]], params: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return ``demand`` (a mapping or ``None``), ``light`` and ``load_params`` of each stage, read in its own interpreter.

        Parameters
        ----------
        stages
            ``run`` and ``env`` by the stage's name.
        params
            The job's parameters, which `Stage.demand_for` may ask for.

        Raises
        ------
        BadWorkload
            If a stage cannot be imported.
        EnvironmentFailed
            If an environment could not be built.
        """
        with self._connected(", ".join(sorted(stages)), "this host") as wire:
            asked = {name: list(pair) for name, pair in stages.items()}
            wire.send("inspect", {"digest": digest, "stages": asked, "params": dict(params or {})})
            return _answer(wire).fields

    def evict(self, device: str, stage: str) -> bool:
        """End the idle processes of `stage` (its name, or a process's id) on `device`; return whether none is left, once they are gone."""
        with self._connected(stage, device) as wire:
            wire.send("evict", {"device": device, "stage": stage})
            return not _answer(wire).fields["busy"]

    def end_job(self, job_id: str) -> int:
        """Kill the processes that serve a cancelled job alone, in the middle of a call too; return how many there were.

        These are its source and gather processes, whose callers get `StageHostLost`, and those that compute a unit of it for nobody, since
        the worker that called has ended. Processes that other jobs may share, and calls that somebody waits for, are left alone.
        """
        with self._connected("source and gather", "this host") as wire:
            wire.send("end_job", {"job_id": job_id})
            return int(_answer(wire).fields["n"])

    def held(self) -> list[Held]:
        """Return the calls of units that run on this host, or whose result it keeps, in the order they began."""
        with self._connected("every stage", "this host") as wire:
            wire.send("held")
            return [Held(*call) for call in _answer(wire).fields["calls"]]

    def forget(self, units: Iterable[str]) -> int:
        """Let the results of `units` go, which are committed; return how many were kept. Those not told go by themselves, in time."""
        with self._connected("every stage", "this host") as wire:
            wire.send("forget", {"units": list(units)})
            return int(_answer(wire).fields["n"])

    def ensure(self, kind: str, digest: str) -> Path:
        """Return the folder of that kind (``workload``, ``model``) and digest on this host, brought from another where it is missing.

        Raises
        ------
        FolderMissing
            If no host of the cluster gives it.
        """
        with self._connected(f"{kind} {digest[:12]}", "this host") as wire:
            wire.send("ensure", {"kind": kind, "digest": digest})
            return Path(_answer(wire).fields["path"])

    def subscribe(self, devices: Iterable[str], callback: Callable[[str, list[dict[str, Any]]], None]) -> Subscription:
        """Call `callback(device, residents)` now for each device, and after each change, in a thread of its own, until closed."""
        wire = self._connect(", ".join(devices := sorted(devices)), "this host")
        wire.send("subscribe", {"devices": devices})
        return Subscription(wire, callback)

    @contextmanager
    def _connected(self, stage: str, device: str) -> Iterator[Wire]:
        wire = self._connect(stage, device)
        try:
            self._opened(wire)
            yield wire
        except ConnectionError as error:
            raise self._no_agent(stage, device, "the call was ended" if self._closed else "its agent ended") from error
        finally:
            with self._lock:
                self._open.discard(wire)
            wire.close()

    def _opened(self, wire: Wire) -> None:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("this client is closed")
            self._open.add(wire)

    def _connect(self, stage: str, device: str) -> Wire:
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX)  # fails where this process may open no more files
            sock.connect(self._path)
            if peer_uid(sock) not in (os.getuid(), None):
                raise PermissionError("it belongs to another user")
        except OSError as error:
            if sock is not None:
                sock.close()
            lost = self._no_agent(stage, device, f"its agent does not answer: {error}")
            lost.fields["away"] = True  # nothing was asked of it
            raise lost from error
        return Wire(sock)

    @staticmethod
    def _no_agent(stage: str, device: str, how: str) -> StageHostLost:
        return StageHostLost(stage=stage, device=device, how=how, attempts=1, log="the agent's log")


def agent_is_away(error: BaseException) -> bool:
    """Tell whether `error` is that there was no agent to ask: nothing has been begun, and no stage is to blame."""
    return isinstance(error, StageHostLost) and error.fields.get("away") is True


class Subscription:
    """A running subscription; `close` ends it. A context manager."""

    def __init__(self, wire: Wire, callback: Callable[[str, list[dict[str, Any]]], None]) -> None:
        self._wire = wire
        self._callback = callback
        self._thread = threading.Thread(target=self._run, name="residents", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (packet := self._wire.receive()) is not None:
                self._callback(packet.fields["device"], packet.fields["residents"])
        except OSError:
            return  # closed by us, or the agent ended, and with it every worker of it

    def close(self) -> None:
        """End it; no callback runs after this returns."""
        self._wire.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()


def _answer(wire: Wire) -> Packet:
    packet = wire.receive()
    if packet is None:
        raise ConnectionResetError("the agent closed the connection")
    if packet.kind == "error":
        raise error_from_json(packet.fields["error"])
    return packet


def _result(packet: Packet) -> CallResult:
    fields = packet.fields
    return CallResult(
        packet.frames(keep=True),
        fields["items"],
        fields["counts"],
        fields["seconds"],
        load_s=fields.get("load_s"),
        peak_mib=fields.get("peak_mib"),
        log=fields.get("log", ""),
        adopted=fields.get("adopted", False),
        device=fields.get("device"),
    )
