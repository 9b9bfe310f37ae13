"""From waiting to processing: the pump asks the pool for each waiting head and hands what it places to Dask.

It runs on its own turn of the event loop, never inside a hook, because Dask's transitions may not be started from within one. Many
events in one turn arm it once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from distributed.protocol.pickle import dumps

from dgpunet_dask.errors import DgpunetError, Unplaceable
from dgpunet_dask.model.decision import Decision
from dgpunet_dask.placement.pool import Plan, Slot
from dgpunet_dask.plugins.book import Book
from dgpunet_dask.plugins.queues import Queue, Queues
from dgpunet_dask.plugins.records import DEVICE, DEVICES, HOLD, DecisionLog, Pins, Record, Signature

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

logger = logging.getLogger(__name__)

_HELD = {HOLD}
_WAIT = Decision("wait")
_NEVER = Decision("never")


class Pump:
    """Waiting tasks, and what moves them.

    Parameters
    ----------
    evict
        Called with device and holder for each idle resident that must leave; the answer is a report of residents.
    """

    def __init__(self, scheduler: Scheduler, book: Book, evict: Callable[[str, str], None]) -> None:
        self.scheduler, self.book, self.evict = scheduler, book, evict
        self.queues = Queues()
        self.log = DecisionLog()
        self._armed = False
        self._stimulus = itertools.count(1)

    # Waiting

    def hold(self, record: Record) -> None:
        """Restrict the task to nowhere, so that Dask parks it in `no-worker` once it is ready."""
        ts = record.ts
        ts.worker_restrictions = _HELD
        ts.host_restrictions = None  # host restrictions would be or-ed with the worker's
        ts.resource_restrictions = record.signature.resources
        ts.loose_restrictions = False  # loose would let it escape

    def wait(self, record: Record) -> None:
        """Let a parked task wait for a device."""
        self.queues.push(record, self._plan_of)
        self.arm()

    def _plan_of(self, signature: Signature) -> Plan | None:
        return None if signature.error is not None else self.book.pool.plan(signature.demand)

    def waits(self, record: Record) -> bool:
        """Whether a queued record still is a parked task of ours without a device."""
        return record.holder is None and record.ts.state == "no-worker" and not record.settling and not record.gone

    def arm(self) -> None:
        """Run the pump on the next turn of the loop."""
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self.run)

    # Placing

    def run(self) -> None:
        """Place what can be placed now."""
        self._armed = False
        try:
            self._run()
        except Exception:
            logger.exception("the placement pump failed; waiting tasks stay until the next event")

    def _run(self) -> None:
        barred: set[str] = set()
        placed: list[Record] = []
        failed: list[tuple[Record, DgpunetError]] = []
        for queue in self.queues.in_order(self.waits):
            try:
                self._serve(queue, barred, placed, failed)
            except Exception:
                logger.exception("tasks that demand %s could not be placed; they stay until the next event", queue.signature.name)
        if placed:
            stimulus = f"dgpunet-place-{next(self._stimulus)}"
            moves = {record.key: "processing" for record in reversed(placed)}  # Dask pops the last one first
            self.scheduler.transitions(moves, stimulus)
            for record in placed:
                self._undo_unless_moved(record)
        for record, error in failed:
            self._fail(record, error)

    def _serve(self, queue: Queue, barred: set[str], placed: list[Record], failed: list[tuple[Record, DgpunetError]]) -> None:
        """Place from one queue until its head cannot be placed."""
        error = self._look(queue)
        while error is None:
            record = queue.head(self.waits)
            if record is None:
                return
            obstacle = self._place_head(queue, record, barred)
            if obstacle is None:
                placed.append(record)
                queue.pop()
            elif obstacle.outcome == "never":
                error = self._impossible(queue.signature)
            else:
                self._keep_free(queue, obstacle, barred)
                return
        while (record := queue.head(self.waits)) is not None:
            failed.append((record, error))
            queue.pop()

    def _look(self, queue: Queue) -> DgpunetError | None:
        """Refresh what the queue knows of the fleet; return the error that all its tasks fail with, if any."""
        if queue.plan is not None:
            queue.plan = self.book.pool.current(queue.plan)
        if queue.signature.pins is not None:
            queue.only = self._pinned(queue.signature.pins)[0]
        return queue.signature.error

    def _place_head(self, queue: Queue, record: Record, barred: Collection[str]) -> Decision | None:
        """Place `record` and return ``None``, or return the decision that stands in the way: wait, never, or evict first."""
        signature, pool, plan = queue.signature, self.book.pool, queue.plan
        assert plan is not None  # only queues with an error have none, and those are not placed
        if signature.pins is None and signature.demand.gpus == 1:
            slot = pool.pick(plan, barred)
            if slot is None:
                return _WAIT if plan.tiers or not len(pool) else _NEVER
            if slot.charges and (evict := pool.evict(slot.name, signature.demand)):
                return Decision("placed", devices=(slot.name,), evict=evict)
            slots: tuple[Slot, ...] = (slot,)
        else:
            decision = self.decide(signature, barred)
            if decision.outcome != "placed" or decision.evict:
                return decision
            slots = tuple(pool.slot(name) for name in decision.devices)
        self._send(record, slots, plan)
        for slot in slots:
            self.queues.passed(queue, slot.kind, slot.name)
        return None

    def decide(self, signature: Signature, barred: Collection[str] = (), *, verdicts: bool = False) -> Decision:
        """Return what the pool says to `signature`, within the user's pins."""
        pool, pins = self.book.pool, signature.pins
        if pins is None:
            return pool.place(signature.demand, verdicts=verdicts, barred=barred)
        only, complete = self._pinned(pins)
        if only is None:
            return pool.place(signature.demand, verdicts=verdicts, barred=barred)
        decision = pool.place(signature.demand, verdicts=verdicts, barred=barred, among=only)
        if pins.loose and decision.outcome != "placed":
            return pool.place(signature.demand, verdicts=verdicts, barred=barred, among=self._offering(pins))
        if decision.outcome == "never" and not complete:
            return Decision("wait", decision.ranking, decision.refusals)
        return decision

    def _pinned(self, pins: Pins) -> tuple[frozenset[str] | None, bool]:
        """Return the devices that `pins` leave, and whether every worker that they name is here."""
        s = self.scheduler
        offering = self._offering(pins)
        if not pins.workers and not pins.hosts:
            return offering, bool(offering)
        infos = [s.host_info.get(s.coerce_hostname(h)) for h in pins.hosts]
        at_hosts = {address for info in infos if info is not None for address in info["addresses"]}
        addresses = pins.workers | at_hosts
        complete = pins.workers <= s.workers.keys() and None not in infos
        return frozenset(n for a in addresses for n in self.book.devices_of.get(a, ()) if n in offering), complete

    def _offering(self, pins: Pins) -> frozenset[str]:
        """Return the devices whose worker offers the resources that the user asked of Dask."""
        workers, book = self.scheduler.workers, self.book
        able = (a for a in book.devices_of if all(workers[a].resources.get(r, 0) >= q for r, q in pins.resources))
        return frozenset(name for address in able for name in book.devices_of[address])

    def _send(self, record: Record, slots: tuple[Slot, ...], plan: Plan) -> None:
        """Charge, and point the task at the one worker of its first device.

        The interlock, a worker resource per device, keeps two units from one device even where the ledger was wrong. It counts whole
        MiB, since sums of floats drift.
        """
        book, ts, stage = self.book, record.ts, record.signature.demand.stage
        key = str(record.key)
        holder = book.charge(record, slots, plan)
        address = book.worker_of[slots[0].name]
        resources = dict(record.signature.resources)
        for slot in slots:
            name, charge = slot.name, slot.charges[holder]
            amount = charge.vram_mib if slot.is_gpu else charge.cpus
            if amount and book.worker_of[name] == address:
                resources[book.resource_of[name]] = amount
            self.log.add(key, stage, name, charge.vram_mib, slot.charged_mib, slot.usable_mib)
        ts.worker_restrictions = {address}
        ts.resource_restrictions = resources
        ts.annotations[DEVICE] = slots[0].name
        if len(slots) > 1:
            ts.annotations[DEVICES] = list(record.devices)

    def _undo_unless_moved(self, record: Record) -> None:
        """Take back a placement that Dask did not accept."""
        if record.ts.state == "no-worker" and record.holder is not None:
            logger.error("Dask did not accept %s on %s; it waits again", record.key, ", ".join(record.devices))
            self.book.release(record)
            self.hold(record)
            self.queues.push(record, self._plan_of)

    # Not placed

    def _keep_free(self, queue: Queue, decision: Decision, barred: set[str]) -> None:
        """Keep others from devices that empty for this queue: those whose residents it sends away, and those an aged head needs."""
        if decision.outcome == "placed":
            barred.update(decision.devices)
            for name in decision.devices:
                for holder in decision.evict:
                    if holder in self.book.pool.slot(name).charges:
                        self.evict(name, holder)
        elif queue.aged and self._needs_emptying(queue):
            running = all(n in self.book.worker_of and self.book.pool.slot(n).state == "running" for n in queue.kept)
            if not queue.kept or not running or barred.intersection(queue.kept):
                queue.kept = self.book.pool.ideal(queue.signature.demand, barred, queue.only)
            barred.update(queue.kept)

    @staticmethod
    def _needs_emptying(queue: Queue) -> bool:
        """Whether waiting first in line is not enough: several cards must be free at once, or a CPU is shared by small units."""
        return queue.plan is not None and (queue.signature.demand.gpus > 1 or any(k.device.kind == "cpu" for k in queue.plan.classes))

    def _impossible(self, signature: Signature) -> Unplaceable:
        decision = self.decide(signature, verdicts=True)
        verdicts = [v.to_json() for v in decision.first_verdicts]
        return Unplaceable(what=f"a demand of {signature.name}", summary=decision.summary(), verdicts=verdicts)

    def _fail(self, record: Record, error: DgpunetError) -> None:
        """Let the task err with `error`."""
        if not self.waits(record):
            return
        stimulus = f"dgpunet-refuse-{next(self._stimulus)}"
        more = self.scheduler.transition(
            record.key, "erred", stimulus_id=stimulus, cause=record.key, exception=dumps(error), exception_text=repr(error)
        )
        self.scheduler.transitions(more, stimulus)
