"""Which devices will do, and each reason why one will not.

A filter looks at one device for one demand and answers None (it will do) or what was needed and what is there. The two tables
below are in the order in which reasons are named; `NEVER_FILTERS` see facts only, so their verdicts may be kept per device and
demand, `NOT_NOW_FILTERS` see the state and the charges as well. No filter hides another: a full table runs all of them.
A new rule is one more function and one more line in a table; what it needs to know becomes a field of `Facts` or `Moment`.

Requirements on a card (VRAM, compute capability, features, driver, runtime) do not apply to a host's CPU: `cpu_ok` says that the
work can do without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from dgpunet_dask.model.decision import REASON_ORDER, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Host, runs_arch
from dgpunet_dask.units import Mib

NOT_REPORTED: Final = "not reported"


class Shortfall(NamedTuple):
    """What a filter missed: the need and what is there, as text with units."""

    need: str
    have: str


@dataclass(frozen=True)
class Facts:
    """What does not change while a device is in the fleet.

    `gpu_possible`: some card of the fleet could hold the demand, now or later, so that a CPU is not considered.
    """

    device: Device
    host: Host
    demand: Demand
    gpu_possible: bool = False


@dataclass(frozen=True)
class Moment:
    """What a device looks like now: its state, and the charges that lie on it (no others)."""

    device: Device
    host: Host
    state: DeviceState
    charges: Sequence[Charge]
    demand: Demand


NeverFilter = Callable[[Facts], Shortfall | None]
NotNowFilter = Callable[[Moment], Shortfall | None]


def never_verdicts(device: Device, host: Host, demand: Demand, gpu_possible: bool = False) -> tuple[Verdict, ...]:
    """Return every reason that no waiting removes, in `REASON_ORDER`; empty where the device could hold the demand when free.

    Parameters
    ----------
    gpu_possible
        Whether some card of the fleet could ever hold the demand: then a CPU is refused (`not_allowed`).
    """
    facts = Facts(device, host, demand, gpu_possible)
    return tuple(Verdict(device.name, code, *short) for code, check in NEVER_FILTERS.items() if (short := check(facts)) is not None)


def not_now_verdicts(
    device: Device, host: Host, state: DeviceState, charges: Sequence[Charge], demand: Demand
) -> tuple[Verdict, ...]:
    """Return every reason that stands in the way at this moment, in `REASON_ORDER`. `charges` are those on `device` alone."""
    now = Moment(device, host, state, charges, demand)
    return tuple(Verdict(device.name, code, *short) for code, check in NOT_NOW_FILTERS.items() if (short := check(now)) is not None)


def in_reason_order(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return `verdicts` sorted by `REASON_ORDER`; equal codes keep their order."""
    return tuple(sorted(verdicts, key=lambda v: REASON_ORDER[v.code]))


# What a demand takes of a device


def need_mib(device: Device, charges: Iterable[Charge], demand: Demand) -> int:
    """Return the VRAM to charge for one unit on `device`, in MiB, beside what its stage holds there already.

    A demand without `vram` takes the whole usable card. The stage's own resident share is part of `vram`; where several residents
    bear its name the smallest counts, because which of them the call will use is not known here.
    """
    if device.kind == "cpu":
        return 0
    peak = (device.usable_mib or 0) if demand.vram_mib is None else demand.vram_mib
    held = min((c.vram_mib for c in charges if is_own_resident(c, demand)), default=0)
    return max(0, peak - held)


def free_mib(device: Device, charges: Iterable[Charge]) -> int:
    """Return total − reserve − charges in MiB, 0 where VRAM is not known. Negative where others took more than there was."""
    return (device.usable_mib or 0) - sum(c.vram_mib for c in charges)


def is_own_resident(charge: Charge, demand: Demand) -> bool:
    """Whether `charge` is the demand's own stage, loaded."""
    return charge.kind == "resident" and charge.stage is not None and charge.stage == demand.stage


def must_leave(charge: Charge, demand: Demand) -> bool:
    """Whether an exclusive demand cannot share a device with `charge`. The desktop's own use is not ours to forbid."""
    return charge.kind != "foreign" and not is_own_resident(charge, demand)


