"""Calls that outlive their callers: the agent's book of the calls of units, those that run and those that have ended.

A worker, a scheduler or the head may die while a stage computes. The call goes on, what it gave is kept, and whoever calls for the same
unit next joins it or is given its result, so that nothing is computed twice. A result is kept although it was delivered: its caller may
die before it is committed. It goes once it is committed (`forget`), after `Keep.keep_s`, or when there is no more room. Errors are told
to those who wait and not kept: the next call tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dgpunet_dask.clock import Clock
from dgpunet_dask.stagehost.asyncwire import AsyncWire
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet

#: What one kept result takes beside its frames and its log.
_OVERHEAD_BYTES: Final = 2048
State = Literal["waiting", "running", "done"]


@dataclass(frozen=True)
class Keep:
    """How much is kept, and for how long.

    Parameters
    ----------
    keep_s
        A result, after its end.
    keep_bytes
        All results together; the oldest go first.
    keep_files
        Results that lie in a memory file, which takes a descriptor of the agent.
    join_s
        How long a call without a caller may go on.
    """

    keep_s: float = 300.0
    keep_bytes: int = 256 << 20
    keep_files: int = 256
    join_s: float = 60.0


@dataclass(eq=False)
class KeptCall:
    """One call of a unit.

    Parameters
    ----------
    state
        ``waiting`` for its turn or its stage, ``running`` in a stage host, ``done`` with a result that is kept.
    callers, joined
        How many wait for it now, and how many have come since it began.
    """

    spec: StageCallSpec
    outcome: asyncio.Future[Packet | None]
    state: State = "waiting"
    callers: int = 0
    joined: int = 0
    ended_s: float = 0.0
    answer: Packet | None = None
    in_book: bool = True

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it."""
        return self.callers == 0

    @property
    def nbytes(self) -> int:
        """What keeping its result takes."""
        return _OVERHEAD_BYTES + (0 if self.answer is None else self.answer.payload_bytes + len(self.answer.fields.get("log", "")))

    @property
    def in_file(self) -> bool:
        """Whether its result takes a descriptor."""
        return self.answer is not None and self.answer.fd is not None

    def drop(self) -> None:
        """Let the result go, unless the call is in the book or somebody is about to take it."""
        if self.answer is not None and not self.in_book and self.abandoned:
            self.answer.close()


#: Makes a call, and returns its answer: `None` if nobody waited for it when its turn came.
Run = Callable[[KeptCall], Coroutine[Any, Any, Packet | None]]
#: Ends the process that a call runs in.
End = Callable[[KeptCall], Coroutine[Any, Any, None]]


