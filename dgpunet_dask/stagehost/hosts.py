"""The books of one agent's stage hosts: which processes hold which stages, lent to one call at a time; started, watched and ended.

Calls of equal `StageCallSpec.host_key` share processes. On a CPU there are as many processes of one stage as calls at once, and the idle
ones beyond a cap end, the longest unused first. On a card one stage has one process, and calls wait for it; loading another
version of a stage under the same name first ends the old one, so that a stage's name tells what is charged for it.

A process is in the books, and charged, from before it starts until it is gone and, on a real card, until the driver lists it no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.config.home import Home
from dgpunet_dask.stagehost import launching
from dgpunet_dask.stagehost.environments import ensure_environment
from dgpunet_dask.stagehost.fetching import Fetch, find_folder, local_only, with_models
from dgpunet_dask.stagehost.kept import KeptCall
from dgpunet_dask.stagehost.logs import prune_logs
from dgpunet_dask.stagehost.process import Grace, Launch, StageProcess
from dgpunet_dask.stagehost.reports import error_from_json
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet

logger = logging.getLogger(__name__)

#: How often the driver is asked whether it still lists a process that is gone, and for how long.
UNLISTED_EVERY_S: Final = 0.1
UNLISTED_WITHIN_S: Final = 30.0

#: Returns the ids of the processes that the driver lists on the card with that UUID; ``None`` where it tells nothing.
Listed = Callable[[str], Coroutine[Any, Any, frozenset[int] | None]]


@dataclass(frozen=True)
class Limits:
    """How many stage hosts a CPU keeps loaded, and how long ending one, or a stream that nobody reads, may take.

    A job has several stages, each with as many processes as the cores admit: fewer kept than that, and every unit would load anew.
    """

    cpu_hosts: int = 4 + 2 * (os.cpu_count() or 2)
    grace: Grace = field(default_factory=Grace)
    cancel_s: float = 10.0


@dataclass(eq=False)
class Host:
    """One stage host in the books: from before its process starts until the process is gone.

    `call`: of a unit, that it serves now. `stale`: its process was kept for another job, and has to load that one's stage.
    """

    spec: StageCallSpec
    process: StageProcess | None = None
    busy: bool = True
    failed: bool = False
    ending: bool = False
    used: float = 0.0
    load_s: float | None = None
    load_log: str = ""
    load_told: bool = False
    held_mib: int = 0
    call: KeptCall | None = None
    stale: bool = False

    @property
    def idle(self) -> bool:
        """Whether a call may take it."""
        return not (self.busy or self.failed or self.ending) and self.process is not None and self.process.alive

    @property
    def running(self) -> StageProcess:
        """The process of a host that is lent."""
        assert self.process is not None, "only loaded hosts are lent"
        return self.process

    @property
    def mib(self) -> int:
        """What it takes of its card: what was stated for its stage, or what torch held after the load if that is more.

        A call that nobody waits for is charged here, for no unit is charged for it any more.
        """
        orphaned = self.call.spec.vram_mib if self.call is not None and self.call.abandoned else None
        return max(self.spec.resident_mib, self.held_mib, orphaned or 0)

    def tell_load(self, answer: Packet) -> None:
        """Add the seconds of the load, and what it printed, to the answer of the call that it was made for; ``None`` to the others."""
        told, self.load_told = self.load_told, True
        answer.fields["load_s"] = None if told else self.load_s
        if not told:
            answer.fields["log"] = self.load_log + answer.fields.get("log", "")


async def listed_by_driver(uuid: str) -> frozenset[int] | None:
    """Return the ids of the processes that NVML lists on a card, ``None`` where it cannot be asked or hides them."""
    from dgpunet_dask.hardware.nvml import watching  # loads the driver's library: only where there is a card

    def ask() -> frozenset[int] | None:
        with watching() as cards:
            use = cards(uuid)
        return None if use is None or use.process_mib is None else frozenset(pid for pid, _ in use.process_mib)

    return await asyncio.to_thread(ask)


class HostBook:
    """All stage hosts of one agent. Making the value touches nothing; `open` comes first.

    Parameters
    ----------
    home
        Logs go to ``H/run``, environments to ``H/envs``, workloads come from ``H/workloads``.
    clock
        Tells which idle process was used longest ago.
    cards
        The UUID of each real card by its device's name. A stage on any other device sees no card.
    fetch
        Brings workload folders and models that are not on this host.
    listed
        Asks the driver.
    """

    def __init__(
        self, home: Home, clock: Clock, cards: Mapping[str, str], limits: Limits, fetch: Fetch | None, listed: Listed = listed_by_driver
    ) -> None:
        self.home, self.clock, self.cards, self.limits = home, clock, cards, limits
        self.fetch = fetch or local_only(home)
        self.listed = listed
        self.hosts: list[Host] = []
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifeline: tuple[int, int] | None = None
        self._started = 0

    def open(self) -> None:
        """Make what processes are started with. Needs a running loop."""
        self.changed = asyncio.Event()
        self.stopping = False
        self.log_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        launching.link_package(self._import_dir)
        self._lifeline = os.pipe()

    async def close(self, busy: list[Host]) -> None:
        """End every process: those in `busy` at once, the others in good order."""
        await asyncio.gather(*(self.end(h, at_once=h in busy) for h in list(self.hosts)))
        await asyncio.gather(*self._tasks)
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

    def living(self) -> list[Host]:
        """Return the hosts whose process runs."""
        return [h for h in self.hosts if h.process is not None and h.process.alive]

    def on_cards(self) -> list[Host]:
        """Return the hosts on cards, by device and stage."""
        return sorted((h for h in self.hosts if h.spec.on_card), key=lambda h: (h.spec.device, h.spec.stage))

    async def here(self, kind: str, digest: str) -> Path:
        """Return a folder of this host by its digest, brought here if it is missing."""
        found = find_folder(self.home, kind, digest)
        return found if found is not None else await self.fetch(kind, digest)

    # Lending

    @contextlib.asynccontextmanager
    async def lent(self, spec: StageCallSpec, wanted: Callable[[], bool], call: KeptCall | None = None) -> AsyncIterator[Host | None]:
        """Lend a host with its stage loaded for one call; ``None`` if by then nobody wants it any more."""
        await self.here("workload", spec.digest)
        python = await self.python(spec)
        host, whole = await self._taken(spec), False
        try:
            if host.process is None or host.stale:
                await self._load(host, python)
            host.call = call
            yield host if wanted() else None
            whole = True
        finally:
            self._give_back(host, whole=whole)

    @contextlib.asynccontextmanager
    async def inspecting(self, spec: StageCallSpec) -> AsyncIterator[StageProcess]:
        """Give a process that can read facts of a workload's code: one that is kept for its jobs, else a fresh one that ends afterwards."""
        kept = next((h for h in self.hosts if h.idle and h.spec.process_key and (h.spec.digest, h.spec.env) == (spec.digest, spec.env)), None)
        if kept is None:
            process = await self.process(spec, await self.python(spec))
            try:
                yield process
            finally:
                await process.end(self.limits.grace)
                await process.close()
            return
        kept.busy = True
        try:
            yield kept.running
        except BaseException:
            keep(self._tasks, self.end(kept, at_once=True))  # its answer may still come, and must not be taken for another's
            raise
        finally:
            kept.busy = False
            self.note()

    async def python(self, spec: StageCallSpec) -> Path | None:
        """Return the interpreter of a stage with an environment of its own, built if need be."""
        if spec.env is None:
            return None
        return await ensure_environment(self.home.workloads / spec.digest / spec.env, self.home.envs, spec.stage)

    async def _taken(self, spec: StageCallSpec) -> Host:
        """Return a host for `spec`, marked busy: an idle one, or a new one whose process is not started yet."""
        while True:
            for host in self.hosts:
                if host.idle and not host.spec.of_one_job and host.spec.host_key == spec.host_key:
                    host.busy = True
                    self.note()
                    return host
            if (kept := self.kept_process(spec)) is not None:
                kept.spec, kept.stale, kept.busy = spec, True, True
                self.note()
                return kept
            in_the_way = list(self._in_the_way(spec))
            if not in_the_way:
                host = Host(spec)
                self.hosts.append(host)
                self.note()
                return host
            changed = self.changed
            leaving = [h for h in in_the_way if h.idle or h.ending]
            await (asyncio.gather(*(self.end(h) for h in leaving)) if leaving else changed.wait())

    def kept_process(self, spec: StageCallSpec) -> Host | None:
        """Return an idle host whose process may load the stage of another job's `spec`."""
        key = spec.process_key
        return next((h for h in self.hosts if h.idle and key is not None and h.spec.process_key == key), None)

    def forget_kept(self) -> None:
        """End the processes that were kept for another job for as long as they may be."""
        now = self.clock.monotonic()
        for host in [h for h in self.hosts if h.idle and h.spec.of_one_job and h.used + h.spec.keep_s <= now]:
            keep(self._tasks, self.end(host))

    def _in_the_way(self, spec: StageCallSpec) -> Iterator[Host]:
        """Yield what must end, or become idle, before a new process for `spec` may start."""
        if spec.on_card:
            yield from (h for h in self.hosts if h.spec.device == spec.device and h.spec.stage == spec.stage)
            return
        kept = [h for h in self.hosts if not h.spec.on_card and not h.spec.of_one_job]
        spare = len(kept) - self.limits.cpu_hosts + (not spec.of_one_job)
        yield from sorted((h for h in kept if h.idle), key=lambda h: h.used)[: max(0, spare)]

    def _give_back(self, host: Host, *, whole: bool) -> None:
        """Mark the host idle; one whose load failed, or that serves no other job, ends. `whole`: the call has come to its end."""
        host.busy, host.call = False, None
        host.used = self.clock.monotonic()
        if host.process is None:  # it never started
            self._forget(host)
        elif (host.failed or (host.spec.of_one_job and not (whole and self._keeps(host)))) and not self.stopping:
            keep(self._tasks, self.end(host))
        self.note()

    def _keeps(self, host: Host) -> bool:
        """Whether a host that has served its job is worth keeping: one of each kind, since two jobs at once are the exception."""
        key = host.spec.process_key
        return key is not None and not any(h.idle and h.spec.process_key == key for h in self.hosts if h is not host)

    # Processes

    async def _load(self, host: Host, python: Path | None) -> None:
        """Start the host's process and load its stage."""
        spec = await with_models(host.spec, self.here)
        if host.process is None:
            host.process = await self.process(host.spec, python)
            keep(self._tasks, self._watch(host, host.process))
        process, host.stale = host.process, False
        process.spec = host.spec  # a kept one speaks of another job from now on
        request = Packet.of("load", {"spec": spec.to_json(), "workloads": str(self.home.workloads)})
        try:
            answer = await process.exchange(request, nowhere)
        except BaseException:
            host.failed = True
            raise
        if answer.kind == "error":
            host.failed = True
            raise error_from_json(answer.fields["error"])
        host.load_s, host.held_mib = float(answer.fields["seconds"]), int(answer.fields.get("held_mib") or 0)
        host.load_log, host.load_told = answer.fields["log"], False

    async def process(self, spec: StageCallSpec, python: Path | None) -> StageProcess:
        """Start a process for `spec`; its stage is not loaded yet, and it is in no book."""
        assert self._lifeline is not None, "open() comes first"
        self._started += 1
        prune_logs(self.log_folder, {h.process.log.path for h in self.hosts if h.process is not None})
        log = self.log_folder / f"{spec.stage}-{spec.host_key[:8]}-{os.getpid()}-{self._started}.log"
        variables = launching.environ(
            spec, python is not None, self._import_dir, self._lifeline[0], self.cards.get(spec.device), os.environ
        )
        folder = Path(spec.folder) if spec.folder is not None else self.log_folder
        return await StageProcess.start(spec, Launch(launching.command(python, spec), variables, folder, log, self._lifeline[0]))

    async def _watch(self, host: Host, process: StageProcess) -> None:
        """Take the host off the books once its process is gone, however it ended."""
        await process.gone()
        await self._unlisted(host, process.pid)
        self._forget(host)
        await process.close()

    async def _unlisted(self, host: Host, pid: int) -> None:
        """Wait until the driver has taken back what a process that is gone held of its card."""
        uuid = self.cards.get(host.spec.device)
        if uuid is None or not host.spec.on_card or self.stopping:
            return
        until_s = asyncio.get_running_loop().time() + UNLISTED_WITHIN_S
        while pid in (await self.listed(uuid) or ()):
            if asyncio.get_running_loop().time() >= until_s:
                logger.error("process %d is gone, and the driver still lists it on %s: its memory may be lost", pid, host.spec.device)
                return
            await asyncio.sleep(UNLISTED_EVERY_S)

    async def end(self, host: Host, at_once: bool = False) -> None:
        """End the host's process, unless somebody does already, and wait until it is off the books."""
        if not host.ending or at_once:
            host.ending = True
            self.note()
            if host.process is None:
                self._forget(host)
            else:
                await (host.process.kill() if at_once else host.process.end(self.limits.grace))
        while host in self.hosts:
            await self.changed.wait()

    def _forget(self, host: Host) -> None:
        if host in self.hosts:
            self.hosts.remove(host)
        self.note()

    def note(self) -> None:
        """Wake whoever waits for a change of the books."""
        self.changed.set()
        self.changed = asyncio.Event()


def keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, held in `tasks` until it is done: the loop itself keeps only weak references."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def nowhere(packet: Packet) -> None:
    """Take a message that nobody wants."""
    packet.close()