def evictions(device: Device, charges: Sequence[Charge], demand: Demand) -> tuple[Charge, ...]:
    """Return the idle residents that must be unloaded before the demand fits, in the order of their holders.

    Smallest first, because a small model is loaded again soonest; then those that turn out not to be needed stay. An exclusive
    demand sends all of them away. Empty where there is room already.
    """
    idle = sorted((c for c in charges if c.evictable and must_leave(c, demand)), key=lambda c: (c.vram_mib, c.holder))
    if demand.exclusive:
        return tuple(sorted(idle, key=lambda c: c.holder))
    if device.kind == "cpu":
        return ()  # a unit's `ram` is its whole need, its loaded stage with it
    missing = need_mib(device, charges, demand) - free_mib(device, charges)
    chosen: list[Charge] = []
    for charge in idle:
        if missing <= sum(c.vram_mib for c in chosen):
            break
        chosen.append(charge)
    for charge in tuple(chosen):
        if sum(c.vram_mib for c in chosen) - charge.vram_mib >= missing:
            chosen.remove(charge)
    return tuple(sorted(chosen, key=lambda c: c.holder))


# The filters that see facts only


def _not_allowed(at: Facts) -> Shortfall | None:
    if at.device.kind == "gpu":
        return Shortfall("a CPU", "a GPU") if at.demand.gpus == 0 else None
    if not at.demand.cpu_ok:
        return Shortfall("a GPU", "a CPU")
    if at.demand.gpus > 1:
        return Shortfall(f"{at.demand.gpus} GPUs", "a CPU")
    return Shortfall("a GPU, while the fleet has one that can hold it", "a CPU") if at.gpu_possible else None


def _vram_unknown(at: Facts) -> Shortfall | None:
    if at.device.kind == "cpu" or at.device.vram_mib is not None or at.demand.vram_mib == 0:
        return None
    return Shortfall(_asked_vram(at.demand), NOT_REPORTED)


def _vram_total(at: Facts) -> Shortfall | None:
    usable = at.device.usable_mib
    if at.device.kind == "cpu" or usable is None:
        return None
    if at.demand.vram_mib is None:
        return None if usable > 0 else Shortfall("the whole card", _size(usable))
    return None if at.demand.vram_mib <= usable else Shortfall(_size(at.demand.vram_mib), _size(usable))


def _host_ram(at: Facts) -> Shortfall | None:
    return _more_than(at.demand.ram_mib, at.host.ram_mib, _size)


def _host_cpus(at: Facts) -> Shortfall | None:
    return _more_than(at.demand.cpus, at.host.cpus, str)


def _compute_capability(at: Facts) -> Shortfall | None:
    spec, capability = at.demand.capability, at.device.capability
    if at.device.kind == "cpu" or spec is None or (capability is not None and spec.accepts(capability)):
        return None
    return Shortfall(str(spec), _dotted(capability))


def _feature(at: Facts) -> Shortfall | None:
    if at.device.kind == "cpu" or at.demand.feature_set <= at.device.features:
        return None
    return Shortfall(", ".join(sorted(at.demand.feature_set)), ", ".join(sorted(at.device.features)) or "none")


def _driver(at: Facts) -> Shortfall | None:
    spec, driver = at.demand.driver_spec, at.device.driver
    if at.device.kind == "cpu" or spec is None or (driver is not None and spec.accepts(driver)):
        return None
    return Shortfall(str(spec), _dotted(driver))


def _runtime_arch(at: Facts) -> Shortfall | None:
    """A runtime that was not asked, or a card that does not tell its capability, cannot be said to mismatch."""
    arches, capability = at.device.runtime_arches, at.device.capability
    if at.device.kind == "cpu" or arches is None or capability is None or any(runs_arch(capability, a) for a in arches):
        return None
    return Shortfall(f"a runtime built for {_dotted(capability)}", ", ".join(arches) or "none")


