"""Where the inputs of a task lie that is ready: what would take long to bring counts for where the task goes.

Only links that were measured count, so that a cluster on one machine never looks. A task whose inputs are worth it waits in the queue of
those with equal inputs; sizes are rounded, so that there are few of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dgpunet_dask.plugins.records import Record, Signature

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

#: Inputs that every link brings sooner are left out: a demand with inputs is weighed in full, on every device.
LEAST_S: Final = 0.1


class Inputs:
    """Measured links, and the signatures with inputs that were made of others.

    Parameters
    ----------
    host_of
        The host of a worker by its address, ``None`` where it speaks for no device.
    """

    MOST: Final = 4096

    def __init__(self, host_of: Callable[[str], str | None]) -> None:
        self._host_of = host_of
        self._slowest: dict[str, float] = {}
        self._made: dict[tuple[int, tuple[tuple[str, int], ...]], Signature] = {}
        self._bases: dict[Signature, Signature] = {}

    def set_links(self, links: Mapping[tuple[str, str], float]) -> None:
        """Take the measured bytes per second from one host to another."""
        self._slowest = {}
        for (src, _), rate in links.items():
            self._slowest[src] = min(rate, self._slowest.get(src, math.inf))

    def look(self, record: Record) -> None:
        """Give `record`, which is ready, the signature that says where its large inputs lie; it states none of its own."""
        base = self._bases.get(record.signature, record.signature)
        record.signature = base
        if not self._slowest or not record.ts.dependencies or base.error is not None or base.demand.inputs:
            return
        inputs = self._large(record.ts)
        if inputs:
            record.signature = self._with(base, inputs)

    def _large(self, ts: TaskState) -> dict[str, int]:
        """Return the bytes of the inputs on each host from which bringing them may take long."""
        found: dict[str, int] = {}
        for dep in ts.dependencies:
            holders = sorted(host for ws in dep.who_has or () if (host := self._host_of(ws.address)) is not None)
            if holders:  # of several copies one counts
                found[holders[0]] = found.get(holders[0], 0) + max(0, dep.nbytes)
        return {host: rounded(n) for host, n in found.items() if n >= LEAST_S * self._slowest.get(host, math.inf)}

    def _with(self, base: Signature, inputs: Mapping[str, int]) -> Signature:
        key = (id(base), tuple(sorted(inputs.items())))
        if key not in self._made:
            if len(self._made) >= self.MOST:
                self._made.clear()
                self._bases.clear()
            made = self._made[key] = Signature(replace(base.demand, inputs=dict(inputs)), base.pins)
            self._bases[made] = base  # which keeps `base` alive, and its id its own
        return self._made[key]


def rounded(nbytes: int) -> int:
    """Return the power of the square root of two that is nearest to `nbytes`: at most a fifth off."""
    return round(2 ** (round(2 * math.log2(nbytes)) / 2)) if nbytes > 0 else 0
