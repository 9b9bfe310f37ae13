"""Generated fleets and demands for property tests, and a small ledger that plays units through a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from hypothesis import strategies as st

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host, features_of
from dgpunet_dask.placement.feasible import is_own_resident
from dgpunet_dask.placement.place import charges_of
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.units import Mib

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), None)
VRAM_GIB = (0, 1, 4, 8, 12, 16, 24, 32, None)
STAGES = ("embed", "chat", "pose", None)
STATES: tuple[DeviceState, ...] = ("running", "paused", "cordoned", "draining", "lost")


def sizes(gib: Sequence[float]) -> st.SearchStrategy[Mib]:
    """Draw one of these sizes, given in GiB."""
    return st.sampled_from([Mib.of(int(g * 1024)) for g in gib])


@st.composite
def hosts(draw: st.DrawFn, most: int = 3) -> tuple[Host, ...]:
    """Draw hosts with or without known memory and cores."""
    cpus, ram = st.sampled_from([1, 4, 16, None]), st.sampled_from([4096, 65536, None])
    return tuple(Host(name=f"h{i}", cpus=draw(cpus), ram_mib=draw(ram)) for i in range(draw(st.integers(1, most))))


@st.composite
def cards(draw: st.DrawFn, name: str, host: str) -> Device:
    """Draw one card, with facts that may not be known."""
    vram, capability = draw(st.sampled_from(VRAM_GIB)), draw(st.sampled_from(CAPABILITIES))
    return Device(
        name=name,
        host=host,
        vram_mib=None if vram is None else vram * 1024,
        capability=capability,
        speed=draw(st.sampled_from([0.5, 1.0, 1.6, 4.0])),
        reserve_mib=draw(st.sampled_from([0, 512])),
        driver=draw(st.sampled_from([None, (535, 1), (580,)])),
        runtime_arches=draw(st.sampled_from([None, ("sm_86",), ("sm_80", "compute_90"), ()])),
        features=frozenset() if capability is None else features_of(capability),
        cordoned=draw(st.booleans()) and draw(st.booleans()),
    )


@st.composite
def fleets(draw: st.DrawFn, most_cards: int = 5, charged: bool = True) -> Fleet:
    """Draw a fleet; with `charged` also states and charges, which may exceed what a card has, as the desktop's may."""
    machines = draw(hosts())
    owners = draw(st.lists(st.sampled_from(machines), max_size=most_cards))
    gpus = [draw(cards(f"g{i}", owner.name)) for i, owner in enumerate(owners)]
    cpus = [Device(name=h.cpu_device, host=h.name, kind="cpu", speed=0.02) for h in machines]
    devices = (*gpus, *cpus)
    if not charged:
        return Fleet(machines, devices)
    states = {d.name: draw(st.sampled_from(STATES)) for d in devices if draw(st.integers(0, 3)) == 0}
    lying = [charge for d in devices for charge in draw(st.lists(charges(d.name), max_size=3))]
    named = tuple(replace(c, holder=f"c{i}") for i, c in enumerate(lying))
    return Fleet(machines, devices, named, states)


@st.composite
def charges(draw: st.DrawFn, device: str) -> Charge:
    """Draw a charge on `device`."""
    kind = draw(st.sampled_from(["activation", "resident", "resident", "foreign"]))
    return Charge(
        holder="",
        device=device,
        vram_mib=draw(st.integers(0, 16)) * 512,
        ram_mib=draw(st.integers(0, 4)) * 512,
        cpus=draw(st.integers(0, 3)),
        kind=kind,  # type: ignore[arg-type]  # a literal, drawn
        stage=draw(st.sampled_from(STAGES)),
        exclusive=kind == "activation" and draw(st.integers(0, 3)) == 0,
        evictable=kind == "resident" and draw(st.booleans()),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """Draw a demand."""
    vram = draw(st.none() | sizes([0, 0.5, 2, 6, 10, 14, 40]))
    resident = Mib.of(0) if vram is None else Mib.of(int(vram) // draw(st.sampled_from([1, 2, 4])))
    return Demand(
        stage=draw(st.sampled_from(STAGES)),
        vram=vram,
        resident=draw(st.sampled_from([Mib.of(0), resident])),
        ram=draw(sizes([0, 0, 1, 8])),
        cpus=draw(st.sampled_from([0, 1, 1, 2, 8])),
        compute_capability=draw(st.sampled_from([None, None, ">=8.0", ">=8.9", "<9"])),
        features=draw(st.sampled_from([(), (), ("bf16",), ("fp8", "bf16")])),
        driver=draw(st.sampled_from([None, None, ">=550"])),
        gpus=draw(st.sampled_from([0, 1, 1, 1, 2, 3])),
        same_host=draw(st.booleans()),
        cpu_ok=draw(st.booleans()),
        exclusive=draw(st.integers(0, 4)) == 0,
    )


@dataclass
class Ledger:
    """Plays units through a fleet as the live system does: evict, charge, run, keep what stays loaded, release."""

    fleet: Fleet
    running: dict[str, Demand] = field(default_factory=dict)
    serial: count[int] = field(default_factory=count)

    def start(self, demand: Demand, decision: Decision) -> str | None:
        """Apply a decision on this fleet and return the unit's name, None where it was not placed."""
        if decision.outcome != "placed":
            return None
        unit = f"unit{next(self.serial)}"
        kept = tuple(c for c in self.fleet.charges if not (c.holder in decision.evict and c.device in decision.devices))
        self.fleet = self.fleet.with_charges(kept)
        new = charges_of(self.fleet, resolve(demand), decision, unit)
        used = tuple(
            replace(c, evictable=False) if c.device in decision.devices and is_own_resident(c, demand) else c for c in kept
        )
        self.fleet = self.fleet.with_charges((*used, *new))
        self.running[unit] = demand
        return unit

    def finish(self, unit: str) -> None:
        """End a unit: its activation goes, its stage stays loaded, idle, where it was not before."""
        demand = self.running.pop(unit)
        where = [c.device for c in self.fleet.charges if c.holder == unit]
        kept = tuple(
            replace(c, evictable=True) if c.device in where and is_own_resident(c, demand) else c
            for c in self.fleet.charges
            if c.holder != unit
        )
        loaded = {c.device for c in kept if is_own_resident(c, demand)}
        new = tuple(
            Charge(
                holder=f"{demand.stage}@{d}",
                device=d,
                vram_mib=demand.resident_mib,
                kind="resident",
                stage=demand.stage,
                evictable=True,
            )
            for d in where
            if demand.stage and demand.resident_mib and d not in loaded and self.fleet.by_name[d].kind == "gpu"
        )
        self.fleet = self.fleet.with_charges((*kept, *new))

    def faults(self) -> list[str]:
        """Return every limit that is broken; empty where all is well."""
        return [fault for d in self.fleet.devices for fault in _faults(self.fleet, d)]


def _faults(fleet: Fleet, device: Device) -> list[str]:
    charges = fleet.charges_on(device.name)
    units = [c for c in charges if c.kind == "activation"]
    host = fleet.host_by_name[device.host]
    broken = {
        "vram": (fleet.free_mib(device.name) or 0) < 0,
        "slot": device.kind == "gpu" and len(units) > 1,
        "cpus": device.kind == "cpu" and host.cpus is not None and sum(c.cpus for c in units) > host.cpus,
        "ram": device.kind == "cpu" and host.ram_mib is not None and sum(c.ram_mib for c in units) > host.ram_mib,
        "exclusive": any(c.exclusive for c in units) and len(units) > 1,
    }
    return [f"{device.name}: {name}" for name, is_broken in broken.items() if is_broken]
