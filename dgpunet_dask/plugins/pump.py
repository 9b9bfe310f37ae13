"""From waiting to processing: the pump asks the pool for each waiting head and hands what it places to Dask.

It runs on its own turn of the event loop, never inside a hook, because Dask's transitions may not be started from within one. Many
events in one turn arm it once. Work that waits by choice is booked for the length of one pass, so that a burst goes where one unit after
the other would send it; should the choice come to be in doubt because a unit takes much longer than expected, a timer arms the pump.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from distributed.protocol.pickle import dumps

from dgpunet_dask.errors import DgpunetError, Unplaceable
from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.placement.feasible import whole_mib
from dgpunet_dask.placement.fixes import nearest
from dgpunet_dask.placement.order import Standing, Turns, gives_way
from dgpunet_dask.placement.plans import NEVER_S, Plan
from dgpunet_dask.placement.slots import Slot
from dgpunet_dask.plugins.book import Book
from dgpunet_dask.plugins.journal import Journal
from dgpunet_dask.plugins.queues import Queue, Queues
from dgpunet_dask.plugins.records import DEVICE, DEVICES, HOLD, VRAM, DecisionLog, Pins, Record, Signature
from dgpunet_dask.plugins.usage import Usage

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

logger = logging.getLogger(__name__)

_HELD = {HOLD}
_WAIT = Decision("wait")
_NEVER = Decision("never")


class Pass:
    """What one run of the pump has come to so far: what it placed and what must fail, devices that others may not use, who gave way."""

    __slots__ = ("barred", "doubt_s", "failed", "placed", "yielded")

    def __init__(self) -> None:
        self.barred: set[str] = set()
        self.placed: list[Record] = []
        self.failed: list[tuple[Record, DgpunetError]] = []
        self.yielded: list[tuple[Queue, Decision]] = []
        self.doubt_s = NEVER_S


class Pump:
    """Waiting tasks, and what moves them.

    Parameters
    ----------
    journal
        Told what comes and where it goes.
    evict
        Called with device and holder for each idle resident that must leave; the answer is a report of residents.
    clock
        Seconds; only differences count.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        book: Book,
        journal: Journal,
        evict: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler, self.book, self.journal, self.evict, self.clock = scheduler, book, journal, evict, clock
        self.queues = Queues()
        self.usage = Usage(book.pool.policy)
        self.log = DecisionLog()
        self._armed = False
        self._doubt: asyncio.TimerHandle | None = None
        self._stimulus = itertools.count(1)
        book.pool.begin(clock())

    def set_policy(self, policy: Policy) -> None:
        """Place what waits under `policy`; what runs stays where it is."""
        self.book.pool.set_policy(policy)
        self.usage.set_policy(policy)
        self.arm()

    def set_estimates(self, estimates: Estimates) -> None:
        """Place what waits by `estimates`."""
        if estimates != self.book.pool.estimates:
            self.book.pool.set_estimates(estimates)
            self.arm()

    def look(self) -> None:
        """Let the pool tell the remaining times of running units as of now. Not within a pass."""
        self.book.pool.begin(self.clock())

    def close(self) -> None:
        """Stop the timer."""
        if self._doubt is not None:
            self._doubt.cancel()

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
        if record.signature.error is None:
            self.journal.submitted(record.key, record.signature.demand)
        if not self._armed:
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
        pool = self.book.pool
        pool.begin(self.clock())
        at, queues = Pass(), self.queues.waiting(self.waits)
        for queue in queues:
            queue.booked = 0
            if queue.plan is not None and (plan := pool.current(queue.plan)) is not queue.plan:
                queue.set_plan(plan)
        shared = self.usage.begin(q.plan.request.demand.user for q in queues if q.plan is not None)
        if shared:
            self._take_turns(Turns(queues, self._standing), at)
        else:  # nothing that is placed changes the order
            for queue in sorted(queues, key=_alone) if len(queues) > 1 else queues:
                self._try(queue, at, None)
        for queue, decision in at.yielded:  # those who were let go first have not come
            if not any(pool.slot(name).activations for name in decision.devices) and not at.barred.intersection(decision.devices):
                self._keep_free(queue, decision, at.barred)
        self._hand_over(at)
        self._doubt_from(at.doubt_s)

    def _standing(self, queue: Queue) -> Standing:
        return queue.standing(self.usage.of)

    def _take_turns(self, turns: Turns[Queue], at: Pass) -> None:
        while (queue := turns.pop()) is not None:
            if self._try(queue, at, 1) and queue.head(self.waits) is not None:
                turns.push(queue)

    def _try(self, queue: Queue, at: Pass, most: int | None) -> bool:
        try:
            return self._serve(queue, at, most)
        except Exception:
            logger.exception("tasks that demand %s could not be placed; they stay until the next event", queue.signature.name)
            return False

    def _hand_over(self, at: Pass) -> None:
        """Have Dask move what was placed, and fail what cannot be."""
        if at.placed:
            stimulus = f"dgpunet-place-{next(self._stimulus)}"
            moves = {record.key: "processing" for record in reversed(at.placed)}  # Dask pops the last one first
            self.scheduler.transitions(moves, stimulus)
            for record in at.placed:
                if record.ts.state == "no-worker" and record.holder is not None:
                    self._undo(record)
        for record, error in at.failed:
            self._fail(record, error)

    def _serve(self, queue: Queue, at: Pass, most: int | None) -> bool:
        """Place `most` tasks of one queue, or as many as can be; return whether more may follow in this pass."""
        error = self._look(queue)
        while error is None:
            if most is not None and most <= 0:
                return True
            record = queue.head(self.waits)
            if record is None:
                return False
            obstacle = self._place_head(queue, record, at)
            if obstacle is None:
                at.placed.append(record)
                queue.pop()
                most = None if most is None else most - 1
            elif obstacle.outcome == "never":
                error = self._impossible(queue.signature)
            else:
                self._stand_back(queue, obstacle, at)
                return False
        while (record := queue.head(self.waits)) is not None:
            at.failed.append((record, error))
            queue.pop()
        return False

    def _look(self, queue: Queue) -> DgpunetError | None:
        """Refresh what the queue knows of the fleet; return the error that all its tasks fail with, if any."""
        if queue.signature.pins is not None:
            queue.only = self._pinned(queue.signature.pins)[0]
        return queue.signature.error

    def _place_head(self, queue: Queue, record: Record, at: Pass) -> Decision | None:
        """Place `record` and return ``None``, or return the decision that stands in the way: wait, never, or evict first."""
        plan, signature = queue.plan, queue.signature
        assert plan is not None  # only queues with an error have none, and those are not placed
        if self.book.coming(plan):
            return _WAIT
        if signature.pins is None and plan.one_card:
            slot = self._choose(queue, plan, at)
            if slot is None:
                return _NEVER if plan.final and not plan.able else _WAIT
            if slot.charges and (evict := plan.evict(slot)):
                return Decision("placed", devices=(slot.name,), evict=evict)
            slots: tuple[Slot, ...] = (slot,)
        else:
            decision = self._decide_in_line(queue, plan, at)
            if decision.outcome != "placed" or decision.evict:
                return decision
            slots = tuple(self.book.pool.slot(name) for name in decision.devices)
        self._send(record, slots, plan)
        for slot in slots:
            self.queues.passed(queue, slot.kind, slot.name)
        return None

    def _choose(self, queue: Queue, plan: Plan, at: Pass) -> Slot | None:
        """Choose for the head of `queue`, and book what those before it in the line wait for by choice."""
        pool, waiting = self.book.pool, 1
        if plan.may_wait:
            waiting = queue.waiting
            if waiting <= 0:
                return None
        slot, ahead = pool.choose(plan, at.barred, waiting)
        if ahead:
            for name, seconds in ahead:
                pool.book(name, seconds)
            queue.booked += len(ahead)
            at.doubt_s = min(at.doubt_s, pool.doubted_s(plan, [name for name, _ in ahead]))
        return slot

    def _decide_in_line(self, queue: Queue, plan: Plan, at: Pass) -> Decision:
        """Decide fully for one task of `queue` after the other, and book what those wait for by choice, until one is placed."""
        pool = self.book.pool
        while True:
            decision = self.decide(queue.signature, at.barred)
            if decision.outcome == "never" and not decision.final:
                return _WAIT
            if decision.outcome != "wait" or decision.waits_for is None or not decision.ranking or queue.waiting <= 1:
                return decision
            pool.book(decision.waits_for, plan.request.run_s(pool.slot(decision.waits_for).device))
            queue.booked += 1
            at.doubt_s = min(at.doubt_s, pool.doubted_s(plan, [decision.waits_for]))

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
        """Return the devices that `pins` leave, and whether every worker that they may mean is here."""
        s = self.scheduler
        offering, settled = self._offering(pins), not self.book.expected
        if not pins.workers and not pins.hosts:
            return offering, bool(offering) and settled
        infos = [s.host_info.get(s.coerce_hostname(h)) for h in pins.hosts]
        at_hosts = {address for info in infos if info is not None for address in info["addresses"]}
        addresses = pins.workers | at_hosts
        complete = settled and pins.workers <= s.workers.keys() and None not in infos  # a host's workers come one by one
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
        book, ts, demand = self.book, record.ts, plan.request.demand
        key = str(record.key)
        holder = book.charge(record, slots, plan)
        self.usage.start(record, plan, slots, book.pool.now)
        address = book.worker_of[slots[0].name]
        resources = dict(record.signature.resources)
        for slot in slots:
            name, charge = slot.name, slot.charges[holder]
            amount = charge.vram_mib if slot.is_gpu else charge.cpus
            if amount and book.worker_of[name] == address:
                resources[book.resource_of[name]] = amount
            self.log.add(
                key, demand.stage, name, charge.vram_mib, slot.charged_mib, slot.usable_mib, demand.user, demand.priority, charge.ends_s
            )
        self.journal.placed(key, record.devices, book.pool.policy.digest)
        ts.worker_restrictions = {address}
        ts.resource_restrictions = resources
        ts.annotations[DEVICE] = slots[0].name
        ts.annotations[VRAM] = _cap_mib(slots, demand.vram_mib)
        if len(slots) > 1:
            ts.annotations[DEVICES] = list(record.devices)

    def left(self, record: Record) -> int:
        """Count what a task has used that is about to leave its devices; return one of how many units it was there."""
        slots = self.book.pool.slots_of(record.devices)
        self.usage.stop(record, slots, self.clock())
        slot = slots[0]
        return slot.activations if slot.is_gpu else 1

    def _undo(self, record: Record) -> None:
        """Take back a placement that Dask did not accept."""
        logger.error("Dask did not accept %s on %s; it waits again", record.key, ", ".join(record.devices))
        self.left(record)
        self.book.release(record)
        self.hold(record)
        self.queues.push(record, self._plan_of)

    # Not placed

    def _stand_back(self, queue: Queue, decision: Decision, at: Pass) -> None:
        """Note what the head of `queue`, which was not placed, asks of those that come after it."""
        if decision.outcome == "placed" and self._gives_way(queue, decision):
            at.yielded.append((queue, decision))
        elif not queue.booked:
            self._keep_free(queue, decision, at.barred)

    def _gives_way(self, queue: Queue, decision: Decision) -> bool:
        charges = [self.book.pool.slot(name).charges for name in decision.devices]
        leaving = [held[holder] for held in charges for holder in decision.evict if holder in held]
        others = ((q.urgency, q.plan.request.demand) for q in self.queues if q is not queue and q.plan is not None and len(q))
        return gives_way(queue.urgency, aged=queue.aged, leaving=leaving, others=others)

    def _keep_free(self, queue: Queue, decision: Decision, barred: set[str]) -> None:
        """Keep others from devices that empty for this queue: those whose residents it sends away, and those an aged head needs."""
        if decision.outcome == "placed":
            barred.update(decision.devices)
            for name in decision.devices:
                for holder in decision.evict:
                    if holder in self.book.pool.slot(name).charges:
                        self.evict(name, holder)
        elif queue.aged and queue.plan is not None and self._needs_emptying(queue.plan):
            running = all(n in self.book.worker_of and self.book.pool.slot(n).state == "running" for n in queue.kept)
            if not queue.kept or not running or barred.intersection(queue.kept):
                queue.kept = self.book.pool.ideal(queue.plan, barred, queue.only)
            barred.update(queue.kept)

    def _needs_emptying(self, plan: Plan) -> bool:
        """Whether waiting first in line is not enough: several cards must be free at once, or small units share what it needs."""
        return plan.demand.gpus > 1 or self.book.pool.shared or any(not kind.is_gpu for kind in plan.able)

    def _doubt_from(self, moment: float) -> None:
        """Arm the pump for the moment from which some unit that is waited for is overdue."""
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        if moment != NEVER_S:
            wait_s = max(0.0, moment - self.clock()) + _LATER_S
            self._doubt = asyncio.get_running_loop().call_later(wait_s, self.arm)

    def _impossible(self, signature: Signature) -> Unplaceable:
        decision = self.decide(signature, verdicts=True)
        verdicts = [v.to_json() for v in decision.first_verdicts]
        self.journal.decided(signature.name, decision)
        pool = self.book.pool
        fix = nearest(pool.fleet(), signature.demand, pool.policy, pool.estimates)
        what = f"a demand of {signature.name}"
        return Unplaceable(what=what, summary=decision.summary(), verdicts=verdicts, fix=None if fix is None else str(fix))

    def _fail(self, record: Record, error: DgpunetError) -> None:
        """Let the task err with `error`."""
        if not self.waits(record):
            return
        stimulus = f"dgpunet-refuse-{next(self._stimulus)}"
        more = self.scheduler.transition(
            record.key, "erred", stimulus_id=stimulus, cause=record.key, exception=dumps(error), exception_text=repr(error)
        )
        self.scheduler.transitions(more, stimulus)


def _alone(queue: Queue) -> Standing:
    """Return the sort key where all work is of one user."""
    return queue.standing(_no_share)


def _no_share(_: str | None) -> float:
    return 0.0


#: A timer may fire a little early; then nothing would be overdue yet.
_LATER_S = 0.01


def _cap_mib(slots: Collection[Slot], vram_mib: int | None) -> int:
    """Return what a unit may use on each of its cards, its loaded stage included."""
    if vram_mib is not None:
        return vram_mib
    return min((whole_mib(s.device, s.charges.values()) for s in slots if s.is_gpu), default=0)
