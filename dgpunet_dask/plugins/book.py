"""Which devices there are, which worker speaks for each, and what is charged: Dask's workers and reports, written into the pool."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from distributed.core import Status

from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet
from dgpunet_dask.placement.feasible import is_own_resident, need_mib
from dgpunet_dask.placement.foreign import foreign_mib
from dgpunet_dask.placement.plans import Plan
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.slots import Slot
from dgpunet_dask.plugins.facts import EXTRA, device_from_wire, host_from_wire, resource_name
from dgpunet_dask.plugins.records import Record

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

logger = logging.getLogger(__name__)

#: Dask's worker status -> state of its devices. `init` is a worker that has registered and not yet said that it runs.
_STATES: Final[Mapping[Status, DeviceState]] = {
    Status.running: "running",
    Status.init: "paused",
    Status.paused: "paused",
    Status.closing_gracefully: "draining",
    Status.closing: "draining",
}


#: Holder of what others use of a card.
FOREIGN: Final = "foreign"


class Book:
    """Devices by worker, and the ledger.

    A device whose worker is lost stays in the fleet as `lost`: it may come back, so work that needs it waits. Its residents stay
    charged as well, since stage hosts outlive workers; the next worker's report replaces them. A worker that was retired on purpose
    takes its devices along. `expected`: `lost` devices that were those of an earlier scheduler, and have not come back to this one.
    """

    def __init__(self) -> None:
        self.pool = Pool()
        self.worker_of: dict[str, str] = {}
        self.devices_of: dict[str, tuple[str, ...]] = {}
        self.resource_of: dict[str, str] = {}
        self._units: dict[str, Demand] = {}  # holder -> what it was charged for
        self._lingering: dict[str, tuple[str, str]] = {}  # holder -> worker asked, key
        self._waiting_claims: dict[str, list[WorkerState]] = {}
        self._number = 0
        self.succeeded: Counter[str] = Counter()  # device -> units that have ended well on it
        self._uses: dict[str, tuple[int | None, int | None, int]] = {}  # device -> MiB used, of these ours, surely others'
        self._reserves: dict[str, int] = {}  # device -> what it keeps free by itself
        self._presence: dict[str, dict[str, Any]] = {}  # host -> its power and idle time as last reported
        self._holds: Mapping[str, DeviceState] = {}  # device -> cordoned or draining, whatever its worker says
        self._spoken: dict[str, DeviceState] = {}  # device -> what its worker says
        self.expected: set[str] = set()
        self.patient = False  # see `coming`

    # Workers

    def add_worker(self, ws: WorkerState) -> None:
        """Take in the devices that `ws` announces; a worker that announces none is not ours."""
        facts = (ws.extra or {}).get(EXTRA)
        if facts is None:
            return
        try:
            host = host_from_wire(facts["host"])
            devices = tuple(device_from_wire(raw) for raw in facts["devices"])
        except (BadValue, KeyError, TypeError, AttributeError):
            logger.exception("worker %s announces facts that cannot be read; it gets no placed work", ws.address)
            return
        host = replace(host, **self._presence.get(host.name, {}))
        for device in devices:
            owner = self.worker_of.get(device.name)
            if owner not in (None, ws.address):
                logger.error("device %s is announced by %s while %s has it; the newcomer waits", device.name, ws.address, owner)
                self._waiting_claims.setdefault(device.name, []).append(ws)
                continue
            self.pool.add_device(device, host, self._state(device.name, _STATES.get(ws.status, "paused")))
            self._reserves[device.name] = device.reserve_mib
            self.expected.discard(device.name)
            self.worker_of[device.name] = ws.address
            self.resource_of[device.name] = resource_name(device)
            self.devices_of[ws.address] = (*self.devices_of.get(ws.address, ()), device.name)

    def remove_worker(self, address: str, *, for_good: bool) -> None:
        """Let go of the worker's devices: `lost`, or out of the fleet where it left `for_good`. Units that it ran are released before."""
        for claims in self._waiting_claims.values():
            claims[:] = [ws for ws in claims if ws.address != address]
        for name in self.devices_of.pop(address, ()):
            del self.worker_of[name]
            for charge in tuple(self.pool.slot(name).charges.values()):
                if charge.kind == "activation":  # of a unit on several cards whose call runs on another worker
                    self.pool.release(charge.holder, name)
            self._uses.pop(name, None)
            if for_good:
                self.pool.remove_device(name)
                self._spoken.pop(name, None)
            else:
                self.pool.set_state(name, self._state(name, "lost"))
            for ws in self._waiting_claims.pop(name, ())[:1]:
                self.add_worker(ws)

    def set_status(self, ws: WorkerState) -> Mapping[str, DeviceState]:
        """Follow the status of a worker (paused, running again, closing) and return the state of its devices."""
        said = _STATES.get(ws.status, "draining")
        found = {name: self._state(name, said) for name in self.devices_of.get(ws.address, ())}
        for name, state in found.items():
            self.pool.set_state(name, state)
        return found

    def _state(self, name: str, said: DeviceState) -> DeviceState:
        """Return the state of a device whose worker says `said`: what an operator holds back stays so, what is lost is lost."""
        self._spoken[name] = said
        return said if said == "lost" else self._holds.get(name, said)

    def set_holds(self, holds: Mapping[str, DeviceState]) -> Mapping[str, DeviceState]:
        """Hold back these devices and no others, `cordoned` or `draining`; return the states that have changed by that."""
        self._holds = dict(holds)
        now = {name: self._state(name, said) for name, said in self._spoken.items() if name in self.pool}
        changed = {name: state for name, state in now.items() if state != self.pool.slot(name).state}
        for name, state in changed.items():
            self.pool.set_state(name, state)
        return changed

    def forget_devices(self, names: Iterable[str]) -> tuple[str, ...]:
        """Take devices out of the fleet that no worker speaks for: their cards were taken out of their machines. Return those."""
        gone = tuple(name for name in names if name in self.pool and name not in self.worker_of)
        for name in gone:
            self.pool.remove_device(name)
            self._spoken.pop(name, None)
            self.expected.discard(name)
        return gone

    def expect(self, fleet: Fleet) -> None:
        """Take in devices that an earlier scheduler had, with what was loaded there, as `lost`: their workers are on their way."""
        for device in fleet.devices:
            if device.name not in self.pool:
                host = self.pool.host(device.host) or fleet.host_by_name[device.host]
                self.pool.add_device(device, host, self._state(device.name, "lost"))
                self.expected.add(device.name)
                for charge in fleet.charges_on(device.name):
                    self.pool.charge(charge)
        self.patient = bool(self.expected)

    def coming(self, plan: Plan) -> tuple[str, ...]:
        """Return the cards that are worth waiting for, although another device could take the demand now.

        These are on their way and have its stage loaded, while no card here has; or no card is here at all. After a restart, CPUs
        are back first, and whatever comes first would load what others have loaded already.
        """
        if not self.patient:
            return ()
        cards = [slot for kind in plan.able if kind.is_gpu for slot in kind.slots.values()]
        loaded = [slot for slot in cards if any(is_own_resident(c, plan.request.demand) for c in slot.charges.values())]
        for better in (loaded, cards):
            if any(slot.state == "running" for slot in better):
                return ()
            coming = [slot.name for slot in better if slot.name in self.expected or slot.state == "paused"]
            if coming:
                return tuple(sorted(coming))
        return ()

    def host_of(self, address: str) -> str | None:
        """Return the host of the worker at `address`, ``None`` where it speaks for no device."""
        names = self.devices_of.get(address)
        return self.pool.slot(names[0]).device.host if names else None

    # Units

    def charge(self, record: Record, slots: Sequence[Slot], plan: Plan | None = None) -> str:
        """Charge a unit of `record` on each of `slots` and return the holder. `plan`: the demand's, where at hand."""
        holder = str(record.key)
        if holder in self._units or holder in slots[0].charges:  # an earlier call that lingers, or a resident of that name
            self._number += 1
            holder = f"{holder} #{self._number}"
        pool, demand = self.pool, record.signature.demand
        plan = plan or pool.plan(demand)
        record.devices = ()
        for slot in slots:
            pool.charge(pool.activation(slot.name, demand, holder, plan) if demand.inputs else plan.charge(slot, holder))
            record.devices += (slot.name,)
        self._units[holder] = plan.request.demand
        record.holder = holder
        return holder

    def release(self, record: Record) -> None:
        """Take off what `record` has charged, if anything."""
        holder = record.holder
        if holder is not None:
            record.holder, record.devices = None, ()
            del self._units[holder]
            self.pool.release(holder)

    def linger(self, record: Record, address: str) -> str:
        """Leave the charge of `record` where it is until worker `address` reports the end of the call; return the holder to ask about."""
        holder = record.holder
        assert holder is not None  # only charged records linger
        self._lingering[holder] = (address, str(record.key))
        record.holder, record.devices = None, ()
        return holder

    def settle(self, holder: str) -> bool:
        """Take off a charge that lingered; return whether there was one."""
        found = holder in self._lingering
        if found:
            self.forget(holder)
        return found

    def forget(self, holder: str) -> None:
        """Take off all that `holder` has charged."""
        self._units.pop(holder, None)
        self._lingering.pop(holder, None)
        self.pool.release(holder)

    def lingering_on(self, address: str) -> tuple[str, ...]:
        """Return the holders whose end worker `address` still has to report."""
        return tuple(holder for holder, (asked, _) in self._lingering.items() if asked == address)

    @property
    def lingering(self) -> tuple[str, ...]:
        """The holders of calls that may run on although their task has left."""
        return tuple(self._lingering)

    # Residents

    def set_residents(self, device: str, residents: Iterable[Mapping[str, Any]]) -> None:
        """Replace what is loaded on `device`: mappings with `stage` (its name), `id` (what an eviction names), `mib` and `busy`.

        A unit whose own stage has just been loaded was charged for it too; its charge shrinks by what the resident now carries.
        """
        if device not in self.pool:
            logger.error("residents are reported for %s, which no worker has announced", device)
            return
        slot = self.pool.slot(device)
        for old in [c.holder for c in slot.charges.values() if c.kind == "resident"]:
            self.pool.release(old, device)
        for raw in residents:
            mib = 0 if slot.device.kind == "cpu" else int(raw["mib"])
            stage, idle = str(raw["stage"]), not raw.get("busy", False)
            holder = str(raw.get("id") or stage)
            found = Charge(
                holder=holder, device=device, vram_mib=mib, kind="resident", stage=stage, model=raw.get("model"), evictable=idle,
                reload_s=raw.get("load_s"),
            )
            self.pool.charge(found)
        self._recharge(slot.device)
        self._charge_foreign(device)

    def _recharge(self, device: Device) -> None:
        charges = tuple(self.pool.slot(device.name).charges.values())
        standing = tuple(c for c in charges if c.kind in ("resident", "foreign"))
        for charge in charges:
            demand = self._units.get(charge.holder)
            if charge.kind == "activation" and demand is not None:
                self.pool.resize(charge.holder, device.name, need_mib(device, standing, demand))

    # Reports

    def set_foreign(
        self, device: str, *, used_mib: int | None, ours_mib: int | None = None, others_mib: int = 0, context_mib: int = 0
    ) -> None:
        """Count what others use of `device`, out of what its worker sees (`placement.foreign`), and its worker's own context.

        The context stays as long as the worker, so it is added to what the device keeps free: what could never fit beside it is refused
        for ever instead of waiting.
        """
        if device not in self.pool:
            logger.error("the use of %s is reported, which no worker has announced", device)
            return
        slot = self.pool.slot(device)
        reserve = self._reserves.get(device, slot.device.reserve_mib - context_mib) + context_mib
        if slot.device.reserve_mib != reserve:
            self.pool.add_device(replace(slot.device, reserve_mib=reserve), slot.host, slot.state)
        self._uses[device] = (used_mib, ours_mib, others_mib)
        self._charge_foreign(device)

    def foreign_mib(self, device: str) -> int:
        """Return what is charged for others' use of `device`."""
        charge = self.pool.slot(device).charges.get(FOREIGN) if device in self.pool else None
        return 0 if charge is None else charge.vram_mib

    def _charge_foreign(self, device: str) -> None:
        """Put what others use into the pool. Where it depends on what is charged, it is counted again when residents change."""
        used, ours, others = self._uses.get(device, (None, None, 0))
        charges = self.pool.slot(device).charges
        charged = sum(c.vram_mib for c in charges.values() if c.kind != "foreign")
        mib = 0 if used is None else foreign_mib(used, ours, others, charged)
        before = charges.get(FOREIGN)
        if mib and (before is None or before.vram_mib != mib):
            self.pool.charge(Charge(holder=FOREIGN, device=device, vram_mib=mib, kind="foreign"))
        elif before is not None and not mib:
            self.pool.release(FOREIGN, device)

    def set_host(self, name: str, **facts: Any) -> None:
        """Take in what changes on a host by the hour: its `power` and `idle_s`."""
        self._presence[name] = facts
        host = self.pool.host(name)
        if host is not None and replace(host, **facts) != host:
            self.pool.update_host(replace(host, **facts))
