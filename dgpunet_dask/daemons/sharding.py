"""Very large segments of open indexes lie resident on the workers of CPUs: placed, kept there while workers come and go, and asked.

The files of the head are the truth. What a worker held when it died is loaded elsewhere from there, and a search scans here what nobody answers for. Nothing of
this begins, and no worker is spoken to, until an index that large is opened.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from dgpunet_dask.clock import Clock, SystemClock, within
from dgpunet_dask.daemons.hedging import ANSWER_S, Asking, Pace
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.plugins.shards import FULL, HELD, UNREADABLE, digest_of, encoded
from dgpunet_dask.plugins.worker import LIGHT
from dgpunet_dask.retrieval.shards import Holder, Placed, Shard, Sizes, lacking, placed, shards_of, surplus, worth
from dgpunet_dask.retrieval.spread import Source, Spreading

if TYPE_CHECKING:
    from distributed import Client

    from dgpunet_dask.config.settings_file import SettingsWatch
    from dgpunet_dask.retrieval.exact import Vector
    from dgpunet_dask.retrieval.scans import Nearest
    from dgpunet_dask.retrieval.shards import Found

log = logging.getLogger(__name__)

#: How often workers are looked at while a large index is open.
LOOK_S: Final = 1.0
#: How long the scheduler may take to say which workers there are, a worker to say what it holds, and to take a shard.
ASK_S: Final = 5.0
TOLD_S: Final = 2.0
HOLD_S: Final = 120.0
#: A worker that does not take a shard is given the next one later, each time after twice as long, up to this.
RETRY_MOST_S: Final = 60.0
#: A worker that has said nothing for so long is counted out; it may stand still and come back.
AWAY_S: Final = 5.0
#: A thread waits so much longer for the loop than the loop does for workers.
_GRACE_S: Final = 1.0


class Workers(Protocol):
    """The cluster, as far as shards need it."""

    async def addresses(self) -> Mapping[str, str]:
        """Return the address of each running worker of a CPU by its name; OSError or TimeoutError where nobody says."""

    async def call(self, address: str, name: str, **arguments: Any) -> Any:
        """Call an RPC handler of a worker."""


@dataclass(frozen=True)
class Told:
    """What a worker has said of itself, and when."""

    address: str
    holder: Holder
    held: Mapping[str, int]
    at_s: float


@dataclass(frozen=True)
class View:
    """Who holds what now, as searches see it, and the segments for which they are to ask there. Never changed: replaced."""

    told: Mapping[str, Told]
    held: Placed
    asked: frozenset[str] = frozenset()

    @property
    def cores(self) -> dict[str, int]:
        """Of each worker."""
        return {name: told.holder.cores for name, told in self.told.items()}


class DaskWorkers:
    """The workers of a scheduler that `client` is connected to, but for those that are cordoned or on their way out, which `fleet` tells if it can.

    Parameters
    ----------
    fleet
        Gives what the scheduler's plugin says (`plugins.rpc.fleet`); its errors are DgpunetErrors.
    """

    def __init__(self, client: Callable[[], Client], fleet: Callable[[], Awaitable[Mapping[str, Any]]] | None = None) -> None:
        self._client, self._fleet = client, fleet

    async def addresses(self) -> Mapping[str, str]:
        """Return the address of each running worker of a CPU by its name."""
        found = await within(ASK_S, self._client().scheduler.identity(n_workers=-1))
        spared = await self._spared()
        able = {str(one["name"]): address for address, one in found["workers"].items() if one["status"] == "running" and LIGHT in one["resources"]}
        return {name: address for name, address in able.items() if name not in spared}

    async def _spared(self) -> Collection[str]:
        """The devices whose owner wants no new work there."""
        if self._fleet is None:
            return ()
        try:
            states = (await self._fleet())["states"]
        except DgpunetError as error:  # the scheduler is being started again
            log.info("which devices are cordoned is not known: %s", error)
            return ()
        return {name for name, state in states.items() if state in ("cordoned", "draining")}

    async def call(self, address: str, name: str, **arguments: Any) -> Any:
        """Call an RPC handler of a worker."""
        return await getattr(self._client().rpc(address), name)(**arguments)


def sharding_over(
    client: Callable[[], Client], settings: SettingsWatch, fleet: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
) -> Sharding:
    """Return what has the workers of `client`'s cluster hold as much as the settings in force allow. `fleet` is that of `DaskWorkers`."""

    def allowance(total: int) -> int:
        return settings.settings.search.room_bytes(total)  # of now: the file may have changed

    return Sharding(DaskWorkers(client, fleet), allowance)


