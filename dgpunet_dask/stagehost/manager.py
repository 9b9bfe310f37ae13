"""The agent's stage hosts: serves worker threads over a Unix socket; starts, shares, watches and ends the processes that hold stages.

Used by the agent's event loop::

    hosts = StageHosts(home, clock=SystemClock(), cards={"4090l": "GPU-1a2b…"})   # UUIDs of the real cards
    await hosts.start()          # listens on home.agent_socket
    hosts.residents()            # {"4090l": [{"stage": "embed", "id": "9f…", "mib": 600, "busy": False}]}
    await hosts.stop()           # unloads every stage, ends every process, removes the socket

One connection carries one request (`AgentClient` in `client` makes them):

=========  ==========================================  =======================================================================
request    fields, frames                              answers
=========  ==========================================  =======================================================================
call       spec; the items                             ``result`` or ``error``
gather     spec, files                                 ``result`` or ``error``
stream     spec, unit_items, unit_bytes, credits       ``result``…, then ``end`` or ``error``; takes ``credit`` meanwhile
inspect    digest, stages, params                      ``facts`` or ``error``
evict      device, stage (a name or an id)             ``evicted`` (n, busy) once the processes are gone
end_job    job_id                                      ``ended`` (n) once the job's source and gather processes are killed
ensure     kind, digest                                ``ensured`` (path) once that folder is here, or ``error``
subscribe  devices                                     ``residents`` (device, residents) now and after each change, until closed
=========  ==========================================  =======================================================================

Calls of equal `StageCallSpec.host_key` share processes. On a CPU there are as many processes of one stage as calls at once, and the idle
ones beyond a cap end, the longest unused first. On a card one stage has one process, and calls wait for it; loading another
version of a stage under the same name first ends the old one, so that a stage's name tells what is charged for it.

A caller that goes away in the middle of a call changes nothing: the call runs to its end, and until then its process is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, JobFailed, StageOutOfMemory
from dgpunet_dask.stagehost import launching
from dgpunet_dask.stagehost.asyncwire import AsyncWire
from dgpunet_dask.stagehost.environments import ensure_environment
from dgpunet_dask.stagehost.fetching import Fetch, find_folder, local_only, with_models
from dgpunet_dask.stagehost.listening import Listener
from dgpunet_dask.stagehost.process import Grace, Launch, StageProcess
from dgpunet_dask.stagehost.reports import error_from_json, error_to_json, full_disk
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet

logger = logging.getLogger(__name__)

#: Log files of ended stage hosts that are kept.
LOGS_KEPT: Final = 100
#: How long reading a workload's stages may take: importing torch from a cold disk takes most of a minute.
INSPECT_S: Final = 300.0

_OVERRUN: Final = StageOutOfMemory.__name__
Answer = Callable[[AsyncWire, Packet], Coroutine[Any, Any, Packet | None]]


@dataclass(frozen=True)
class Limits:
    """How many stage hosts a CPU keeps loaded, and how long ending one, or a stream that nobody reads, may take.

    A job has several stages, each with as many processes as the cores admit: fewer kept than that, and every unit would load anew.
    """

    cpu_hosts: int = 4 + 2 * (os.cpu_count() or 2)
    grace: Grace = field(default_factory=Grace)
    cancel_s: float = 10.0


@dataclass(eq=False)
class _Host:
    """One stage host in the books: from before its process starts until the process is gone."""

    spec: StageCallSpec
    process: StageProcess | None = None
    busy: bool = True
    failed: bool = False
    ending: bool = False
    used: float = 0.0
    load_s: float | None = None
    load_told: bool = False
    held_mib: int = 0

    @property
    def idle(self) -> bool:
        """Whether a call may take it."""
        return not (self.busy or self.failed or self.ending) and self.process is not None and self.process.alive

    def take_load_s(self) -> float | None:
        """Return the seconds of the load, to the call that it was made for; ``None`` to the others."""
        told, self.load_told = self.load_told, True
        return None if told else self.load_s


@dataclass
class StageHosts:
    """All stage hosts of one agent. Making the value touches nothing; `start` serves.

    Parameters
    ----------
    home
        Sockets and logs go to ``H/run``, environments to ``H/envs``, workloads come from ``H/workloads``.
    clock
        Tells which idle process was used longest ago.
    cards
        The UUID of each real card by its device's name. A stage on any other device sees no card.
    fetch
        Brings workload folders and models that are not on this host; ``None``: this host knows no other.
    """

    home: Home
    clock: Clock = field(default_factory=SystemClock)
    cards: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    fetch: Fetch | None = None
    _hosts: list[_Host] = field(default_factory=list, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _watches: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _listener: Listener | None = field(default=None, init=False)
    _lifeline: tuple[int, int] | None = field(default=None, init=False)
    _started: int = field(default=0, init=False)

    async def start(self) -> None:
        """Listen on ``home.agent_socket``; a socket that a killed agent left is taken over.

        Raises
        ------
        OSError
            If the socket cannot be made.
        """
        self._changed = asyncio.Event()
        self._stopping = False
        self.log_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        launching.link_package(self._import_dir)
        self._lifeline = os.pipe()
        self._listener = Listener(self.home.agent_socket)
        self._listener.open(lambda wire: self._spawn(self._serve(wire)))

    async def stop(self) -> None:
        """Stop serving, end every process (the idle ones in good order, the busy ones at once) and remove the socket."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        hosts, tasks = list(self._hosts), list(self._tasks)
        busy = [h for h in hosts if h.busy]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._finish(h, at_once=h in busy) for h in hosts))
        await asyncio.gather(*self._watches)
        if self._lifeline is not None:
            for fd in self._lifeline:
                os.close(fd)
            self._lifeline = None

    @property
    def log_folder(self) -> Path:
        """Where the stage hosts' logs are."""
        return self.home.run / "stagehosts"

    @property
    def _import_dir(self) -> Path:
        return self.home.run / "import"

    def residents(self) -> dict[str, list[dict[str, Any]]]:
        """Return what is loaded on each card.

        Told are the stage's name, the parameter `model` of its load, the process's id (`host_key`), its MiB, whether a call uses it, and
        how many seconds its load took (``None`` until it has ended).

        The MiB are those stated, or those that torch held after the load if that is more. A process counts from before it starts until it is seen gone.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for host in sorted((h for h in self._hosts if h.spec.on_card), key=lambda h: (h.spec.device, h.spec.stage)):
            mib = max(host.spec.resident_mib, host.held_mib)
            model = host.spec.load.get("model")
            entry: dict[str, Any] = {"stage": host.spec.stage, "model": None if model is None else str(model)}
            entry |= {"id": host.spec.host_key, "mib": mib, "busy": not host.idle, "load_s": host.load_s}
            found.setdefault(host.spec.device, []).append(entry)
        return found

    def pids(self) -> dict[int, str]:
        """Return the device of each running stage host by process id, so that its use of a card is known as ours."""
        return {h.process.pid: h.spec.device for h in self._hosts if h.process is not None and h.process.alive}

    def rows(self) -> list[dict[str, Any]]:
        """Return device, stage, process id and `busy` of each running stage host, those on CPUs too."""
        running = [h for h in self._hosts if h.process is not None and h.process.alive]
        return [{"device": h.spec.device, "stage": h.spec.stage, "pid": _running(h).pid, "busy": not h.idle} for h in running]

    async def end_all(self) -> int:
        """End every stage host, the idle ones in good order and the busy ones at once; return how many there were. Serving goes on."""
        hosts = list(self._hosts)
        await asyncio.gather(*(self._end(h, at_once=h.busy) for h in hosts))
        return len(hosts)

    # Serving

    async def drop_calls(self, device: str, after_s: float) -> None:
        """End the processes on `device` whose present call takes `after_s` more seconds: the worker that made it has ended.

        A shorter call may finish, so that its model stays loaded. Processes of one job are left alone: the head itself calls them.
        """
        orphaned = [(h, h.used) for h in self._hosts if h.spec.device == device and h.busy and not h.spec.of_one_job]
        if orphaned:
            await asyncio.sleep(after_s)
            stuck = [h for h, used in orphaned if h.busy and h.used == used]  # `used` changes with the end of each call
            await asyncio.gather(*(self._end(h, at_once=True) for h in stuck))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        _keep(self._tasks, work)

    async def _serve(self, wire: AsyncWire) -> None:
        """Answer the one request of a connection."""
        answers: dict[str, Answer] = {
            "call": self._call,
            "gather": self._call,
            "stream": self._stream,
            "inspect": self._inspect,
            "evict": self._evict,
            "end_job": self._end_job,
            "ensure": self._ensure,
            "subscribe": self._subscribe,
        }
        try:
            packet = await wire.receive()
            if packet is not None:
                answer = await self._answered(answers.get(packet.kind), wire, packet)
                if answer is not None:
                    await wire.send(answer)
        except OSError as error:  # the caller went away: there is nobody to tell
            logger.debug("a caller went away: %s", error)
        finally:
            wire.close()

    async def _answered(self, answer: Answer | None, wire: AsyncWire, packet: Packet) -> Packet | None:
        try:
            if answer is None:
                raise JobFailed(why=f"the agent knows no request {packet.kind!r}; run one release on all machines")
            return await answer(wire, packet)
        except DgpunetError as error:
            return Packet.of("error", {"error": error_to_json(error)})
        except (OSError, KeyError, TypeError, ValueError) as error:  # ours, or a caller of another release
            logger.exception("a request failed")
            if (full := full_disk(error)) is not None:
                return Packet.of("error", {"error": error_to_json(full)})
            return Packet.of("error", {"error": error_to_json(JobFailed(why=f"the agent could not serve it: {error}"))})
        finally:
            packet.close()

    async def _call(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        async with self._lent(StageCallSpec.from_json(packet.fields["spec"]), wire) as host:
            if host is None:
                return None
            answer = await _running(host).exchange(packet, _nowhere)
            if answer.kind == "result":
                answer.fields["load_s"] = host.take_load_s()
            elif answer.fields["error"]["class"] == _OVERRUN:
                host.failed = True  # its memory is in pieces, and whoever tries again has another charge
            return answer

    async def _stream(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        async with self._lent(StageCallSpec.from_json(packet.fields["spec"]), wire) as host:
            if host is None:
                return None
            process = _running(host)
            reading = asyncio.create_task(self._reader(wire, process))
            try:
                return await process.exchange(packet, _to(wire), allowed=int(packet.fields["credits"]))
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _reader(self, wire: AsyncWire, process: StageProcess) -> None:
        """Pass a stream's credits on; its reader's end cancels it."""
        with contextlib.suppress(OSError):
            while (packet := await wire.receive()) is not None:
                await process.credit(int(packet.fields["n"]))
        with contextlib.suppress(OSError):
            await process.cancel(self.limits.cancel_s)

    async def _inspect(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        """Read the facts of stages, those of each environment in an interpreter of their own."""
        digest, stages, params = (packet.fields[name] for name in ("digest", "stages", "params"))
        await self._here("workload", digest)
        facts: dict[str, Any] = {}
        for env in sorted({env for _, env in stages.values()}, key=str):
            asked = {name: pair for name, pair in stages.items() if pair[1] == env}
            spec = StageCallSpec(stage=min(asked), run="", digest=digest, env=env, deadline_s=INSPECT_S)
            process = await self._process(spec, await self._python(spec))
            try:
                fields = {"digest": digest, "workloads": str(self.home.workloads), "stages": asked, "params": params}
                answer = await process.exchange(Packet.of("inspect", fields), _nowhere)
            finally:
                await process.end(self.limits.grace)
                await process.close()
            if answer.kind == "error":
                return answer
            facts |= answer.fields
        return Packet.of("facts", facts)

    async def _evict(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        device, stage = packet.fields["device"], packet.fields["stage"]
        meant = [h for h in self._hosts if h.spec.device == device and stage in (h.spec.stage, h.spec.host_key)]
        leaving = [h for h in meant if h.idle or h.ending]
        await asyncio.gather(*(self._end(h) for h in leaving))
        return Packet.of("evicted", {"n": len(leaving), "busy": len(meant) - len(leaving)})

    async def _end_job(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        """Kill the processes that serve only one job, in the middle of their call: the job was cancelled."""
        meant = [h for h in self._hosts if h.spec.of_one_job and h.spec.job_id == packet.fields["job_id"]]
        await asyncio.gather(*(self._end(h, at_once=True) for h in meant))
        return Packet.of("ended", {"n": len(meant)})

    async def _ensure(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        return Packet.of("ensured", {"path": str(await self._here(packet.fields["kind"], packet.fields["digest"]))})

    async def _here(self, kind: str, digest: str) -> Path:
        """Return a folder of this host by its digest, brought here if it is missing."""
        found = find_folder(self.home, kind, digest)
        return found if found is not None else await (self.fetch or local_only(self.home))(kind, digest)

    async def _subscribe(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        """Tell the residents of the asked devices whenever they changed, until the connection is closed."""
        told: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(packet.fields["devices"])
        closed = asyncio.create_task(wire.receive())
        try:
            while not closed.done():
                changed = asyncio.create_task(self._changed.wait())
                now = self.residents()
                for device in [d for d in told if told[d] != now.get(d, [])]:
                    told[device] = now.get(device, [])
                    await wire.send(Packet.of("residents", {"device": device, "residents": told[device]}))
                await asyncio.wait({changed, closed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            closed.cancel()
            await asyncio.gather(closed, return_exceptions=True)
        return None

    # Processes

    @contextlib.asynccontextmanager
    async def _lent(self, spec: StageCallSpec, wire: AsyncWire) -> AsyncIterator[_Host | None]:
        """Lend a host with its stage loaded for one call; ``None`` if the caller went away meanwhile."""
        await self._here("workload", spec.digest)
        python = await self._python(spec)
        host = await self._taken(spec)
        try:
            if host.process is None:
                await self._load(host, python)
            yield None if wire.closed_by_peer() else host
        finally:
            self._give_back(host)

    async def _python(self, spec: StageCallSpec) -> Path | None:
        if spec.env is None:
            return None
        return await ensure_environment(self.home.workloads / spec.digest / spec.env, self.home.envs, spec.stage)

    async def _taken(self, spec: StageCallSpec) -> _Host:
        """Return a host for `spec`, marked busy: an idle one, or a new one whose process is not started yet."""
        while True:
            for host in self._hosts:
                if host.idle and host.spec.host_key == spec.host_key:
                    host.busy = True
                    self._note()
                    return host
            in_the_way = list(self._in_the_way(spec))
            if not in_the_way:
                host = _Host(spec)
                self._hosts.append(host)
                self._note()
                return host
            changed = self._changed
            leaving = [h for h in in_the_way if h.idle or h.ending]
            await (asyncio.gather(*(self._end(h) for h in leaving)) if leaving else changed.wait())

    def _in_the_way(self, spec: StageCallSpec) -> Iterator[_Host]:
        """Yield what must end, or become idle, before a new process for `spec` may start."""
        if spec.on_card:
            yield from (h for h in self._hosts if h.spec.device == spec.device and h.spec.stage == spec.stage)
            return
        kept = [h for h in self._hosts if not h.spec.on_card and not h.spec.of_one_job]
        spare = len(kept) - self.limits.cpu_hosts + (not spec.of_one_job)
        yield from sorted((h for h in kept if h.idle), key=lambda h: h.used)[: max(0, spare)]

    async def _load(self, host: _Host, python: Path | None) -> None:
        """Start the host's process and load its stage."""
        spec = await with_models(host.spec, self._here)
        process = host.process = await self._process(host.spec, python)
        _keep(self._watches, self._watch(host, process))
        request = Packet.of("load", {"spec": spec.to_json(), "workloads": str(self.home.workloads)})
        try:
            answer = await process.exchange(request, _nowhere)
        except BaseException:
            host.failed = True
            raise
        if answer.kind == "error":
            host.failed = True
            raise error_from_json(answer.fields["error"])
        host.load_s, host.held_mib = float(answer.fields["seconds"]), int(answer.fields.get("held_mib") or 0)

    async def _process(self, spec: StageCallSpec, python: Path | None) -> StageProcess:
        assert self._lifeline is not None, "start() comes first"
        self._started += 1
        prune_logs(self.log_folder, {h.process.log for h in self._hosts if h.process is not None})
        log = self.log_folder / f"{spec.stage}-{spec.host_key[:8]}-{os.getpid()}-{self._started}.log"
        variables = launching.environ(
            spec, python is not None, self._import_dir, self._lifeline[0], self.cards.get(spec.device), os.environ
        )
        folder = Path(spec.folder) if spec.folder is not None else self.log_folder
        return await StageProcess.start(spec, Launch(launching.command(python), variables, folder, log, self._lifeline[0]))

    async def _watch(self, host: _Host, process: StageProcess) -> None:
        """Take the host off the books once its process is gone, however it ended."""
        await process.gone()
        self._forget(host)
        await process.close()

    def _give_back(self, host: _Host) -> None:
        """Mark the host idle; one whose load failed, or that serves no other job, ends."""
        host.busy = False
        host.used = self.clock.monotonic()
        if host.process is None:  # it never started
            self._forget(host)
        elif (host.failed or host.spec.of_one_job) and not self._stopping:
            self._spawn(self._end(host))
        self._note()

    async def _end(self, host: _Host, at_once: bool = False) -> None:
        """End the host's process, unless somebody does already, and wait until it is off the books."""
        if not host.ending or at_once:
            await self._finish(host, at_once)
        while host in self._hosts:
            await self._changed.wait()

    async def _finish(self, host: _Host, at_once: bool) -> None:
        host.ending = True
        self._note()
        if host.process is not None:
            await (host.process.kill() if at_once else host.process.end(self.limits.grace))
        self._forget(host)

    def _forget(self, host: _Host) -> None:
        if host in self._hosts:
            self._hosts.remove(host)
        self._note()

    def _note(self) -> None:
        """Wake whoever waits for a change of the books."""
        self._changed.set()
        self._changed = asyncio.Event()


def _running(host: _Host) -> StageProcess:
    assert host.process is not None, "only loaded hosts are lent"
    return host.process


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, held in `tasks` until it is done: the loop itself keeps only weak references."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _nowhere(packet: Packet) -> None:
    packet.close()


def _to(wire: AsyncWire) -> Callable[[Packet], Coroutine[Any, Any, None]]:
    async def deliver(packet: Packet) -> None:
        with contextlib.suppress(OSError):  # the reader went away; the stream is being cancelled
            await wire.send(packet)

    return deliver


def prune_logs(folder: Path, live: Iterable[Path]) -> None:
    """Remove all but the newest `LOGS_KEPT` logs in `folder` that no running process writes."""
    in_use = set(live)
    ended = sorted((p for p in folder.glob("*.log") if p not in in_use), key=lambda p: (p.stat().st_mtime, p.name))
    for path in ended[: max(0, len(ended) - LOGS_KEPT)]:
        path.unlink(missing_ok=True)
