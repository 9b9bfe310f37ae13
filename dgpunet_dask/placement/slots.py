"""Devices with what is charged on them, sorted so that alike ones are asked once.

Devices of one *class* are alike in all that a lasting verdict, a score or an estimate looks at, whatever their names; those of a class
that carry the same load form a *group*. Cards that no further unit may join are in no group.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable
from typing import Final, NamedTuple

from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Host

#: Remembered answers are thrown away beyond this many, so that odd demands without end cannot fill the memory.
MEMO_MAX: Final = 4096
#: A unit that has taken this many times its estimate is not waited for any more: nobody knows when it will end.
OVERDUE: Final = 2.0

#: Where a charge keeps its own part of a load; it is no field, so neither equality nor `replace` sees it.
_WEIGHT: Final = "_weight"

#: What decides upon a group's verdicts: the charges without their holders and devices.
Load = tuple[tuple[object, ...], ...]


class End(NamedTuple):
    """When a holder is expected to let go, and from when on that is not believed any more: moments of the pool's clock."""

    at_s: float
    overdue_s: float


class Group:
    """The devices of one class that may be used now and carry the same load, lowest name first."""

    __slots__ = ("_heap", "_queued", "kind", "load", "members")

    def __init__(self, kind: DeviceClass, load: Load) -> None:
        self.kind, self.load = kind, load
        self.members: dict[str, Slot] = {}
        self._heap: list[str] = []
        self._queued: set[str] = set()

    def add(self, name: str, slot: Slot) -> None:
        """Take `slot` in."""
        self.members[name] = slot
        if name not in self._queued:
            self._queued.add(name)
            heapq.heappush(self._heap, name)

    def first(self, barred: Collection[str]) -> str | None:
        """Return the lowest name that is not in `barred`."""
        while self._heap and self._heap[0] not in self.members:
            self._queued.discard(heapq.heappop(self._heap))
        if not barred:
            return self._heap[0] if self._heap else None
        return min((name for name in self.members if name not in barred), default=None)


class DeviceClass:
    """Devices that filters and scores cannot tell apart but by their load. `device` and `host` are those of one of them."""

    __slots__ = ("busy", "groups", "is_gpu", "key", "open", "slots")

    def __init__(self, key: Hashable, *, is_gpu: bool) -> None:
        self.key, self.is_gpu = key, is_gpu
        self.slots: dict[str, Slot] = {}
        self.groups: dict[Load, Group] = {}
        self.open: dict[Load, Group] = {}  # those with members
        self.busy: dict[str, Slot] = {}  # usable ones on which something may end

    @property
    def size(self) -> int:
        """How many devices there are of this class."""
        return len(self.slots)

    @property
    def device(self) -> Device:
        """One of the devices. Its facts are of today: what is alike to the policy at one hour may not be so at another."""
        return next(iter(self.slots.values())).device

    @property
    def host(self) -> Host:
        """The host of `device`."""
        return next(iter(self.slots.values())).host

    def enter(self, slot: Slot) -> None:
        """Put `slot`, which may be used now, into the group of its load."""
        load = load_of(slot.charges.values()) if slot.charges else ()
        group = self.groups.get(load)
        if group is None:
            if len(self.groups) >= MEMO_MAX:
                self.groups = dict(self.open)
            group = self.groups[load] = Group(self, load)
        if not group.members:
            self.open[load] = group
        group.add(slot.name, slot)
        slot.group = group

    def leave(self, slot: Slot) -> None:
        """Take `slot` out of its group."""
        group = slot.group
        if group is not None:
            del group.members[slot.name]
            if not group.members:
                del self.open[group.load]
            slot.group = None


class Slot:
    """One device with its state and charges, and the group it is in while it may be used.

    `version` counts its changes. `shares`: units run there, and others are or may be beside them.
    """

    __slots__ = (
        "activations", "charged_mib", "charges", "device", "ends", "group", "host", "is_gpu", "kind", "limit", "name", "shares", "state",
        "usable_mib", "version",
    )  # fmt: skip

    def __init__(self, device: Device, host: Host, kind: DeviceClass, state: DeviceState) -> None:
        self.charges: dict[str, Charge] = {}
        self.ends: dict[str, End] = {}
        self.activations = 0
        self.limit = 1  # of the units that run here, the smallest number that may share it
        self.charged_mib = 0
        self.group: Group | None = None
        self.version = 0
        self.shares = False
        self.name, self.is_gpu, self.kind, self.state = device.name, device.kind == "gpu", kind, state
        self.set_facts(device, host)

    def set_facts(self, device: Device, host: Host) -> None:
        """Take in facts of the same device that leave it in its class."""
        self.device, self.host, self.usable_mib = device, host, device.usable_mib

    def put(self, charge: Charge) -> None:
        """Note `charge`, whose holder has none here."""
        self.charges[charge.holder] = charge
        self.charged_mib += charge.vram_mib
        if charge.kind == "activation":
            self.activations += 1
            limit = charge.share or 1
            self.limit = limit if self.activations == 1 else min(limit, self.limit)

    def take(self, holder: str) -> None:
        """Drop the charge of `holder`."""
        charge = self.charges.pop(holder)
        self.charged_mib -= charge.vram_mib
        if charge.kind == "activation":
            self.activations -= 1
            if self.activations:
                self.limit = min(c.share or 1 for c in self.charges.values() if c.kind == "activation")

    @property
    def usable(self) -> bool:
        """Whether the device runs and is not cordoned."""
        return self.state == "running" and not self.device.cordoned

    @property
    def full(self) -> bool:
        """Whether no unit at all may join those that run here."""
        return self.is_gpu and self.activations > 0 and self.activations >= self.limit

    def remaining_s(self, holder: str, now: float) -> float | None:
        """Return the seconds until `holder` lets go, ``None`` where that is not known or not believed any more."""
        end = self.ends.get(holder)
        return None if end is None or now >= end.overdue_s else max(0.0, end.at_s - now)


def load_of(charges: Iterable[Charge]) -> Load:
    """Return what tells the verdicts upon devices of one class apart."""
    weights = [c.__dict__.get(_WEIGHT) or weigh(c) for c in charges]
    if len(weights) > 1:
        weights.sort()
    return tuple(weights)


def weigh(c: Charge) -> tuple[object, ...]:
    """Return what `c` adds to a load, and keep it in `c`, for copies of it to have as well."""
    found = c.__dict__[_WEIGHT] = (
        c.kind, c.stage or "", c.vram_mib, c.ram_mib, c.cpus, c.exclusive, c.evictable, c.stage is None, c.share or 0, c.model or "",
        c.user or "", c.priority or "", -1.0 if c.reload_s is None else c.reload_s,
    )  # fmt: skip
    return found