#: Bytes that a worker may hold, by the bytes of memory of its host.
Allowance = Callable[[int], int]


class Sharding:
    """See the module. `spread` and what it returns are for any thread, all else for the head's loop.

    Parameters
    ----------
    workers
        The cluster.
    allowance
        What a worker may hold.
    sizes
        From when on segments are held; smaller figures are for tests only.
    """

    def __init__(self, workers: Workers, allowance: Allowance, sizes: Sizes | None = None, clock: Clock | None = None) -> None:
        self.sizes, self._workers, self._allowance, self._clock = sizes or Sizes(), workers, allowance, clock or SystemClock()
        self._open: dict[str, weakref.WeakSet[Spreading]] = {}
        self._guard = threading.Lock()
        self._view = View({}, {})
        self._wanted: Placed = {}
        self._digests: dict[Shard, str] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._telling: dict[str, asyncio.Task[Told | None]] = {}
        self._full: set[str] = set()
        self._refused: dict[str, int] = {}
        self._late: dict[str, float] = {}
        self._unread: set[tuple[str, str]] = set()  # hosts, and segments that they cannot read by themselves
        self._pace = Pace()
        self._reading = asyncio.Lock()
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    # For searches, from any thread

    def spread(self, source: Source, own: Nearest | None) -> Nearest | None:
        """Return a segment's form that asks workers, where its index is large enough for that; one that is no whole shard keeps the form that it has."""
        if len(source.vectors) < self.sizes.shard_rows or not source.digest:
            return own
        shards = self._cut(source)
        made = Spreading(source, own, partial(self._ask, shards))
        with self._guard:
            self._open.setdefault(source.digest, weakref.WeakSet()).add(made)
        self._wake()
        return made

    def _cut(self, source: Source) -> tuple[Shard, ...]:
        rows, dimension = source.vectors.shape
        return shards_of(source.digest, rows, dimension, self.sizes.shard_rows)

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    def _ask(self, shards: Sequence[Shard], vector: Vector, count: int) -> tuple[tuple[Shard, ...], Mapping[Shard, Found]] | None:
        view, loop = self._view, self._loop
        if loop is None or loop.is_closed() or not shards or shards[0].segment not in view.asked:
            return None
        held = {shard: view.held.get(shard, ()) for shard in shards}
        asked = asyncio.run_coroutine_threadsafe(self._asked(view, held, vector, count), loop)
        try:
            return tuple(shards), asked.result(ANSWER_S + _GRACE_S)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):  # the head is busy, or ends
            asked.cancel()
            return tuple(shards), {}

    # On the loop

    async def _asked(self, view: View, held: Placed, vector: Vector, count: int) -> dict[Shard, Found]:
        asking = Asking(held, view.cores, partial(self._ask_worker, view, vector.tobytes(), count), self._pace, self._clock, self._late)
        found = await asking.run()
        self._late |= dict.fromkeys(asking.late, self._clock.monotonic())
        if asking.failed:
            self._woken.set()
        return found

    async def _ask_worker(self, view: View, vector: bytes, count: int, name: str, shards: Sequence[Shard]) -> dict[Shard, Found]:
        import numpy as np

        keys = [shard.key for shard in shards]
        answer = await self._workers.call(view.told[name].address, "dgpunet_shard_search", keys=keys, vector=vector, count=count)
        found = {}
        for shard in shards:
            if shard.key in answer["found"]:
                scores, rows = answer["found"][shard.key]
                found[shard] = np.frombuffer(scores, np.float32), np.frombuffer(rows, np.int64) + shard.first
        return found

    async def run(self) -> None:
        """Keep what is open held, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._woken.set()  # what was opened before
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                while self._large() or any(told.held for told in self._view.told.values()):
                    try:
                        await self._step()
                    except Exception:  # whatever it is, the next look may go better; searches go on meanwhile
                        log.exception("which worker holds what cannot be kept in step")
                    await self._pause()
        finally:
            self._loop = None
            for task in (*self._loading.values(), *self._telling.values()):
                task.cancel()

    async def _pause(self) -> None:
        try:
            await within(LOOK_S, self._woken.wait())
        except TimeoutError:
            pass
        self._woken.clear()

    def _opened(self) -> dict[str, Source]:
        """The segments that are open, those opened first first; what searches have let go of is forgotten."""
        with self._guard:
            found = {digest: next(iter(alive), None) for digest, alive in self._open.items()}
            for digest, one in found.items():
                if one is None:
                    del self._open[digest]
        return {digest: one.source for digest, one in found.items() if one is not None}

    def _large(self) -> dict[str, list[Source]]:
        """Of each index that is large enough the segments that are: a search scans them all, one after the other."""
        found: dict[str, list[Source]] = {}
        for source in self._opened().values():
            found.setdefault(source.index, []).append(source)
        return {index: some for index, some in found.items() if sum(len(one.vectors) for one in some) >= self.sizes.least_rows}

    async def _step(self) -> None:
        """Look who is there and what they hold, and have them hold what they should."""
        try:
            addresses = await self._workers.addresses()
        except (OSError, TimeoutError) as error:  # the scheduler is away: workers can be asked all the same
            log.info("which workers there are is not known: %s", error)
            addresses = {name: told.address for name, told in self._view.told.items()}
        told = await self._look(addresses)
        large = self._large()
        sources = {source.digest: source for some in large.values() for source in some}
        groups = [[shard for source in some for shard in self._cut(source)] for some in large.values()]
        by_key = {shard.key: shard for shards in groups for shard in shards}
        held = {shard: tuple(name for name, one in told.items() if shard.key in one.held) for shard in by_key.values()}
        cores = {name: one.holder.cores for name, one in told.items()}
        asked = frozenset(shard.segment for shards in groups if worth(shards, held, cores, self.sizes) for shard in shards)
        self._view = View(told, held, asked)
        self._wanted = placed(groups, [one.holder for one in told.values()], self.sizes)
        self._digests = {shard: digest for shard, digest in self._digests.items() if shard.key in by_key}
        await self._drop(told, held, by_key)
        for name, shard in lacking(held, self._wanted).items():
            if name not in self._loading:
                self._loading[name] = asyncio.ensure_future(self._load(told[name], shard, sources[shard.segment]))

    async def _look(self, addresses: Mapping[str, str]) -> dict[str, Told]:
        """What workers say; what one said last where it says nothing now, but not for long. Nobody waits for those that were late before."""
        for name, address in addresses.items():
            if name not in self._telling:
                self._telling[name] = asyncio.ensure_future(self._tell(name, address))
        prompt = [task for name, task in self._telling.items() if name not in self._late]
        if prompt:
            await asyncio.wait(prompt, timeout=TOLD_S)
        now = {name: task.result() for name, task in self._telling.items() if task.done()}
        self._telling = {name: task for name, task in self._telling.items() if not task.done()}
        fresh_s = self._clock.monotonic() - AWAY_S
        found = {name: now.get(name) or self._view.told.get(name) for name in addresses}
        return {name: one for name, one in found.items() if one is not None and one.address == addresses[name] and one.at_s > fresh_s}

    async def _tell(self, name: str, address: str) -> Told | None:
        """What one worker says; ``None`` for nothing."""
        began = self._clock.monotonic()
        try:
            raw = await within(TOLD_S, self._workers.call(address, "dgpunet_shards"))
        except Exception as error:  # whatever a worker that is ending, or of another release, answers
            log.info("%s does not say which vectors it holds: %s", name, error)
            self._late[name] = self._clock.monotonic()
            return None
        if self._late.get(name, began) < began:
            del self._late[name]
        holder = Holder(name, raw["host"], raw["cores"], self._allowance(raw["ram_bytes"]))
        return Told(address, holder, dict(raw["held"]), began)

    async def _drop(self, told: Mapping[str, Told], held: Placed, known: Mapping[str, Shard]) -> None:
        """Have workers let go of what they need not hold, and of what belongs to no open index."""
        dropped = {name: [key for key in one.held if key not in known] for name, one in told.items()}
        for name, shard in surplus(held, self._wanted, self._full):
            dropped[name].append(shard.key)
        self._full.clear()
        calls = [self._quietly(told[name], "dgpunet_shard_drop", keys=keys) for name, keys in dropped.items() if keys]
        if calls:
            await asyncio.gather(*calls)
            self._woken.set()

    async def _quietly(self, told: Told, op: str, **arguments: Any) -> None:
        try:
            await within(TOLD_S, self._workers.call(told.address, op, **arguments))
        except Exception as error:  # the next look tells what is the case
            log.info("%s does not answer: %s", told.holder.name, error)

    async def _load(self, told: Told, shard: Shard, source: Source) -> None:
        """Have a worker hold a shard, and look again."""
        name = told.holder.name
        try:
            answer = await within(HOLD_S, self._hold(told, shard, source))
        except Exception as error:  # the next look tells what is the case
            answer = f"{type(error).__name__}: {error}"
        try:
            if answer == HELD:
                self._refused.pop(name, None)
                return
            log.info("%s does not hold %s: %s", name, shard.key, answer)
            times = self._refused[name] = self._refused.get(name, -1) + 1
            if answer == FULL:
                self._full.add(name)
            await asyncio.sleep(min(RETRY_MOST_S, LOOK_S * 2.0 ** min(times, 10)))
        finally:
            del self._loading[name]
            self._woken.set()

    async def _hold(self, told: Told, shard: Shard, source: Source) -> str:
        """Give a worker a shard: where to read it, if it can, and else its codes."""
        from distributed.protocol import to_serialize

        codes = None
        if shard not in self._digests:
            codes, self._digests[shard] = await self._coded(shard, source)
        asked = {"key": shard.key, "rows": shard.rows, "dimension": shard.dimension, "digest": self._digests[shard], "room_bytes": told.holder.room_bytes}
        call = partial(self._workers.call, told.address, "dgpunet_shard_hold", **asked)
        by_itself = (told.holder.host, shard.segment)
        if by_itself not in self._unread:
            answer = await call(file=str(source.file), offset=source.offset + shard.first * shard.dimension * 4)
            if answer in (HELD, FULL):
                return str(answer)
            self._unread |= {by_itself} if answer == UNREADABLE else set()
        if codes is None:
            codes, _ = await self._coded(shard, source)
        return str(await call(codes=to_serialize(codes)))

    async def _coded(self, shard: Shard, source: Source) -> Any:
        """Read a shard from the disk, one at a time: its codes, and their digest."""

        def read() -> Any:
            codes = encoded(source.vectors[shard.first : shard.first + shard.rows])
            return codes, digest_of(codes)

        async with self._reading:
            return await asyncio.to_thread(read)

    def summary(self) -> dict[str, Any]:
        """Return how much of all open indexes is held, without their names: ``segments``, ``bytes``, and bytes of each of the ``workers``."""
        held = {name: sum(told.held.values()) for name, told in sorted(self._view.told.items()) if told.held}
        return {"segments": sum(map(len, self._large().values())), "bytes": sum(held.values()), "workers": held}

    def status(self) -> list[dict[str, Any]]:
        """Return of each segment of open indexes that are large enough where its vectors lie, and whether searches ask there now."""
        view, found = self._view, []
        for source in (one for some in self._large().values() for one in some):
            shards = self._cut(source)
            held = {shard: view.held.get(shard, ()) for shard in shards}
            where: dict[str, int] = {}
            for shard, names in held.items():
                where |= {name: where.get(name, 0) + shard.size_bytes for name in names}
            found.append({
                "index": source.index, "segment": source.segment, "chunks": len(source.vectors), "shards": len(shards),
                "held": sum(bool(names) for names in held.values()), "copies": sum(map(len, held.values())), "bytes": sum(where.values()),
                "workers": dict(sorted(where.items())), "asked": source.digest in view.asked,
            })  # fmt: skip
        return found
