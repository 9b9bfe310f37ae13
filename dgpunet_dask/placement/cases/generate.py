"""Generated fleets and demands that a policy has something to say about. Chance is an argument: a seed gives the same values again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dgpunet_dask.model.demand import PRIORITIES, Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host, features_of
from dgpunet_dask.model.policy import SELECTOR_KEYS, Match, Policy
from dgpunet_dask.placement.feasible import slots
from dgpunet_dask.placement.fleet_file import cpu_of
from dgpunet_dask.placement.place import activation
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.units import Mib

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")

CAPABILITIES: Final = ((7, 5), (8, 6), (8, 9), (8, 9), (12, 0), None)
VRAM_GIB: Final = (8, 12, 16, 24, 32)
NEEDS: Final = ("0MiB", "512MiB", "2GiB", "4GiB", "6GiB", "10GiB", "14GiB", "20GiB", "40GiB", None)
STATES: Final[tuple[DeviceState, ...]] = ("paused", "cordoned", "draining", "lost")


class Generator:
    """Draws fleets and demands for one policy: half of all names are such as its globs match.

    Parameters
    ----------
    policy, chance
        The rules, and where all draws come from.
    """

    def __init__(self, policy: Policy, chance: Random) -> None:
        self.policy = policy
        self.chance = chance
        selected = {key: {g for s in policy.selectors if (g := getattr(s, key))} for key in SELECTOR_KEYS}
        required = {r.require.role for r in policy.rules if r.require is not None and r.require.role}
        matches: list[Match] = [*(r.match for r in policy.rules), *(r.match for r in policy.reserves)]
        self._devices = _examples(
            {g for g in selected["device"] if "/" not in g} | {r.device for r in policy.reserves if "/" not in r.device}
        )
        self._hosts = _examples(selected["host"])
        self._roles = [*_examples(selected["role"] | required), "batch"]
        self._cards = [*_examples(selected["card"]), "NVIDIA GeForce RTX 3090"]
        self._subjects: dict[str, Any] = {
            key: [None, *_examples({g for m in matches if (g := m.globs.get(key))})] for key in ("stage", "model", "user")
        }

    def fleet(self, most_cards: int = 4) -> Fleet:
        """Draw a fleet at work. Nothing lies on a card that does not fit it."""
        hosts = [self._host(name) for name in self._names(self._hosts, "host", self.chance.randint(1, 3))]
        names = self._names(self._devices, "card", self.chance.randint(0, most_cards))
        devices = [*(self._card(name, self.chance.choice(hosts).name) for name in names), *map(cpu_of, hosts)]
        states = {d.name: self.chance.choice(STATES) for d in devices if self._seldom(8)}
        fleet = Fleet(tuple(hosts), tuple(devices), (), states, self.chance.choice([None, 90, 780, 1380]))
        for i in range(self.chance.randint(0, 2 * len(devices))):
            fleet = self._charged(fleet, i)
        booked = {d.name: 5.0 for d in devices if self._seldom(10)}
        return replace(fleet, booked=booked)

    def demand(self) -> Demand:
        """Draw a demand."""
        pick = self.chance.choice
        vram = pick(NEEDS)
        resident = Mib.of(0) if vram is None else Mib.of(Mib(vram) // pick([1, 2, 4]))
        return Demand(
            **{key: pick(names) for key, names in self._subjects.items()},
            vram=vram,
            resident=pick([Mib.of(0), resident]),
            ram=pick(["0MiB", "1GiB", "1GiB", "40GiB"]),
            cpus=pick([0, 1, 1, 2, 9]),
            compute_capability=pick([None, None, None, ">=8.0", ">=8.9"]),
            features=pick([(), (), (), ("bf16",), ("fp8",)]),
            driver=pick([None, None, None, None, ">=550"]),
            gpus=pick([0, 1, 1, 1, 1, 1, 1, 2]),
            same_host=pick([False, True]),
            cpu_ok=pick([False, False, True]),
            exclusive=self._seldom(6),
            priority=pick([None, None, *PRIORITIES]),
            inputs=self._inputs(),
            work=pick([None, 1.0, 10.0, 60.0]),
        )

    def _inputs(self) -> dict[str, int]:
        places = [*self._devices, *self._hosts, "card1", "host1"]
        return {self.chance.choice(places): self.chance.choice([10**8, 10**10]) for _ in range(self.chance.choice([0, 0, 1, 2]))}

    def _host(self, name: str) -> Host:
        pick = self.chance.choice
        roles = tuple(sorted({pick(self._roles) for _ in range(self.chance.randint(0, 2))}))
        return Host(
            name=name,
            roles=roles,
            cpus=pick([1, 8, 32, None]),
            ram_mib=pick([8192, 65536, None]),
            link=pick([None, 1.25e8, 1.25e9]),
            power=pick([None, "mains", "mains", "battery"]),
            idle_s=pick([None, 0.0, 1200.0, 90000.0]),
        )

    def _card(self, name: str, host: str) -> Device:
        pick = self.chance.choice
        capability = pick(CAPABILITIES)
        return Device(
            name=name,
            host=host,
            model=pick([None, *self._cards]),
            vram_mib=None if self._seldom(20) else 1024 * pick(VRAM_GIB),
            capability=capability,
            speed=pick([0.8, 1.0, 1.0, 1.6, 4.2]),
            reserve_mib=pick([0, 512]),
            driver=pick([None, (535, 1), (580,)]),
            runtime_arches=pick([None, None, None, ("sm_80", "compute_90")]),
            features=features_of(capability or ()),
            cordoned=self._seldom(20),
        )

    def _charged(self, fleet: Fleet, i: int) -> Fleet:
        """Return `fleet` with one charge more, where that fits."""
        device = self.chance.choice(fleet.devices)
        here = fleet.charges_on(device.name)
        charge = self._charge(device, here, i)
        if device.kind == "gpu" and charge.vram_mib > (fleet.free_mib(device.name) or 0):
            return fleet
        used = {c.stage for c in (*here, charge) if c.kind in {"activation", "lease"}}
        return fleet.with_charges(
            replace(c, evictable=c.kind == "resident" and c.stage not in used) if c.device == device.name else c
            for c in (*fleet.charges, charge)
        )

    def _charge(self, device: Device, here: Sequence[Charge], i: int) -> Charge:
        request = resolve(replace(self.demand(), inputs={}), self.policy)
        unit = activation(device, here, request, f"unit{i}")
        ends_s = self.chance.choice([None, slots(here, request) * request.run_s(device)])
        kind = self.chance.choice(["activation", "activation", "lease", "resident", "resident", "foreign"])
        if kind == "foreign":
            return Charge(holder=f"foreign{i}", device=device.name, vram_mib=self.chance.choice([256, 4096]), kind="foreign")
        if kind == "resident":
            mib = request.demand.resident_mib or 1024
            reload_s = self.chance.choice([None, 1.0, 30.0])
            return Charge(
                holder=f"loaded{i}", device=device.name, vram_mib=mib if device.kind == "gpu" else 0, kind="resident",
                stage=unit.stage, model=unit.model, reload_s=reload_s,
            )  # fmt: skip
        if kind == "lease" and not unit.exclusive:
            return replace(unit, kind="lease", share=None, ends_s=ends_s)
        return replace(unit, ends_s=ends_s)

    def _names(self, wanted: Sequence[str], plain: str, count: int) -> list[str]:
        """Return `count` names, each once, half of them such as the policy knows."""
        known = self.chance.sample(wanted, min(len(wanted), (count + 1) // 2))
        return sorted({*known, *(f"{plain}{i}" for i in range(1, count - len(known) + 1))})

    def _seldom(self, one_in: int) -> bool:
        return self.chance.randrange(one_in) == 0


def _examples(globs: Iterable[str]) -> list[str]:
    """Return a name that each glob matches, where one is easily found."""
    found = (glob.replace("*", "x").replace("?", "x").partition("[")[0] or "x" for glob in sorted(globs))
    return list(dict.fromkeys(found))
