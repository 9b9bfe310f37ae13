"""The agent's stage hosts: serves worker threads over a Unix socket, with the processes in `hosts` and the calls in `kept`.

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
end_job    job_id                                      ``ended`` (n) once the processes that only this job has use for are killed
held       -                                           ``held`` (calls): unit, stage, device, state of each call in the book
forget     units                                       ``forgotten`` (n): the results of these units are committed
ensure     kind, digest                                ``ensured`` (path) once that folder is here, or ``error``
subscribe  devices                                     ``residents`` (device, residents) now and after each change, until closed
=========  ==========================================  =======================================================================

A caller that goes away in the middle of a call changes nothing at first: the call runs to its end, and until then its process is busy.
The result of a unit's call is kept for the next caller; a call that nobody comes back for is ended (`kept`), and so is one of no unit if
it takes long (`StageHosts.drop_calls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, JobFailed, StageOutOfMemory
from dgpunet_dask.failpoints import hit
from dgpunet_dask.stagehost.asyncwire import AsyncWire
from dgpunet_dask.stagehost.evidence import with_facts
from dgpunet_dask.stagehost.fetching import Fetch
from dgpunet_dask.stagehost.hosts import Host, HostBook, Limits, Listed, keep, listed_by_driver, nowhere
from dgpunet_dask.stagehost.kept import Keep, KeptCall, KeptCalls
from dgpunet_dask.stagehost.listening import Listener
from dgpunet_dask.stagehost.process import StageProcess
from dgpunet_dask.stagehost.reports import error_to_json, full_disk
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet

logger = logging.getLogger(__name__)

#: How long reading a workload's stages may take: importing torch from a cold disk takes most of a minute.
INSPECT_S: Final = 300.0
#: Logs that are too long, and results that are too old, are looked for this often.
TIDY_S: Final = 2.0

_OVERRUN: Final = StageOutOfMemory.__name__
#: From the UUID of a card and seconds since 1970 to fields of an error.
Befell = Callable[[str, float], Coroutine[Any, Any, dict[str, Any]]]
Answer = Callable[[AsyncWire, Packet], Coroutine[Any, Any, Packet | None]]


class StageHosts:
    """All stage hosts of one agent. Making the value touches nothing; `start` serves.

    Parameters
    ----------
    home
        Sockets and logs go to ``H/run``, environments to ``H/envs``, workloads come from ``H/workloads``.
    clock
        Tells which idle process was used longest ago, and how old a kept result is.
    cards
        The UUID of each real card by its device's name. A stage on any other device sees no card.
    limits, kept
        How many processes, and how many results, are kept.
    fetch
        Brings workload folders and models that are not on this host; ``None``: this host knows no other.
    listed
        Tells which processes the driver lists on a card.
    befell
        Tells what has befallen a card since a moment, as evidence of a call that failed there; ``None``: nobody watches the cards.
    """

    def __init__(
        self,
        home: Home,
        clock: Clock | None = None,
        cards: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        fetch: Fetch | None = None,
        *,
        kept: Keep | None = None,
        listed: Listed = listed_by_driver,
        befell: Befell | None = None,
    ) -> None:
        self.home = home
        self.clock = clock = clock or SystemClock()
        self.befell = befell
        self.limits = limits or Limits()
        self.book = HostBook(home, clock, cards or {}, self.limits, fetch, listed)
        self.kept = KeptCalls(clock, self._end_call, self.book.note, kept or Keep())
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None

    async def start(self) -> None:
        """Listen on ``home.agent_socket``; a socket that a killed agent left is taken over.

        Raises
        ------
        OSError
            If the socket cannot be made.
        """
        self.book.open()
        self._listener = Listener(self.home.agent_socket)
        self._listener.open(lambda wire: keep(self._tasks, self._serve(wire)))
        keep(self._tasks, self._tidy())

    async def stop(self) -> None:
        """Stop serving, end every process (the idle ones in good order, the busy ones at once) and remove the socket."""
        self.book.stopping = True
        if self._listener is not None:
            self._listener.close()
        busy, tasks = [h for h in self.book.hosts if h.busy], list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.kept.close()
        await self.book.close(busy)

    async def _tidy(self) -> None:
        """Keep logs and kept results within their bounds."""
        while True:
            await asyncio.sleep(TIDY_S)
            self.kept.sweep()
            self.book.forget_kept()
            for host in self.book.living():
                host.running.log.shorten()

    @property
    def cards(self) -> Mapping[str, str]:
        """The UUID of each real card by its device's name; may be set anew when cards have got their names."""
        return self.book.cards

    @cards.setter
    def cards(self, cards: Mapping[str, str]) -> None:
        self.book.cards = cards

    def specs(self) -> list[StageCallSpec]:
        """Return what is loaded or about to be: its folders and environments are in use."""
        return [host.spec for host in self.book.hosts]

    def residents(self) -> dict[str, list[dict[str, Any]]]:
        """Return what is loaded on each card.

        Told are the stage's name, the parameter `model` of its load, the process's id (`host_key`), its MiB (`Host.mib`), whether a call
        uses it, and how many seconds its load took (``None`` until it has ended).

        A process counts from before it starts until it is seen gone.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for host in self.book.on_cards():
            model = host.spec.load.get("model")
            entry: dict[str, Any] = {"stage": host.spec.stage, "model": None if model is None else str(model)}
            entry |= {"id": host.spec.host_key, "mib": host.mib, "busy": not host.idle, "load_s": host.load_s}
            found.setdefault(host.spec.device, []).append(entry)
        return found

    def pids(self) -> dict[int, str]:
        """Return the device of each running stage host by process id, so that its use of a card is known as ours."""
        return {h.running.pid: h.spec.device for h in self.book.living()}

    def rows(self) -> list[dict[str, Any]]:
        """Return device, stage, process id and `busy` of each running stage host, those on CPUs too."""
        return [
            {"device": h.spec.device, "stage": h.spec.stage, "pid": h.running.pid, "busy": not h.idle} for h in self.book.living()
        ]

    def held(self) -> list[tuple[str, str, str, str]]:
        """Return unit, stage, device and state (``waiting``, ``running``, ``done``) of each call in the book, in the order they began."""
        return [(call.spec.unit, call.spec.stage, call.spec.device, call.state) for call in self.kept.held()]

    def kill_stopped(self, pid: int, stood_s: float) -> None:
        """Kill the stage host `pid`, if it still runs, that a signal had stopped for `stood_s` seconds. It ends as one that anybody kills."""
        for host in self.book.living():
            if host.running.pid == pid:
                logger.error(
                    "stage host %d (%s on %s) was stopped for %.0f s and is killed", pid, host.spec.stage, host.spec.device, stood_s
                )
                host.running.kill_stopped(stood_s)

    async def end_all(self) -> int:
        """End every stage host, the idle ones in good order and the busy ones at once; return how many there were. Serving goes on."""
        hosts = list(self.book.hosts)
        await asyncio.gather(*(self.book.end(h, at_once=h.busy) for h in hosts))
        return len(hosts)

    async def drop_calls(self, device: str, after_s: float) -> None:
        """End the processes on `device` whose present call takes `after_s` more seconds: the worker that made it has ended.

        A shorter call may finish, so that its model stays loaded. Calls of units are left alone, since others may come for what they
        give (`kept`), and so are processes of one job: the head itself calls them.
        """
        on_device = [h for h in self.book.hosts if h.spec.device == device and not h.spec.of_one_job]
        orphaned = [(h, h.used) for h in on_device if h.busy and h.call is None]
        if orphaned:
            await asyncio.sleep(after_s)
            stuck = [h for h, used in orphaned if h.busy and h.used == used]  # `used` changes with the end of each call
            await self._kill(stuck)

    async def _kill(self, hosts: list[Host]) -> int:
        await asyncio.gather(*(self.book.end(h, at_once=True) for h in hosts))
        return len(hosts)

    async def _end_call(self, call: KeptCall) -> None:
        logger.warning("nobody has come back for a call of stage %s on %s: its process is ended", call.spec.stage, call.spec.device)
        await self._kill([h for h in self.book.hosts if h.call is call])

    # Serving

    async def _serve(self, wire: AsyncWire) -> None:
        """Answer the one request of a connection."""
        answers: dict[str, Answer] = {
            "call": self._call,
            "gather": self._call,
            "stream": self._stream,
            "inspect": self._inspect,
            "evict": self._evict,
            "end_job": self._end_job,
            "held": self._held,
            "forget": self._forget,
            "ensure": self._ensure,
            "subscribe": self._subscribe,
        }
        try:
            packet = await wire.receive()
            if packet is not None:
                answer = await self._answered(answers.get(packet.kind), wire, packet)
                if answer is not None:
                    await wire.send(answer)
                    if answer.kind == "result":
                        hit("call.delivered", request=packet.kind)
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
        spec = StageCallSpec.from_json(packet.fields["spec"])
        if not self.kept.takes(spec):
            return await self._exchange(spec, packet, lambda: not wire.closed_by_peer())
        request = packet.taken()
        try:
            return await self.kept.call(spec, wire, lambda call: self._kept_call(call, request.taken()))
        finally:
            request.close()

    async def _kept_call(self, call: KeptCall, packet: Packet) -> Packet | None:
        try:
            return await self._exchange(call.spec, packet, lambda: not call.abandoned, call)
        finally:
            packet.close()

    async def _exchange(
        self, spec: StageCallSpec, packet: Packet, wanted: Callable[[], bool], call: KeptCall | None = None
    ) -> Packet | None:
        """Make a call on a host that is lent for it; where it fails, its error says what befell its card meanwhile."""
        began_s = self.clock.wall()
        try:
            answer = await self._lent_exchange(spec, packet, wanted, call)
        except DgpunetError as error:
            error.fields |= await self._of_card(spec, began_s)
            raise
        if answer is not None and answer.kind == "error":
            answer.fields["error"] = with_facts(answer.fields["error"], await self._of_card(spec, began_s))
        return answer

    async def _of_card(self, spec: StageCallSpec, since_s: float) -> dict[str, Any]:
        uuid = self.book.cards.get(spec.device) if spec.on_card else None
        return {} if uuid is None or self.befell is None else await self.befell(uuid, since_s)

    async def _lent_exchange(
        self, spec: StageCallSpec, packet: Packet, wanted: Callable[[], bool], call: KeptCall | None
    ) -> Packet | None:
        async with self.book.lent(spec, wanted, call) as host:
            if host is None:
                return None
            if call is not None:
                call.state = "running"
            hit("call.began", stage=spec.stage, unit=spec.unit)
            answer = await host.running.exchange(packet, nowhere)
            hit("call.ended", stage=spec.stage, unit=spec.unit)
            if answer.kind == "result":
                host.tell_load(answer)
                answer.fields["device"] = spec.device
            elif answer.fields["error"]["class"] == _OVERRUN:
                host.failed = True  # its memory is in pieces, and whoever tries again has another charge
            return answer

    async def _stream(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        async with self.book.lent(StageCallSpec.from_json(packet.fields["spec"]), lambda: not wire.closed_by_peer()) as host:
            if host is None:
                return None
            process = host.running
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
        await self.book.here("workload", digest)
        facts: dict[str, Any] = {}
        for env in sorted({env for _, env in stages.values()}, key=str):
            asked = {name: pair for name, pair in stages.items() if pair[1] == env}
            spec = StageCallSpec(stage=min(asked), run="", digest=digest, env=env, deadline_s=INSPECT_S, interactive=True)
            async with self.book.inspecting(spec) as process:
                fields = {"digest": digest, "workloads": str(self.home.workloads), "stages": asked, "params": params}
                answer = await process.exchange(Packet.of("inspect", fields), nowhere)
            if answer.kind == "error":
                return answer
            facts |= answer.fields
        return Packet.of("facts", facts)

    async def _evict(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        device, stage = packet.fields["device"], packet.fields["stage"]
        meant = [h for h in self.book.hosts if h.spec.device == device and stage in (h.spec.stage, h.spec.host_key)]
        leaving = [h for h in meant if h.idle or h.ending]
        await asyncio.gather(*(self.book.end(h) for h in leaving))
        return Packet.of("evicted", {"n": len(leaving), "busy": len(meant) - len(leaving)})

    async def _end_job(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        """Kill what serves a cancelled job alone: its source and gather processes, and those that compute what nobody waits for."""
        job_id = packet.fields["job_id"]
        unwanted = self.kept.abandoned(job_id)
        meant = [h for h in self.book.hosts if (h.spec.of_one_job and h.spec.job_id == job_id) or h.call in unwanted]
        return Packet.of("ended", {"n": await self._kill(meant)})

    async def _held(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        return Packet.of("held", {"calls": self.held()})

    async def _forget(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        return Packet.of("forgotten", {"n": self.kept.forget(packet.fields["units"])})

    async def _ensure(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        return Packet.of("ensured", {"path": str(await self.book.here(packet.fields["kind"], packet.fields["digest"]))})

    async def _subscribe(self, wire: AsyncWire, packet: Packet) -> Packet | None:
        """Tell the residents of the asked devices whenever they changed, until the connection is closed."""
        told: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(packet.fields["devices"])
        closed = asyncio.create_task(wire.receive())
        try:
            while not closed.done():
                changed = asyncio.create_task(self.book.changed.wait())
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


def _to(wire: AsyncWire) -> Callable[[Packet], Coroutine[Any, Any, None]]:
    async def deliver(packet: Packet) -> None:
        with contextlib.suppress(OSError):  # the reader went away; the stream is being cancelled
            await wire.send(packet)

    return deliver
