"""What the scheduler plugin remembers of each managed task, and the tables that its tasks share."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dgpunet_dask.errors import BadValue, DgpunetError
from dgpunet_dask.model.demand import Demand

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

#: The annotation that makes a task ours: ``dask.annotate(demand={"vram": "4GiB"})``.
ANNOTATION: Final = "demand"
#: The annotations that tell a running task where it is.
DEVICE: Final = "dgpunet_device"
DEVICES: Final = "dgpunet_devices"
#: The annotation with the VRAM that the task was charged for, in MiB on each card: its peak, with what its stage holds there already.
VRAM: Final = "dgpunet_vram_mib"
#: A worker address that never exists: a task restricted to it waits in Dask's `no-worker` state. An empty set would mean "anywhere".
HOLD: Final = "dgpunet-placement://hold"
LOG_MAX: Final = 10_000


class Pins(NamedTuple):
    """What the user asked of Dask for a task beside its demand: ``workers=``, ``allow_other_workers=``, ``resources=``."""

    workers: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    loose: bool = False
    resources: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, ts: TaskState) -> Pins | None:
        """Return the pins of a task that has just entered the scheduler, ``None`` where it has none."""
        if not (ts.worker_restrictions or ts.host_restrictions or ts.resource_restrictions):
            return None
        resources = tuple(sorted((ts.resource_restrictions or {}).items()))
        return cls(
            frozenset(ts.worker_restrictions or ()), frozenset(ts.host_restrictions or ()), bool(ts.loose_restrictions), resources
        )


class Signature:
    """Tasks that ask for the same thing: one demand, one set of pins. They wait in one queue and share every verdict.

    `error` is what a demand that cannot be read fails with; its tasks fail once they are ready. `seen` counts units from which the
    scheduler has learned lately.
    """

    __slots__ = ("demand", "error", "pins", "plain", "resources", "seen")

    def __init__(self, demand: Demand, pins: Pins | None = None, error: DgpunetError | None = None) -> None:
        self.demand, self.pins, self.error = demand, pins, error
        self.plain = demand.to_mapping()
        self.seen = 0
        self.resources = dict(pins.resources) if pins is not None else {}

    @property
    def name(self) -> str:
        """A short description for messages and logs."""
        return ", ".join(f"{k}={v}" for k, v in self.plain.items()) or "a whole card"


class Signatures:
    """The signatures met so far, so that equal ones are one object."""

    MOST: Final = 4096

    def __init__(self) -> None:
        self._known: dict[tuple[Demand, str, Pins | None], Signature] = {}

    def of(self, raw: Any, pins: Pins | None) -> Signature:
        """Return the signature of an annotation; a malformed one gives a signature with an `error`."""
        try:
            demand = Demand.parse(raw)
            key = (demand, repr(sorted(demand.inputs.items())), pins)
        except BadValue as error:
            return Signature(Demand(), pins, error)
        except Exception as error:  # whatever a user put there, it must fail this task alone
            return Signature(Demand(), pins, BadValue(what=ANNOTATION, value=raw, why=str(error) or type(error).__name__))
        if len(self._known) >= self.MOST:
            self._known.clear()
        return self._known.setdefault(key, Signature(demand, pins))


class Record:
    """One managed task.

    Parameters
    ----------
    holder
        Under which its charge lies in the pool, ``None`` while it has none.
    settling
        How many earlier calls of this task may still run on a worker that has been asked.
    gone
        The scheduler has forgotten the task.
    user, cost_s, since_s
        Whose share the present call counts for, what was counted ahead, and since when.
    """

    __slots__ = ("cost_s", "devices", "gone", "holder", "key", "settling", "signature", "since_s", "ts", "user")

    def __init__(self, ts: TaskState, signature: Signature) -> None:
        self.key = ts.key
        self.ts = ts
        self.signature = signature
        self.holder: str | None = None
        self.devices: tuple[str, ...] = ()
        self.settling = 0
        self.gone = False
        self.user: str | None = None
        self.cost_s = self.since_s = 0.0


class DecisionLog:
    """The last placements, oldest first. `seq` counts from 1 and never repeats."""

    #: Sizes in MiB; `charged_mib` is the device's sum after this decision, `usable_mib` is ``None`` for a CPU; `estimate_s`: seconds
    #: until it was expected to end, ``None`` where that was not known.
    FIELDS: Final = ("seq", "key", "stage", "device", "vram_mib", "charged_mib", "usable_mib", "user", "priority", "estimate_s")

    def __init__(self, most: int = LOG_MAX) -> None:
        self._entries: deque[tuple[Any, ...]] = deque(maxlen=most)
        self.seq = 0

    def add(self, *entry: Any) -> None:
        """Note one placement: all `FIELDS` after `seq`."""
        self.seq += 1
        self._entries.append(entry)

    def since(self, seq: int) -> list[Mapping[str, Any]]:
        """Return the entries after `seq` that are still kept, as mappings."""
        dropped = self.seq - len(self._entries)
        entries = enumerate(itertools.islice(self._entries, max(0, seq - dropped), None), max(seq, dropped) + 1)
        return [dict(zip(self.FIELDS, (number, *entry), strict=True)) for number, entry in entries]
