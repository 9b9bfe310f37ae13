"""Placement on a stock Dask scheduler: hold, pump, interlock.

*Hold*: tasks with a ``demand`` annotation are restricted to a worker address that never exists, so Dask parks them in ``no-worker``
once they are ready. *Pump*: on its own turn of the loop, the pure core picks a device, the ledger is charged, the task is restricted
to that one worker and Dask is asked to go on. *Interlock*: an integer resource per device on the worker refuses what would not fit,
even if the ledger were wrong. Everything else in Dask stays as it is; tasks without a demand are never looked at twice.

A call that was cancelled runs on in its thread. Its charge therefore stays until its worker has reported the end: after a task left
``processing`` in any way but a result or an error of its own, the worker is asked (`dgpunet-settle`) and answers at once or when the
call has ended (`dgpunet-ended`). Only then may the task be placed again.

Hooks log their own failures, since Dask logs those of `transition` at a level that nobody sees.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from distributed.diagnostics.plugin import SchedulerPlugin

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.errors import StageOutOfMemory
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import NO_POLICY, Layer, Policy
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.placement.policy_file import parse_policies
from dgpunet_dask.placement.trace import Ended
from dgpunet_dask.plugins import hosts, rpc
from dgpunet_dask.plugins.book import Book
from dgpunet_dask.plugins.inputs import Inputs
from dgpunet_dask.plugins.journal import Journal
from dgpunet_dask.plugins.observing import KEPT, Observer, StartStops, run_seconds
from dgpunet_dask.plugins.pump import Pump
from dgpunet_dask.plugins.records import ANNOTATION, DEVICE, HOLD, Pins, Record, Signature, Signatures

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler, TaskState

logger = logging.getLogger(__name__)

NAME: Final = "dgpunet-placement"
TOPIC: Final = "dgpunet"
#: A resident that was asked to leave and is still there is asked again after this long.
EVICT_RETRY_S: Final = 2.0
#: What was seen is folded into the estimates this long after the first of it.
LEARN_S: Final = 1.0
#: How the texts of these errors begin.
_OUT_OF_MEMORY: Final = (StageOutOfMemory.__name__, "OutOfMemoryError", "torch.OutOfMemoryError")
#: States that a task enters without leaving a device or beginning to wait for one.
_UNEVENTFUL: Final = frozenset({"waiting", "queued", "processing"})
_BARRIER: Final = "shuffle-barrier-"


def _loud(hook: Callable[..., None]) -> Callable[..., None]:
    """Log what a hook raises at ERROR and go on, as Dask would, only not in silence."""

    @functools.wraps(hook)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            logger.exception("placement hook %s failed", hook.__name__)

    return run


class PlacementPlugin(SchedulerPlugin):
    """Places tasks that carry a demand. Add it with ``scheduler.add_plugin`` in a preload, or live with ``client.register_plugin``.

    Parameters
    ----------
    clock
        Time.
    sources
        The policy files to decide by from the first task on: text, name and layer of each.
    expected
        Devices that an earlier scheduler had: for `hosts.EXPECT_S` seconds they count as lost, not as missing.
    """

    name = NAME
    idempotent = True

    def __init__(
        self, clock: Clock | None = None, sources: Iterable[tuple[str, str, Layer]] = (), expected: Fleet | None = None
    ) -> None:
        self.records: dict[Key, Record] = {}
        self.clock = clock or SystemClock()
        self.observer = Observer()
        self.sources: tuple[tuple[str, str, Layer], ...] = tuple(sources)
        self.expected = expected or Fleet()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._seen: list[Signature] = []

    async def start(self, scheduler: Scheduler) -> None:
        """Take in what is there already: a plugin may join a scheduler that has workers and tasks."""
        self.scheduler = scheduler
        self.book = Book()
        self.book.set_holds(self.expected.states)  # a faulty card takes no work either until the head has told anew what is held
        self.journal = Journal(self.clock.wall, self.book.pool.fleet)
        self.pump = Pump(scheduler, self.book, self.journal, self._evict, self.clock.monotonic)
        self._signatures = Signatures()
        self._inputs = Inputs(self.book.host_of)
        self._settling: dict[str, Record] = {}
        self._evicting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._retired: set[str] = set()
        scheduler.stream_handlers["dgpunet-ended"] = self._ended
        scheduler.handlers.update({**rpc.handlers(self), **hosts.handlers(self)})
        for ws in list(scheduler.workers.values()):
            self.book.add_worker(ws)
        if self.sources:
            self.set_policy(self.sources)
        if self.expected.devices:
            hosts.expect(self, self.expected)
        asyncio.get_running_loop().call_soon(self._requeue, [k for k in list(scheduler.tasks) if self._adopt(scheduler.tasks[k])])

    # What is in force

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.book.pool.policy

    def set_policy(self, sources: Iterable[tuple[str, str, Layer]]) -> str:
        """Decide by these files, (text, name, layer) each, from the next pass on: what waits is planned anew, what runs stays.

        Raises
        ------
        MalformedFile, NewerFormat
            With every mistake; then the old ones stay in force.
        """
        sources = tuple((text, file, layer) for text, file, layer in sources)
        if sources and sources == self.sources:
            return self.policy.digest  # read at the start, and told by the head once more
        policy = parse_policies(sources) if sources else NO_POLICY
        self.sources = sources
        self.journal.policy(policy.digest, sources)
        self.pump.set_policy(policy)
        self._watch_the_clock()
        return policy.digest

    def _watch_the_clock(self) -> None:
        """Follow the minute of the local day while the owner's hours count."""
        if any(rule.hours is not None for rule in self.policy.hosts):
            now = self.clock.wall()
            local = time.localtime(now)
            self.book.pool.set_minute(60 * local.tm_hour + local.tm_min)
            self.pump.arm()
            self.later("minute", 60.0 - now % 60.0 + 0.05, self._watch_the_clock)

    def later(self, name: str, seconds: float, what: Callable[[], None]) -> None:
        """Call `what` later; a call of the same name that is still to come is dropped."""
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, what)

    def set_estimates(self, estimates: Estimates) -> None:
        """Take what the head has learned."""
        self.observer.told = estimates
        self._learn()

    def set_links(self, links: Mapping[tuple[str, str], float]) -> None:
        """Decide by these measured links, bytes per second from one host to another."""
        self.book.pool.set_links(links)
        self._inputs.set_links(links)

    def recall(self, estimates: Estimates) -> None:
        """Know what an earlier scheduler had learned by itself, of stages and models that this one has not met yet."""
        self.observer.fold()
        known = self.observer.own.joined(estimates)
        if known != self.observer.own:
            self.observer.own = known
            self._learn()

    @_loud
    def _learn(self) -> None:
        """Decide by all that is known by now."""
        self._timers.pop("learn", None)
        while self._seen:
            self._seen.pop().seen = 0
        estimates = self.observer.fold()
        self.journal.estimates(estimates)
        self.pump.set_estimates(estimates)

    # Tasks

    @_loud
    def update_graph(self, scheduler: Scheduler, *, tasks: list[Key], annotations: dict[str, dict[Key, Any]], **kwargs: Any) -> None:
        """Hold the new tasks that carry a demand."""
        demands = annotations.get(ANNOTATION)
        if not demands:
            return
        shuffles = _of_shuffles(scheduler, tasks)
        seen: dict[int, Signature] = {}  # most tasks of a graph share one annotation object
        for key, raw in demands.items():
            if key in self.records or key in shuffles:
                continue
            ts = scheduler.tasks[key]
            pins = Pins.of(ts)
            signature = seen.get(id(raw)) if pins is None else None
            if signature is None:
                signature = self._signatures.of(raw, pins)
                if pins is None:
                    seen[id(raw)] = signature
            self._manage(ts, signature)

    def _manage(self, ts: TaskState, signature: Signature) -> Record:
        record = self.records[ts.key] = Record(ts, signature)
        ts.annotations[ANNOTATION] = signature.plain  # travels to the worker, which takes plain values only
        self.pump.hold(record)
        return record

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Follow our tasks. Called for every transition of every task, hence what changes nothing is sorted out first."""
        if finish in _UNEVENTFUL:
            return
        record = self.records.get(key)
        if record is None:
            return
        try:
            if finish == "no-worker":
                if start != finish and not record.settling:  # a move out of it that Dask refused shows as none
                    self._inputs.look(record)
                    self.pump.wait(record)
            elif record.holder is not None and not (finish == "memory" and record.ts.actor):
                self._left(record, finish, kwargs.get("startstops"))
            if finish == "forgotten":
                record.gone = True
                del self.records[key]
        except Exception:
            logger.exception("placement lost track of %s (%s to %s)", key, start, finish)

    def _left(self, record: Record, finish: str, startstops: StartStops = None) -> None:
        """Free the charge of a task that left its worker, or let it linger while the call may run on; hold the task again."""
        share = self.pump.left(record)
        outcome: Ended = "done" if finish == "memory" else self._ending(record, finish)
        self.journal.left(record.key, outcome, record.devices, startstops, share)
        if finish == "memory":
            for name in record.devices:
                self.book.succeeded[name] += 1
            if record.signature.demand.stage is not None and record.signature.seen < KEPT:
                self._see(record, startstops, share)
        if finish in ("memory", "erred") or record.ts.actor:
            self.book.release(record)
        else:
            self._release_after_call(record)
        self.pump.hold(record)
        self.pump.arm()

    def _see(self, record: Record, startstops: StartStops, share: int) -> None:
        """Learn from a unit, up to `KEPT` of one kind before what was seen is folded in: more would hardly count."""
        demand, seconds = record.signature.demand, run_seconds(startstops)
        if demand.stage is None or seconds is None:
            return
        if not record.signature.seen:
            self._seen.append(record.signature)
        record.signature.seen += 1
        self.observer.see(demand.stage, demand.model, self.book.pool.slot(record.devices[0]).device, seconds, share)
        if "learn" not in self._timers:
            self.later("learn", LEARN_S, self._learn)

    def _ending(self, record: Record, finish: str) -> Ended:
        if finish == "erred":
            return "oom" if (record.ts.exception_text or "").startswith(_OUT_OF_MEMORY) else "failed"
        here = all(self.book.worker_of.get(name) in self.scheduler.workers for name in record.devices)
        return "cancelled" if here else "lost"

    def _release_after_call(self, record: Record) -> None:
        """Free the charge once its worker says that the call has ended; at once where the worker is gone."""
        address = self.book.worker_of.get(record.devices[0], "")
        if address not in self.scheduler.workers:
            self.book.release(record)
            return
        holder = self.book.linger(record, address)
        self._settling[holder] = record
        record.settling += 1
        # Asked on the next turn: by then Dask has sent the worker what these transitions have for it.
        asyncio.get_running_loop().call_soon(self._ask, address, holder, record.key)

    def _ask(self, address: str, holder: str, key: Key) -> None:
        if address in self.scheduler.stream_comms:
            self.scheduler.worker_send(address, {"op": "dgpunet-settle", "key": key, "holder": holder})

    @_loud
    def _ended(self, holder: str, worker: str | None = None, **kwargs: Any) -> None:
        """Take off the charge of a call that has ended after its task had left."""
        self.book.settle(holder)
        record = self._settling.pop(holder, None)
        if record is not None:
            record.settling -= 1
            if self.pump.waits(record):
                self.pump.wait(record)
        self.pump.arm()

    # What is there when the plugin starts

    def _adopt(self, ts: TaskState) -> bool:
        """Manage a task that came before the plugin; return whether it must be queued anew."""
        raw = (ts.annotations or {}).get(ANNOTATION)
        if raw is None or ts.key in _of_shuffles(self.scheduler, [ts.key, *(d.key for d in ts.dependencies | ts.dependents)]):
            return False
        state, resources = ts.state, ts.resource_restrictions
        record = self._manage(ts, self._signatures.of(raw, Pins.of(ts)))
        if state == "processing":
            ts.resource_restrictions = resources  # Dask gives back what stands here when the task leaves
            here = self.book.devices_of.get(ts.processing_on.address, ())
            if here:
                name = (ts.annotations or {}).get(DEVICE)
                self.book.charge(record, [self.book.pool.slot(name if name in here else here[0])])
        return state in ("queued", "no-worker")

    @_loud
    def _requeue(self, keys: list[Key]) -> None:
        """Send tasks that Dask had queued by its own rules through `waiting`, where the hold applies."""
        moves = {key: "waiting" for key in keys if key in self.records and self.records[key].ts.state in ("queued", "no-worker")}
        self.scheduler.transitions(moves, "dgpunet-adopt")
        self.pump.arm()

    # Workers

    @_loud
    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Take in the devices of a worker."""
        self.book.add_worker(scheduler.workers[worker])
        self.journal.fleet_changed()
        self.pump.arm()

    @_loud
    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """Let go of its devices. Its tasks have left it by now."""
        for holder in self.book.lingering_on(worker):
            self._ended(holder)
        self.book.remove_worker(worker, for_good=worker in self._retired)
        self._retired.discard(worker)
        self.journal.fleet_changed()
        self.pump.arm()

    @_loud
    def log_event(self, topic: str, msg: Any) -> None:
        """Follow what is told only as an event: a worker's status, its retirement, reports of residents, foreign use and hosts."""
        action = msg.get("action") if isinstance(msg, dict) else None
        if action == "worker-status-change":
            ws = self.scheduler.workers.get(topic)
            if ws is not None:
                for device, state in self.book.set_status(ws).items():
                    self.journal.state(device, state)
                self.pump.arm()
        elif action == "remove-worker" and topic == "all" and msg.get("expected"):
            self._retired.add(msg["worker"])
        elif action == "residents" and topic == TOPIC:
            self._residents(msg["device"], msg["residents"], msg.get("worker"))
        elif action in ("foreign", "host") and topic == TOPIC:
            self._reported(action, msg)

    def _reported(self, action: str, msg: Mapping[str, Any]) -> None:
        """Take in what a worker saw of its card or its host."""
        device = msg["device"] if action == "foreign" else f"{msg['host']}/cpu"
        if msg.get("worker") is not None and self.book.worker_of.get(device) != msg["worker"]:
            logger.error("worker %s reports on %s, which is not its own", msg["worker"], device)
            return
        if action == "foreign":
            before = self.book.foreign_mib(device)
            self.book.set_foreign(device, **{name: msg[name] for name in ("used_mib", "ours_mib", "others_mib", "context_mib")})
            if (now := self.book.foreign_mib(device)) != before:
                self.journal.foreign(device, now)
        else:
            self.book.set_host(msg["host"], power=msg["power"], idle_s=msg["idle_s"])
        self.pump.arm()

    def _residents(self, device: str, residents: Iterable[Mapping[str, Any]], worker: str | None) -> None:
        if worker is not None and self.book.worker_of.get(device) != worker:
            logger.error("worker %s reports residents of %s, which is not its own", worker, device)
            return
        self.book.set_residents(device, residents)
        for key in [k for k in self._evicting if k[0] == device and k[1] not in self.book.pool.slot(device).charges]:
            self._evicting.pop(key).cancel()
        self.pump.arm()

    def _evict(self, device: str, holder: str) -> None:
        """Ask the worker of `device` to have an idle resident unloaded; the report of its residents is the answer."""
        if (device, holder) not in self._evicting:
            self._evicting[device, holder] = asyncio.get_running_loop().create_task(self._request_eviction(device, holder))

    async def _request_eviction(self, device: str, holder: str) -> None:
        try:
            await self.scheduler.rpc(self.book.worker_of[device]).dgpunet_evict(device=device, stage=holder)
        except Exception:
            logger.exception("worker of %s could not be asked to unload %s", device, holder)
        await asyncio.sleep(EVICT_RETRY_S)
        self._evicting.pop((device, holder), None)
        self.pump.arm()

    # The end

    @_loud
    def restart(self, scheduler: Scheduler) -> None:
        """Forget all tasks. What they had charged stays until their workers, which are restarted too, have gone."""
        for record in list(self.records.values()):
            record.gone = True
            if record.holder is not None:
                self._release_after_call(record)
        self.records.clear()
        self.pump.queues.clear()

    async def close(self) -> None:
        """Stop asking."""
        for task in self._evicting.values():
            task.cancel()
        for timer in self._timers.values():
            timer.cancel()
        self.pump.close()
        self._evicting.clear()


def _of_shuffles(scheduler: Scheduler, keys: Iterable[Key]) -> frozenset[Key]:
    """Return the tasks of P2P shuffles: barriers, what they wait for and what waits for them. Dask pins those itself."""
    tasks = scheduler.tasks
    barriers = [tasks[k] for k in keys if isinstance(k, str) and k.startswith(_BARRIER) and k in tasks]
    if barriers:
        logger.info("%d P2P shuffles are left to Dask, whatever their tasks demand", len(barriers))
    return frozenset(ts.key for b in barriers for ts in (b, *b.dependencies, *b.dependents))


__all__ = ["HOLD", "NAME", "TOPIC", "PlacementPlugin"]
