"""The fleet as a mutable index, so that each pick costs the number of kinds of devices and not of devices.

`Pool.place` decides exactly as `placement.place.place` does on `Pool.fleet()`; a property test holds the two together. It is quicker
because devices with the same facts form a *class*, whose lasting verdicts are found once per demand, and because the devices of a class
that carry the same load form a *group*, whose verdicts of the moment are found once as well: within a group only the name differs.
Cards that run a unit belong to no group, so a busy fleet costs next to nothing to ask. Pure: no clock, file, environment or chance.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host
from dgpunet_dask.placement.feasible import need_mib, never_verdicts, not_now_verdicts
from dgpunet_dask.placement.place import activation, place
from dgpunet_dask.placement.rank import candidate, field_of
from dgpunet_dask.placement.resolve import resolve

#: Remembered answers are thrown away beyond this many, so that odd demands without end cannot fill the memory.
MEMO_MAX: Final = 4096

#: What decides upon a group's verdicts: the charges without their holders and devices.
Load = tuple[tuple[object, ...], ...]


class Group:
    """The devices of one class that may be used now and carry the same load, lowest name first."""

    __slots__ = ("_heap", "_queued", "load", "members")

    def __init__(self, load: Load) -> None:
        self.load = load
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
    """Devices whose facts, and the facts of their hosts, are alike in all that a filter or a score looks at."""

    __slots__ = ("device", "groups", "host", "open", "size")

    def __init__(self, device: Device, host: Host) -> None:
        self.device, self.host = device, host
        self.size = 0
        self.groups: dict[Load, Group] = {}
        self.open: dict[Load, Group] = {}  # those with members

    def enter(self, slot: Slot) -> None:
        """Put `slot`, which may be used now, into the group of its load."""
        load = _load(slot.charges.values()) if slot.charges else ()
        group = self.groups.get(load)
        if group is None:
            if len(self.groups) >= MEMO_MAX:
                self.groups = dict(self.open)
            group = self.groups[load] = Group(load)
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
    """One device with its state and charges, and the group it is in while it may be used."""

    __slots__ = ("activations", "charged_mib", "charges", "device", "group", "host", "is_gpu", "kind", "name", "state", "usable_mib")

    def __init__(self, device: Device, host: Host, kind: DeviceClass, state: DeviceState) -> None:
        self.device, self.host, self.kind, self.state = device, host, kind, state
        self.name, self.is_gpu, self.usable_mib = device.name, device.kind == "gpu", device.usable_mib
        self.charges: dict[str, Charge] = {}
        self.activations = 0
        self.charged_mib = 0
        self.group: Group | None = None

    def put(self, charge: Charge) -> None:
        """Note `charge`, whose holder has none here."""
        self.charges[charge.holder] = charge
        self.charged_mib += charge.vram_mib
        self.activations += charge.kind == "activation"

    def take(self, holder: str) -> None:
        """Drop the charge of `holder`."""
        charge = self.charges.pop(holder)
        self.charged_mib -= charge.vram_mib
        self.activations -= charge.kind == "activation"


class Plan:
    """What a demand means for the classes of the pool: the able ones, best score first; equal scores share a tier."""

    __slots__ = ("classes", "demand", "empty", "epoch", "left", "ram_mib", "tiers")

    def __init__(self, demand: Demand, epoch: int, tiers: list[list[DeviceClass]]) -> None:
        self.demand, self.epoch, self.tiers, self.ram_mib = demand, epoch, tiers, demand.ram_mib
        self.classes = frozenset(kind for tier in tiers for kind in tier)
        self.left: dict[Group, int | None] = {}
        self.empty: dict[DeviceClass, int] = {}

    def need_mib(self, slot: Slot) -> int:
        """Return the VRAM that a unit is charged on `slot` as it is now."""
        if slot.charges:
            return need_mib(slot.device, slot.charges.values(), self.demand)
        need = self.empty.get(slot.kind)
        if need is None:
            need = self.empty[slot.kind] = need_mib(slot.device, (), self.demand)
        return need

    def left_mib(self, group: Group) -> int | None:
        """Return the VRAM left over beside the demand on any device of `group`, ``None`` where it will not do now."""
        try:
            return self.left[group]
        except KeyError:
            if len(self.left) >= MEMO_MAX:
                self.left.clear()
            found = self.left[group] = _left_mib(next(iter(group.members.values())), self.demand)
            return found


def _left_mib(slot: Slot, demand: Demand) -> int | None:
    charges = tuple(slot.charges.values())
    request = resolve(demand)
    if not_now_verdicts(slot.device, slot.host, slot.state, charges, request):
        return None
    return candidate(slot.device, slot.host, charges, field_of(Fleet(), request)).left_mib


class Pool:
    """Devices and charges under change. Every method either succeeds or leaves the pool as it was."""

    def __init__(self) -> None:
        self._slots: dict[str, Slot] = {}
        self._hosts: dict[str, Host] = {}
        self._held: dict[str, tuple[str, ...]] = {}  # holder -> names of devices
        self._classes: dict[tuple[Device, Host], DeviceClass] = {}
        self._plans: dict[Demand, Plan] = {}
        self._epoch = 0
        self._fleet: Fleet | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def add_device(self, device: Device, host: Host, state: DeviceState = "running") -> None:
        """Add `device`, or replace its facts; charges on it stay. `host` replaces what was known of that host."""
        if self._hosts.get(host.name) not in (None, host):
            for name in sorted(n for n, s in self._slots.items() if s.device.host == host.name and n != device.name):
                self._put(self._slots[name].device, host, self._slots[name].state)
        self._hosts[host.name] = host
        self._put(device, host, state)
        self._drop_empty_hosts()

    def _put(self, device: Device, host: Host, state: DeviceState) -> None:
        old = self._slots.get(device.name)
        if old is not None:
            self._leave(old)
        slot = Slot(device, host, self._class_of(device, host), state)
        slot.kind.size += 1
        if old is not None:
            slot.charges, slot.activations, slot.charged_mib = old.charges, old.activations, old.charged_mib
        self._slots[device.name] = slot
        self._regroup(slot)
        self._epoch += 1

    def _class_of(self, device: Device, host: Host) -> DeviceClass:
        key = (replace(device, name="", host="", uuid=None, model=None), Host(name="", ram_mib=host.ram_mib, cpus=host.cpus))
        return self._classes.setdefault(key, DeviceClass(device, host))

    def _leave(self, slot: Slot) -> None:
        slot.kind.leave(slot)
        slot.kind.size -= 1
        if slot.kind.size == 0:
            self._classes = {key: kind for key, kind in self._classes.items() if kind is not slot.kind}

    def remove_device(self, name: str) -> None:
        """Forget `name` and all charges on it."""
        slot = self._slots.pop(name)
        self._leave(slot)
        for holder in slot.charges:
            self._hold(holder, tuple(n for n in self._held[holder] if n != name))
        self._drop_empty_hosts()
        self._epoch += 1
        self._fleet = None

    def _drop_empty_hosts(self) -> None:
        used = {slot.device.host for slot in self._slots.values()}
        self._hosts = {name: host for name, host in self._hosts.items() if name in used}

    def set_state(self, name: str, state: DeviceState) -> None:
        """Set the state of device `name`."""
        slot = self._slots[name]
        if slot.state != state:
            slot.state = state
            self._regroup(slot)

    def charge(self, charge: Charge) -> None:
        """Put `charge` on its device; it replaces one of the same holder there."""
        slot, holder = self._slots[charge.device], charge.holder
        if holder in slot.charges:
            slot.take(holder)
        else:
            self._held[holder] = (*self._held.get(holder, ()), charge.device)
        slot.put(charge)
        self._regroup(slot)

    def release(self, holder: str, device: str | None = None) -> tuple[str, ...]:
        """Take off what `holder` has charged, everywhere or on one device, and return the devices that it was on."""
        names = self._held.pop(holder, ())
        if device is not None:
            self._hold(holder, tuple(n for n in names if n != device))
            names = (device,) if device in names else ()
        for name in names:
            slot = self._slots[name]
            slot.take(holder)
            self._regroup(slot)
        return names

    def _hold(self, holder: str, names: tuple[str, ...]) -> None:
        if names:
            self._held[holder] = names
        else:
            self._held.pop(holder, None)

    def _regroup(self, slot: Slot) -> None:
        self._fleet = None
        kind = slot.kind
        if slot.group is not None:
            kind.leave(slot)
        if slot.state == "running" and not (slot.activations and slot.is_gpu) and not slot.device.cordoned:
            kind.enter(slot)

    def slot(self, name: str) -> Slot:
        """Return the device's slot, to be read only."""
        return self._slots[name]

    def plan(self, demand: Demand) -> Plan:
        """Return what `demand` means for the classes there are now."""
        plan = self._plans.get(demand)
        if plan is None or plan.epoch != self._epoch:
            if len(self._plans) >= MEMO_MAX:
                self._plans.clear()
            plan = self._plans[demand] = Plan(demand, self._epoch, self._tiers(demand))
        return plan

    def current(self, plan: Plan) -> Plan:
        """Return `plan` while it holds, else the one that took its place."""
        return plan if plan.epoch == self._epoch else self.plan(plan.demand)

    def _tiers(self, demand: Demand) -> list[list[DeviceClass]]:
        request = resolve(demand)
        able = [k for k in self._classes.values() if not never_verdicts(k.device, k.host, request)]
        return [able] if able else []

    def pick(self, plan: Plan, barred: Collection[str] = ()) -> Slot | None:
        """Return the best device that will do now for a plan of one card, ``None`` where none will."""
        fleet = self.fleet()
        decision = place(_only(fleet, [d.name for d in fleet.devices if d.name not in barred]), plan.demand)
        return None if decision.device is None else self._slots[decision.device]

    def evict(self, name: str, demand: Demand) -> tuple[str, ...]:
        """Return the idle residents that must leave device `name`, which will do now, before the demand fits."""
        slot = self._slots[name]
        field = field_of(Fleet(), resolve(demand))
        return tuple(sorted(candidate(slot.device, slot.host, tuple(slot.charges.values()), field).evict)) if slot.charges else ()

    def place(
        self, demand: Demand, *, verdicts: bool = False, barred: Collection[str] = (), among: Collection[str] | None = None
    ) -> Decision:
        """Decide upon one unit of work, as `placement.place.place` does on `fleet()`.

        Parameters
        ----------
        verdicts
            Fill `ranking` and `refusals`, which takes time for every device.
        barred
            Devices not to be used now; they keep a demand from being called impossible.
        among
            Where given, the only devices there are for this demand.
        """
        if verdicts or among is not None or demand.gpus > 1:
            return self._place_fully(demand, barred, among)
        plan = self.plan(demand)
        slot = self.pick(plan, barred)
        if slot is not None:
            return Decision("placed", devices=(slot.name,), evict=self.evict(slot.name, demand))
        return Decision("never" if self._slots and not plan.tiers else "wait")

    def _place_fully(self, demand: Demand, barred: Collection[str], among: Collection[str] | None) -> Decision:
        fleet = self.fleet() if among is None else _only(self.fleet(), among)
        decision = place(fleet, demand)
        if not barred or decision.outcome != "placed":
            return decision
        rest = place(_only(fleet, [d.name for d in fleet.devices if d.name not in barred]), demand)
        return rest if rest.outcome == "placed" else replace(rest, outcome="wait")

    def ideal(self, demand: Demand, barred: Collection[str] = (), among: Collection[str] | None = None) -> tuple[str, ...]:
        """Return the devices that `demand` would get if nothing were charged, to be kept free for it; empty where none will do."""
        fleet = self.fleet().with_charges(())
        names = (d.name for d in fleet.devices if among is None or d.name in among)
        return place(_only(fleet, [n for n in names if n not in barred]), demand).devices

    def activation(self, name: str, demand: Demand, holder: str, plan: Plan | None = None) -> Charge:
        """Return the charge of one unit of `demand` on device `name` as it is now. `plan`, where at hand, saves looking it up."""
        return activation(self._slots[name].device, self._slots[name].charges.values(), resolve(demand), holder)

    def fleet(self) -> Fleet:
        """Return a frozen picture."""
        if self._fleet is None:
            slots = [self._slots[name] for name in sorted(self._slots)]
            self._fleet = Fleet(
                hosts=tuple(self._hosts[name] for name in sorted(self._hosts)),
                devices=tuple(s.device for s in slots),
                charges=tuple(s.charges[holder] for s in slots for holder in sorted(s.charges)),
                states={s.device.name: s.state for s in slots if s.state != "running"},
            )
        return self._fleet


def _load(charges: Iterable[Charge]) -> Load:
    return tuple(
        sorted((c.kind, c.stage or "", c.vram_mib, c.ram_mib, c.cpus, c.exclusive, c.evictable, c.stage is None) for c in charges)
    )


def _only(fleet: Fleet, names: Collection[str]) -> Fleet:
    return replace(fleet, devices=tuple(d for d in fleet.devices if d.name in names))
