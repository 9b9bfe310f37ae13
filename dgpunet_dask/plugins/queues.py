"""Tasks that wait for a device, one queue per signature, and the order in which the queues are served.

Order: urgency, then aged queues, then the priority that Dask gave the head. A queue whose head cannot be placed is passed over, so that a large demand
does not keep small ones from devices that it cannot use. So that it is not passed over for ever, each placement of work that is not
more urgent, on a device that the head could use, is counted: from `PATIENCE` on the queue is *aged*, and the pump keeps devices free
for it. Counting placements and not seconds makes the order the same in every run.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from dgpunet_dask.placement.pool import DeviceClass, Plan
from dgpunet_dask.plugins.records import Record, Signature

#: Placements that may pass the head of a queue before devices are kept free for it.
PATIENCE: Final = 16

#: Priority, number of arrival, task.
Entry: TypeAlias = tuple[Any, int, Record]


class Queue:
    """The waiting tasks of one signature, the lowest priority tuple first.

    Dask lets tasks become ready in the order of their priorities, nearly always, so they are kept in a plain line; only a task that
    comes out of order goes to a heap.

    `only` names the devices that the user's pins leave, ``None`` without pins. `kept` are those held free for an aged queue.
    """

    __slots__ = ("_count", "_late", "_line", "kept", "only", "passed", "plan", "signature")

    def __init__(self, signature: Signature, plan: Plan | None) -> None:
        self.signature = signature
        self.plan = plan
        self.passed = 0
        self.kept: tuple[str, ...] = ()
        self.only: frozenset[str] | None = None
        self._line: deque[Entry] = deque()
        self._late: list[Entry] = []
        self._count = 0

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
        while (entry := self.first()) is not None:
            if waits(entry[2]):
                return entry[2]
            self._drop(entry)
        return None

    def pop(self) -> None:
        """Drop the head: it has been placed. The next one starts with full patience."""
        entry = self.first()
        assert entry is not None
        self._drop(entry)
        self.passed, self.kept = 0, ()

    def _drop(self, entry: Entry) -> None:
        if self._line and entry is self._line[0]:
            self._line.popleft()
        else:
            heapq.heappop(self._late)

    @property
    def aged(self) -> bool:
        """Whether the head has been passed too often."""
        return self.passed >= PATIENCE

    @property
    def order(self) -> tuple[int, bool, Any]:
        """The sort key among queues. Only for a queue that is not empty."""
        entry = self.first()
        assert entry is not None
        return (self.signature.urgency, not self.aged, entry[:2])

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

    def in_order(self, waits: Callable[[Record], bool]) -> list[Queue]:
        """Return the queues that have a waiting head, first to be served first; empty ones are dropped."""
        queues = self._queues
        for signature in [s for s, queue in queues.items() if queue.head(waits) is None]:
            del queues[signature]
        return list(queues.values()) if len(queues) < 2 else sorted(queues.values(), key=lambda q: q.order)

    def passed(self, by: Queue, kind: DeviceClass, device: str) -> None:
        """Count a placement from queue `by` on `device`, of class `kind`, against every other queue that could have used it."""
        if len(self._queues) < 2:
            return
        urgency = by.signature.urgency
        for queue in self._queues.values():
            if queue is by or queue.plan is None or urgency < queue.signature.urgency or kind not in queue.plan.classes:
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
