"""The fleet as a mutable index, so that each pick costs the number of kinds of devices and not of devices.

`Pool.place` decides exactly as `placement.place.place_request` does on `Pool.fleet()` under the pool's policy and estimates; a property
test holds the two together. It is quicker because the lasting verdicts are found once per demand and *class* of devices, those of the
moment once per *group* of a class that carries the same load, and because busy cards are looked at only where work may wait for them by
choice. Pure: no clock, file, environment or chance; the caller sets `now` and the minute of the day.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Policy, Selector
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.place import charges_of, place_request
from dgpunet_dask.placement.plans import NEVER_S, Offer, Plan, emptied
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.placement.slots import MEMO_MAX, OVERDUE, DeviceClass, End, Group, Slot

#: Finishes that differ by less are equal: a device that is free now is taken.
_SAME_S: Final = 1e-9


#: A device that will do now, the lowest name of its group.
Chance: TypeAlias = tuple[Offer, str, Group]
#: Devices that units wait for by choice, and the seconds that each keeps them.
Ahead: TypeAlias = tuple[tuple[str, float], ...]


class Choice(NamedTuple):
    """What a unit gets: a slot or nothing. `ahead`: devices that units before it wait for by choice, and the seconds that each keeps it."""

    slot: Slot | None
    ahead: Ahead = ()


_NOTHING: Final = Choice(None)


class Pool:
    """Devices and charges under change. Every method either succeeds or leaves the pool as it was."""

    def __init__(self, policy: Policy = NO_POLICY, estimates: Estimates = NO_ESTIMATES) -> None:
        self.policy, self.estimates = policy, estimates
        self.minute: int | None = None
        self.now = 0.0
        self.booked: dict[str, float] = {}
        self.links: Mapping[tuple[str, str], float] = {}
        self._roles = _roles(policy)
        self._slots: dict[str, Slot] = {}
        self._hosts: dict[str, Host] = {}
        self._on_host: dict[str, set[str]] = {}
        self._held: dict[str, tuple[str, ...]] = {}  # holder -> names of devices
        self._classes: dict[object, DeviceClass] = {}
        self._plans: dict[Demand, Plan] = {}
        self._epoch = 0
        self._shared = 0
        self._fleet: Fleet | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    # What is in force

    def set_policy(self, policy: Policy) -> None:
        """Decide under `policy` from now on; what is charged stays."""
        self.policy, self._roles = policy, _roles(policy)
        self._sort_anew()

    def set_estimates(self, estimates: Estimates) -> None:
        """Decide by `estimates` from now on. Ends of running units stay as they were expected."""
        self.estimates = estimates
        if any(slot.is_gpu and slot.device.model is None for slot in self._slots.values()):
            self._sort_anew()  # such cards are known by their names
        self._epoch += 1

    def set_links(self, links: Mapping[tuple[str, str], float]) -> None:
        """Take the measured bytes per second from one host to another; they count for demands with inputs, which are looked at in full."""
        self.links, self._fleet = dict(links), None

    def set_minute(self, minute: int | None) -> None:
        """Set the minute of the local day, for the owner's hours."""
        if minute != self.minute:
            self.minute, self._fleet = minute, None
            if any(rule.hours is not None for rule in self.policy.hosts):
                self._sort_anew()

    def _sort_anew(self) -> None:
        for slot in list(self._slots.values()):
            self._put(slot.device, slot.host, slot.state)
        self._epoch += 1

    def begin(self, now: float) -> None:
        """Begin a pass over waiting work at the moment `now`: nothing is booked yet."""
        self.now = now
        self.booked.clear()
        self._fleet = None

    def book(self, name: str, seconds: float) -> None:
        """Note that a unit which waits by choice will keep device `name` for `seconds` once it is free."""
        self.booked[name] = self.booked.get(name, 0.0) + seconds
        self._fleet = None

    # Devices

    def add_device(self, device: Device, host: Host, state: DeviceState = "running") -> None:
        """Add `device`, or replace its facts; charges on it stay. `host` replaces what was known of that host."""
        known = self._hosts.get(host.name)
        self._hosts[host.name] = host
        self._put(device, host, state)
        if known is not None and known != host:
            self.update_host(host)
        self._drop_empty_hosts()

    def update_host(self, host: Host) -> None:
        """Replace what is known of a host that has devices here."""
        for name in sorted(self._on_host.get(host.name, ())):
            slot = self._slots[name]
            self._put(slot.device, host, slot.state)
            self._hosts[host.name] = host

    def _put(self, device: Device, host: Host, state: DeviceState) -> None:
        self._fleet = None
        old, key = self._slots.get(device.name), self._key(device, host)
        if old is not None:
            self._on_host[old.device.host].discard(old.name)
        self._on_host.setdefault(host.name, set()).add(device.name)
        if old is not None and old.kind.key == key and old.state == state:
            old.set_facts(device, host)
            return
        if old is not None:
            self._leave(old)
        kind = self._classes.get(key)
        if kind is None:
            kind = self._classes[key] = DeviceClass(key, is_gpu=device.kind == "gpu")
        slot = kind.slots[device.name] = Slot(device, host, kind, state)
        if old is not None:
            slot.charges, slot.ends, slot.version = old.charges, old.ends, old.version
            slot.activations, slot.charged_mib, slot.shares, slot.limit = old.activations, old.charged_mib, old.shares, old.limit
        self._slots[device.name] = slot
        self._regroup(slot)
        self._epoch += 1

    def _key(self, device: Device, host: Host) -> object:
        """Return what devices of one class have in common: the facts, and how the policy and the estimates see them."""
        policy = self.policy
        facts = replace(device, name="", host="", uuid=None, bandwidth=None, display=None)
        known = device.name if device.kind == "gpu" and device.model is None and self.estimates.learned else ""
        picked = tuple(selector.picks(device, host) for selector in (*policy.selectors, *self._roles))
        kept = tuple(reserve.device == device.name for reserve in policy.reserves)
        unmet = tuple(rule.match.picks(device, host) and rule.unmet(host, self.minute) is not None for rule in policy.hosts)
        return facts, host.ram_mib, host.cpus, known, picked, kept, unmet

    def _leave(self, slot: Slot) -> None:
        kind = slot.kind
        kind.leave(slot)
        kind.busy.pop(slot.name, None)
        del kind.slots[slot.name]
        if not kind.slots:
            del self._classes[kind.key]

    def remove_device(self, name: str) -> None:
        """Forget `name` and all charges on it."""
        slot = self._slots.pop(name)
        self._leave(slot)
        self._shared -= slot.shares
        self._on_host[slot.device.host].discard(name)
        for holder in slot.charges:
            self._hold(holder, tuple(n for n in self._held[holder] if n != name))
        self._drop_empty_hosts()
        self._epoch += 1
        self._fleet = None

    def _drop_empty_hosts(self) -> None:
        for name in [n for n, devices in self._on_host.items() if not devices]:
            del self._on_host[name], self._hosts[name]

    def set_state(self, name: str, state: DeviceState) -> None:
        """Set the state of device `name`."""
        slot = self._slots[name]
        if slot.state != state:
            slot.state = state
            self._regroup(slot)

    def host(self, name: str) -> Host | None:
        """Return what is known of a host that has devices here."""
        return self._hosts.get(name)

    def slot(self, name: str) -> Slot:
        """Return the device's slot, to be read only."""
        return self._slots[name]

    def slots_of(self, names: Iterable[str]) -> list[Slot]:
        """Return the slots of several devices, to be read only."""
        slots = self._slots
        return [slots[name] for name in names]

    # Charges

    def charge(self, charge: Charge) -> None:
        """Put `charge` on its device; it replaces one of the same holder there. Its `ends_s` counts from `now`."""
        slot, holder = self._slots[charge.device], charge.holder
        if holder in slot.charges:
            slot.take(holder)
        else:
            held = self._held.get(holder)
            self._held[holder] = (charge.device,) if held is None else (*held, charge.device)
        slot.put(charge)
        if charge.ends_s is not None:
            slot.ends[holder] = End(self.now + charge.ends_s, self.now + OVERDUE * charge.ends_s)
        elif slot.ends:
            slot.ends.pop(holder, None)
        self._regroup(slot)

    def resize(self, holder: str, device: str, vram_mib: int) -> None:
        """Let the charge of `holder` on `device` be of `vram_mib`; when it ends stays as it was."""
        slot = self._slots[device]
        charge = replace(slot.charges[holder], vram_mib=vram_mib)
        slot.take(holder)
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
            if slot.ends:
                slot.ends.pop(holder, None)
            self._regroup(slot)
        return names

    def _hold(self, holder: str, names: tuple[str, ...]) -> None:
        if names:
            self._held[holder] = names
        else:
            self._held.pop(holder, None)

    def _regroup(self, slot: Slot) -> None:
        """Put `slot` where its load belongs. Runs twice for each unit, hence the plain way in which it is written."""
        self._fleet = None
        slot.version += 1
        kind, units = slot.kind, slot.activations
        full = slot.is_gpu and slot.limit <= units
        shares = slot.is_gpu and units > (1 if full else 0)
        if shares != slot.shares:
            slot.shares = shares
            self._shared += 1 if shares else -1
        if slot.group is not None:
            kind.leave(slot)
        if slot.usable:
            if not full:
                kind.enter(slot)
            if units or slot.ends:
                kind.busy[slot.name] = slot
                return
        if slot.name in kind.busy:
            del kind.busy[slot.name]

    # Deciding

    def plan(self, demand: Demand) -> Plan:
        """Return what `demand` means for the classes there are now."""
        plan = self._plans.get(demand)
        if plan is None or plan.epoch != self._epoch:
            if len(self._plans) >= MEMO_MAX:
                self._plans.clear()
            request = resolve(demand, self.policy, self.estimates)
            plan = self._plans[demand] = Plan(demand, request, self._epoch, self._classes.values(), self.minute)
        return plan

    def current(self, plan: Plan) -> Plan:
        """Return `plan` while it holds, else the one that took its place."""
        return plan if plan.epoch == self._epoch else self.plan(plan.demand)

    def choose(self, plan: Plan, barred: Collection[str] = (), waiting: int = 1) -> Choice:
        """Choose for the first of `waiting` units of a plan of one card. Nothing is booked; the caller does that with `ahead`."""
        chances = self._chances(plan, barred)
        if not chances:
            return _NOTHING
        alone = len(chances) == 1
        best_s = chances[0][0].finish_s if alone else min([offer.finish_s for offer, _, _ in chances])
        ahead: Ahead = ()
        if plan.may_wait and plan.least_s < best_s - _SAME_S:
            ahead = self._ahead(plan, best_s, chances, barred, waiting)
        if len(ahead) >= waiting:
            return Choice(None, ahead)
        best = chances[0] if alone else self._best(plan, best_s, chances, barred)
        return Choice(self._slots[best[1]], ahead)

    def _chances(self, plan: Plan, barred: Collection[str]) -> list[Chance]:
        found, offers = [], plan.offers
        for kind in plan.able:
            if kind.open:
                for group in kind.open.values():
                    offer = offers[group] if group in offers else plan.offer(group)
                    if offer is not None and (name := group.first(barred)) is not None:
                        found.append((offer, name, group))
        return found

    def _best(self, plan: Plan, best_s: float, chances: Iterable[Chance], barred: Collection[str]) -> Chance:
        fastest = self._fastest(barred) if plan.request.prefer is not None else 0.0
        return min(chances, key=lambda c: (-plan.total(c[2], c[0], best_s, fastest), c[0].left_mib, c[1]))

    def _fastest(self, barred: Collection[str]) -> float:
        """Return the greatest speed in the fleet without `barred`."""
        out = Counter(self._slots[name].kind for name in barred if name in self._slots)
        return max((k.device.speed for k in self._classes.values() if k.size > out[k]), default=0.0)

    def _ahead(
        self, plan: Plan, best_s: float, chances: Iterable[Chance], barred: Collection[str], waiting: int
    ) -> Ahead:
        """Return, for those of `waiting` units that busy devices finish before `best_s`, which device and how long it is kept.

        Where more wait than busy devices could finish by then, one of them takes what is free in any case, so none is looked at.
        """
        if not plan.waits:  # then it is only the CPU that is kept off
            best = min(chances, key=lambda c: (c[0].finish_s, c[1]))
            if best[2].kind.is_gpu:
                return ()
        guess, limit = not plan.known, best_s - _SAME_S
        kinds = [k for k in plan.able if k.busy and (k.is_gpu or not guess) and plan.run_s(k) < limit]
        if not kinds or (waiting > 1 and waiting > sum(k.size * _rounds(limit, plan.request.run_s(k.device)) for k in kinds)):
            return ()
        return self._booking(plan, [slot for k in kinds for slot in k.busy.values() if slot.name not in barred], limit, waiting)

    def _booking(self, plan: Plan, slots: Iterable[Slot], limit: float, waiting: int) -> Ahead:
        guess = not plan.known
        heap: list[tuple[float, str]] = []
        for slot in slots:
            if slot.group is None or plan.offer(slot.group) is None:
                free = plan.free(slot, self.now, guess=guess)
                finish = max(0.0, free.at_s - self.now) + self.booked.get(slot.name, 0.0) + free.duration_s
                if finish < limit:
                    heap.append((finish, slot.name))
        heapq.heapify(heap)
        ahead: list[tuple[str, float]] = []
        while heap and len(ahead) < waiting:
            finish, name = heap[0]
            run_s = plan.request.run_s(self._slots[name].device)
            ahead.append((name, run_s))
            if finish + run_s < limit:
                heapq.heapreplace(heap, (finish + run_s, name))
            else:
                heapq.heappop(heap)
        return tuple(ahead)

    def doubted_s(self, plan: Plan, names: Iterable[str]) -> float:
        """Return the moment from which some of the busy devices `names` are not believed to come free any more, infinite if never."""
        return min((plan.free(self._slots[name], self.now, guess=not plan.known).until_s for name in names), default=NEVER_S)

    def place(
        self, demand: Demand, *, verdicts: bool = False, barred: Collection[str] = (), among: Collection[str] | None = None
    ) -> Decision:
        """Decide upon one unit of work, as `placement.place.place_request` does on `fleet()`.

        Parameters
        ----------
        verdicts
            Fill `ranking` and `refusals`, which takes time for every device.
        barred
            Devices not to be used now; they keep a demand from being called impossible.
        among
            Where given, the only devices there are for this demand.
        """
        plan = self.plan(demand)
        if verdicts or among is not None or not plan.one_card:
            return replace(self._place_fully(plan, barred, among), policy=self.policy.digest)
        choice = self.choose(plan, barred)
        if choice.slot is not None:
            return Decision("placed", devices=(choice.slot.name,), evict=plan.evict(choice.slot), policy=self.policy.digest)
        if choice.ahead:
            return Decision("wait", waits_for=choice.ahead[0][0], policy=self.policy.digest)
        return Decision("never" if self._slots and not plan.able else "wait", policy=self.policy.digest)

    def _place_fully(self, plan: Plan, barred: Collection[str], among: Collection[str] | None) -> Decision:
        fleet = self.fleet() if among is None else _only(self.fleet(), among)
        decision = place_request(fleet, plan.request)
        if not barred or not decision.ranking:
            return decision
        rest = place_request(_only(fleet, [d.name for d in fleet.devices if d.name not in barred]), plan.request)
        return rest if rest.outcome == "placed" else replace(rest, outcome="wait")

    def ideal(self, plan: Plan, barred: Collection[str] = (), among: Collection[str] | None = None) -> tuple[str, ...]:
        """Return the devices that a unit would get if all others had ended, to be kept free for it; empty where none will do."""
        if plan.one_card and among is None:
            return self._ideal_card(plan, barred)
        fleet = self.fleet()
        names = [d.name for d in fleet.devices if d.name not in barred and (among is None or d.name in among)]
        return place_request(_only(fleet.with_charges(emptied(fleet.charges)), names), plan.request).devices

    def _ideal_card(self, plan: Plan, barred: Collection[str]) -> tuple[str, ...]:
        for kind in sorted(plan.able, key=lambda k: (not k.is_gpu, plan.run_s(k), k.device.name)):
            for name in sorted(kind.busy):
                if name not in barred and plan.fits_emptied(kind.busy[name]):
                    return (name,)
        return ()

    @property
    def shared(self) -> bool:
        """Whether units share cards, or may: then one may never come to be empty by itself."""
        return self._shared > 0

    def activation(self, name: str, demand: Demand, holder: str, plan: Plan | None = None) -> Charge:
        """Return the charge of one unit of `demand` on device `name` as it is now. `plan`, where at hand, saves looking it up."""
        plan = plan or self.plan(demand)
        if demand.inputs:
            return charges_of(self.fleet(), plan.request, Decision("placed", devices=(name,)), holder)[0]
        return plan.charge(self._slots[name], holder)

    def fleet(self) -> Fleet:
        """Return a frozen picture of the moment `now`."""
        if self._fleet is None:
            slots = [self._slots[name] for name in sorted(self._slots)]
            self._fleet = Fleet(
                hosts=tuple(self._hosts[name] for name in sorted(self._hosts)),
                devices=tuple(s.device for s in slots),
                charges=tuple(self._as_of_now(s, holder) for s in slots for holder in sorted(s.charges)),
                states={s.device.name: s.state for s in slots if s.state != "running"},
                minute=self.minute,
                booked=dict(self.booked),
                links=self.links,
            )
        return self._fleet

    def _as_of_now(self, slot: Slot, holder: str) -> Charge:
        charge = slot.charges[holder]
        return charge if charge.ends_s is None else replace(charge, ends_s=slot.remaining_s(holder, self.now))


def _rounds(limit_s: float, run_s: float) -> float:
    """Return how many units of `run_s` one device could finish by `limit_s`, at most."""
    return math.ceil(limit_s / run_s) if run_s > 0 else math.inf


def _roles(policy: Policy) -> tuple[Selector, ...]:
    """Return the roles that rules require, as selectors."""
    found = {rule.require.role for rule in policy.rules if rule.require is not None and rule.require.role is not None}
    return tuple(Selector(role=role) for role in sorted(found))


def _only(fleet: Fleet, names: Collection[str]) -> Fleet:
    return replace(fleet, devices=tuple(d for d in fleet.devices if d.name in names))