#: In the order in which reasons are named. Codes without a filter here have no rule that gives them.
NEVER_FILTERS: Final[Mapping[str, NeverFilter]] = {
    "not_allowed": _not_allowed,
    "vram_unknown": _vram_unknown,
    "vram_total": _vram_total,
    "host_ram": _host_ram,
    "host_cpus": _host_cpus,
    "compute_capability": _compute_capability,
    "feature": _feature,
    "driver": _driver,
    "runtime_arch": _runtime_arch,
}


# The filters that see the state and the charges


def _in_state(state: DeviceState) -> NotNowFilter:
    def check(at: Moment) -> Shortfall | None:
        return Shortfall("a running device", state) if at.state == state else None

    return check


def _cordoned(at: Moment) -> Shortfall | None:
    return Shortfall("a running device", "cordoned") if at.device.cordoned or at.state == "cordoned" else None


def _exclusive(at: Moment) -> Shortfall | None:
    alone = next((c for c in at.charges if c.exclusive), None)
    if alone is not None:
        return Shortfall("a device that may be shared", f"held alone by {alone.holder}")
    others = [c.holder for c in at.charges if must_leave(c, at.demand) and not c.evictable]
    return Shortfall("the device alone", f"used by {', '.join(sorted(others))}") if at.demand.exclusive and others else None


def _vram_free(at: Moment) -> Shortfall | None:
    """Idle residents count as free: they can be unloaded. What could not fit when empty is `vram_total`'s to say."""
    usable = at.device.usable_mib
    if at.device.kind == "cpu" or usable is None or (at.demand.vram_mib or 0) > usable:
        return None
    need = need_mib(at.device, at.charges, at.demand)
    free = free_mib(at.device, at.charges)
    room = free + sum(c.vram_mib for c in at.charges if c.evictable and must_leave(c, at.demand))
    return None if need <= room else Shortfall(_size(need), _size(max(0, room)))


def _busy(at: Moment) -> Shortfall | None:
    if at.state == "paused":
        return Shortfall("a running device", "paused")
    running = [c for c in at.charges if c.kind == "activation"]
    if at.device.kind == "gpu":
        return Shortfall("a free unit slot", f"running {running[0].holder}") if running else None
    return _cpu_full(at, running)


def _cpu_full(at: Moment, running: Sequence[Charge]) -> Shortfall | None:
    """A CPU takes units while cores and memory last; one at a time where the host does not report its cores.

    Idle stages do not count: a unit's `ram` covers its own.
    """
    if at.host.cpus is None:
        return Shortfall("a free unit slot", f"running {running[0].holder}") if running else None
    if not running:
        return None  # what an empty host cannot hold is for host_ram and host_cpus to say
    cpus = at.host.cpus - sum(c.cpus for c in running)
    if at.demand.cpus > cpus:
        return Shortfall(f"{at.demand.cpus} cpus", f"{max(0, cpus)} free")
    ram = None if at.host.ram_mib is None else at.host.ram_mib - sum(c.ram_mib for c in running)
    if ram is not None and at.demand.ram_mib > ram:
        return Shortfall(f"{_size(at.demand.ram_mib)} RAM", f"{_size(max(0, ram))} free")
    return None


#: In the order in which reasons are named.
NOT_NOW_FILTERS: Final[Mapping[str, NotNowFilter]] = {
    "lost": _in_state("lost"),
    "draining": _in_state("draining"),
    "cordoned": _cordoned,
    "exclusive": _exclusive,
    "vram_free": _vram_free,
    "busy": _busy,
}


def _more_than(need: int, have: int | None, text: Callable[[int], str]) -> Shortfall | None:
    """A host that does not report its size is not refused for it."""
    return None if have is None or need <= have else Shortfall(text(need), text(have))


def _asked_vram(demand: Demand) -> str:
    return "the whole card" if demand.vram_mib is None else _size(demand.vram_mib)


def _size(mib: int) -> str:
    return str(Mib.of(mib))


def _dotted(version: tuple[int, ...] | None) -> str:
    return NOT_REPORTED if version is None else ".".join(map(str, version))
