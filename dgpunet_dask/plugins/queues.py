"""Tasks that wait for a device, one queue per signature. `placement.order` says which queue is served next and which has aged."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from dgpunet_dask.placement.order import Standing, is_aged, passes, standing, urgency_of
from dgpunet_dask.placement.plans import Plan
from dgpunet_dask.placement.slots import DeviceClass
from dgpunet_dask.plugins.records import Record, Signature

#: Priority, number of arrival, task.
Entry: TypeAlias = tuple[Any, int, Record]


class Queue:
    """The waiting tasks of one signature, the lowest priority tuple first.

    Dask lets tasks become ready in the order of their priorities, nearly always, so they are kept in a plain line; only a task that
    comes out of order goes to a heap.

    `only` names the devices that the user's pins leave, ``None`` without pins. `kept` are those held free for an aged queue. `booked`
    counts the tasks that wait by choice in the present pass, `devices` those that could hold the demand when free.
    """

    __slots__ = ("_count", "_late", "_line", "booked", "devices", "kept", "only", "passed", "plan", "signature", "urgency")

    def __init__(self, signature: Signature, plan: Plan | None) -> None:
        self.signature = signature
        self.passed = self.booked = 0
        self.kept: tuple[str, ...] = ()
        self.only: frozenset[str] | None = None
        self._line: deque[Entry] = deque()
        self._late: list[Entry] = []
        self._count = 0
        self.set_plan(plan)

    def set_plan(self, plan: Plan | None) -> None:
        """Take what the demand means to the fleet and under the policy as they are now; ``None`` for a demand that cannot be read."""
        self.plan = plan
        self.urgency = urgency_of(None if plan is None else plan.request.demand.priority)
        self.devices = 0 if plan is None else sum(kind.size for kind in plan.able)

    def push(self, record: Record) -> None:
        """Add a task."""
        self._count += 1
        entry = (record.ts.priority, self._count, record)
        if not self._line or self._line[-1][0] <= entry[0]:
            self._line.append(entry)
        else:
            heapq.heappush(self._late, entry)

    def first(self) -> Entry | None:
        """Return the entry of the lowest priority, whether its task still waits or not."""
        line, late = self._line, self._late
        if late and (not line or late[0] < line[0]):
            return late[0]
        return line[0] if line else None

    def head(self, waits: Callable[[Record], bool]) -> Record | None:
        """Return the first task for which `waits` still holds; others have moved on and are dropped."""
        while (entry := self.first() if self._late or not self._line else self._line[0]) is not None:
            if waits(entry[2]):
                return entry[2]
            self._drop(entry)
        return None

    def pop(self) -> None:
        """Drop the head: it has been placed. The next one starts with full patience."""
        if self._late:
            entry = self.first()
            assert entry is not None
            self._drop(entry)
        else:
            self._line.popleft()
        self.passed, self.kept = 0, ()

    def _drop(self, entry: Entry) -> None:
        if self._line and entry is self._line[0]:
            self._line.popleft()
        else:
            heapq.heappop(self._late)

    @property
    def aged(self) -> bool:
        """Whether the head has been passed too often."""
        return is_aged(self.passed, self.devices)

    @property
    def waiting(self) -> int:
        """How many tasks wait that have booked nothing in the present pass."""
        return len(self._line) + len(self._late) - self.booked

    def standing(self, share_of: Callable[[str | None], float]) -> Standing:
        """Return the sort key among queues. Only for a queue that is not empty."""
        entry = self.first()
        assert entry is not None
        if self.plan is None:
            return standing(priority=None, aged=self.aged, share=0.0, work_s=0.0, arrival=entry[:2])
        demand = self.plan.request.demand
        share, work_s = share_of(demand.user), self.plan.work_s
        return standing(priority=demand.priority, aged=self.aged, share=share, work_s=work_s, arrival=entry[:2])

    def __len__(self) -> int:
        return len(self._line) + len(self._late)


class Queues:
    """All queues."""

    def __init__(self) -> None:
        self._queues: dict[Signature, Queue] = {}

    def push(self, record: Record, plan_of: Callable[[Signature], Plan | None]) -> None:
        """Let `record` wait."""
        queue = self._queues.get(record.signature)
        if queue is None:
            queue = self._queues[record.signature] = Queue(record.signature, plan_of(record.signature))
        queue.push(record)

    def waiting(self, waits: Callable[[Record], bool]) -> list[Queue]:
        """Return the queues that have a waiting head; empty ones are dropped."""
        queues = self._queues
        for signature in [s for s, queue in queues.items() if queue.head(waits) is None]:
            del queues[signature]
        return list(queues.values())

    def passed(self, by: Queue, kind: DeviceClass, device: str) -> None:
        """Count a placement from queue `by` on `device`, of class `kind`, against every other queue that could have used it."""
        if len(self._queues) < 2:
            return
        for queue in self._queues.values():
            if queue is by or queue.plan is None or not passes(by.urgency, queue.urgency) or kind not in queue.plan.classes:
                continue
            if queue.only is None or device in queue.only:
                queue.passed += 1

    def clear(self) -> None:
        """Drop everything."""
        self._queues.clear()

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._queues.values())

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))