@dataclass
class KeptCalls:
    """The book of one agent. Making the value touches nothing; its methods run on the agent's loop.

    Parameters
    ----------
    clock
        Tells how old a result is.
    end
        Ends the process of a call that nobody has joined in time.
    changed
        Called when the first caller joins a call, or the last one leaves it.
    """

    clock: Clock
    end: End
    changed: Callable[[], None] = lambda: None
    keep: Keep = field(default_factory=Keep)
    _calls: dict[str, KeptCall] = field(default_factory=dict, init=False)
    _done: OrderedDict[str, KeptCall] = field(default_factory=OrderedDict, init=False)
    _nbytes: int = field(default=0, init=False)
    _files: int = field(default=0, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def takes(self, spec: StageCallSpec) -> bool:
        """Whether a call is one for this book. A copy is not while the call that it is a copy of runs: it must not wait for that."""
        if not spec.unit or spec.of_one_job:
            return False
        found = self._calls.get(spec.call_key)
        return not (spec.copy and found is not None and found.state != "done")

    async def call(self, spec: StageCallSpec, wire: AsyncWire, run: Run) -> Packet | None:
        """Return the answer of a call: of the one that runs, or has ended, or else of one that is begun now.

        Its field ``adopted`` tells whether another caller has begun it. ``None``: the caller at the other end of `wire` is gone.

        Raises
        ------
        DgpunetError, OSError
            What the call ended with.
        """
        self.sweep()
        found = self._calls.get(spec.call_key)
        return await self._wait(found or self._begin(spec, run), wire, adopted=found is not None)

    def _begin(self, spec: StageCallSpec, run: Run) -> KeptCall:
        call = KeptCall(spec, asyncio.get_running_loop().create_future())
        self._calls[spec.call_key] = call
        self._spawn(self._run(call, run(call)))
        return call

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: KeptCall, work: Coroutine[Any, Any, Packet | None]) -> None:
        """Make the call. It leaves the book before those who wait hear of a failure, so that none of them joins it again."""
        try:
            answer = await work
        except BaseException as error:
            del self._calls[call.spec.call_key]
            if isinstance(error, asyncio.CancelledError):
                call.outcome.cancel()
                raise
            call.outcome.set_exception(error)
            call.outcome.exception()  # it is told to whoever waits, and perhaps nobody does
            return
        if answer is not None and answer.kind == "result":
            self._keep(call, answer)
        else:
            del self._calls[call.spec.call_key]
        call.outcome.set_result(answer)

    def _keep(self, call: KeptCall, answer: Packet) -> None:
        call.state, call.answer, call.ended_s = "done", answer, self.clock.monotonic()
        self._done[call.spec.call_key] = call
        self._nbytes += call.nbytes
        self._files += call.in_file

    async def _wait(self, call: KeptCall, wire: AsyncWire, *, adopted: bool) -> Packet | None:
        """Return what `call` gives to one of its callers; ``None`` if the caller goes away, or nobody waited when its turn came."""
        self._count(call, 1)
        try:
            if not call.outcome.done() and not await _outlasts(wire, call.outcome):
                return None
            answer = call.outcome.result()
            return None if answer is None else answer.copy(adopted=adopted)
        finally:
            self._count(call, -1)
            call.drop()
            if call.abandoned and not call.outcome.done():
                self._spawn(self._end_unless_joined(call, call.joined))

    def _count(self, call: KeptCall, change: int) -> None:
        """Note that a caller came or went."""
        was, call.callers = call.abandoned, call.callers + change
        call.joined += change > 0
        if call.abandoned != was:
            self.changed()

    async def _end_unless_joined(self, call: KeptCall, joined: int) -> None:
        await asyncio.sleep(self.keep.join_s)
        if call.joined == joined and call.state == "running":
            await self.end(call)

    def sweep(self) -> None:
        """Let go of results that are too old, or too many."""
        now, keep = self.clock.monotonic(), self.keep
        while self._done:
            key, oldest = next(iter(self._done.items()))
            fits = self._nbytes <= keep.keep_bytes and self._files <= keep.keep_files
            if fits and now - oldest.ended_s < keep.keep_s:
                return
            self._let_go(key)

    def _let_go(self, key: str) -> None:
        call = self._done.pop(key)
        del self._calls[key]
        self._nbytes -= call.nbytes
        self._files -= call.in_file
        call.in_book = False
        call.drop()

    def forget(self, units: Collection[str]) -> int:
        """Let go of the results of `units`, which are committed; return how many there were."""
        known = set(units)
        found = [key for key, call in self._done.items() if call.spec.unit in known]
        for key in found:
            self._let_go(key)
        return len(found)

    def held(self) -> list[KeptCall]:
        """Return all calls in the book, in the order they began."""
        self.sweep()
        return list(self._calls.values())

    def abandoned(self, job_id: str) -> list[KeptCall]:
        """Return the calls of a job that run and that nobody waits for."""
        return [c for c in self._calls.values() if c.spec.job_id == job_id and c.state == "running" and c.abandoned]

    async def close(self) -> None:
        """End the tasks of all calls, and let go of every result."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key in list(self._done):
            self._let_go(key)


async def _outlasts(wire: AsyncWire, outcome: asyncio.Future[Packet | None]) -> bool:
    """Wait for `outcome`; return whether it came before the caller at the other end of `wire` went away."""
    leaving = asyncio.create_task(_left(wire))
    either: set[asyncio.Future[Any]] = {outcome, leaving}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return outcome.done()
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _left(wire: AsyncWire) -> None:
    """Wait until the caller is gone: it says nothing more after its request."""
    with contextlib.suppress(OSError):
        packet = await wire.receive()
        if packet is not None:
            packet.close()
