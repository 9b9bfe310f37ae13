"""Which devices will do, and each reason why one will not.

A filter looks at one device for one demand and answers None (it will do) or what was needed and what is there. The two tables
below are in the order in which reasons are named; `NEVER_FILTERS` see facts only, so their verdicts may be kept per device and
demand, `NOT_NOW_FILTERS` see the state and the charges as well. No filter hides another: a full table runs all of them.
A new rule is one more function and one more line in a table; what it needs to know becomes a field of `Facts` or `Moment`.

Requirements on a card (VRAM, compute capability, features, driver, runtime) do not apply to a host's CPU: `cpu_ok` says that the
work can do without them.

A unit (an *activation*) takes a slot of its device; how many there are is the smallest ``max_per_gpu`` of those that share it, one where
none is set. Standing reserves for other work are kept back from what is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dgpunet_dask.model.decision import REASON_ORDER, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Host, runs_arch
from dgpunet_dask.model.policy import Reserve, Selector, SourceRef
from dgpunet_dask.placement.resolve import Request, draws_on
from dgpunet_dask.units import Mib

NOT_REPORTED: Final = "not reported"


class Shortfall(NamedTuple):
    """What a filter missed: the need and what is there, as text with units, and the policy line that asks for it."""

    need: str
    have: str
    rule: SourceRef | None = None


@dataclass(frozen=True)
class Facts:
    """What does not change with the work on a device. `minute` of the local day, for the owner's hours."""

    device: Device
    host: Host
    request: Request
    minute: int | None = None

    @property
    def demand(self) -> Demand:
        """The united needs."""
        return self.request.demand


@dataclass(frozen=True)
class Moment:
    """What a device looks like now: its state, and the charges that lie on it (no others)."""

    device: Device
    host: Host
    state: DeviceState
    charges: Sequence[Charge]
    request: Request

    @property
    def demand(self) -> Demand:
        """The united needs."""
        return self.request.demand


NeverFilter = Callable[[Facts], Shortfall | None]
NotNowFilter = Callable[[Moment], Shortfall | None]


def never_verdicts(device: Device, host: Host, request: Request, minute: int | None = None) -> tuple[Verdict, ...]:
    """Return every reason by rule or for ever, in `REASON_ORDER`; empty where the device could hold the demand when free."""
    return _verdicts(NEVER_FILTERS, Facts(device, host, request, minute))


def not_now_verdicts(
    device: Device, host: Host, state: DeviceState, charges: Sequence[Charge], request: Request
) -> tuple[Verdict, ...]:
    """Return every reason that stands in the way at this moment, in `REASON_ORDER`. `charges` are those on `device` alone."""
    return _verdicts(NOT_NOW_FILTERS, Moment(device, host, state, charges, request))


def _verdicts(filters: Mapping[str, Callable[[Any], Shortfall | None]], at: Facts | Moment) -> tuple[Verdict, ...]:
    found = ((code, check(at)) for code, check in filters.items())
    return tuple(
        Verdict(at.device.name, code, s.need, s.have, None if s.rule is None else str(s.rule)) for code, s in found if s is not None
    )


def in_reason_order(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Return `verdicts` sorted by `REASON_ORDER`; equal codes keep their order."""
    return tuple(sorted(verdicts, key=lambda v: REASON_ORDER[v.code]))


# What a demand takes of a device


def need_mib(device: Device, charges: Iterable[Charge], demand: Demand) -> int:
    """Return the VRAM to charge for one unit on `device`, in MiB, beside what its stage holds there already.

    A demand without `vram` takes the whole usable card, less what others use of it while that is no more than the card's reserve:
    the few hundred MiB of a desktop are no reason to wait, a game is. The stage's own resident share is part of `vram`; where several
    residents bear its name the smallest counts, because which of them the call will use is not known here.
    """
    if device.kind == "cpu":
        return 0
    charges = tuple(charges)
    peak = whole_mib(device, charges) if demand.vram_mib is None else demand.vram_mib
    held = min((c.vram_mib for c in charges if is_own_resident(c, demand)), default=0)
    return max(0, peak - held)


def whole_mib(device: Device, charges: Iterable[Charge]) -> int:
    """Return what a unit takes that is to have the whole card, in MiB."""
    foreign = sum(c.vram_mib for c in charges if c.kind == "foreign")
    return max(0, (device.usable_mib or 0) - min(device.reserve_mib, foreign))


def free_mib(device: Device, charges: Iterable[Charge]) -> int:
    """Return total − reserve − charges in MiB, 0 where VRAM is not known. Negative where others took more than there was."""
    return (device.usable_mib or 0) - sum(c.vram_mib for c in charges)


def room_mib(device: Device, charges: Sequence[Charge], request: Request) -> int:
    """Return what is free once every idle resident that may be sent away for `request` has gone, in MiB."""
    return free_mib(device, charges) + sum(c.vram_mib for c in charges if may_leave(c, request))


def kept_back_mib(device: Device, charges: Sequence[Charge], request: Request) -> int:
    """Return the part of the standing reserves for other work on `device` that this work has not drawn yet, in MiB."""
    return sum(_outstanding(reserve, charges) for reserve in request.reserves if reserve.device == device.name)


def _outstanding(reserve: Reserve, charges: Iterable[Charge]) -> int:
    return max(0, reserve.vram_mib - sum(c.vram_mib for c in charges if draws_on(c, reserve)))


def is_own_resident(charge: Charge, demand: Demand) -> bool:
    """Whether `charge` is the demand's own stage, loaded."""
    return charge.holds(demand.stage, demand.model)


def must_leave(charge: Charge, demand: Demand) -> bool:
    """Whether an exclusive demand cannot share a device with `charge`. The desktop's own use is not ours to forbid."""
    return charge.kind != "foreign" and not is_own_resident(charge, demand)


def may_leave(charge: Charge, request: Request) -> bool:
    """Whether `charge` is an idle resident that may be unloaded for `request`; a standing reserve protects its own."""
    return charge.evictable and must_leave(charge, request.demand) and not request.protects(charge)


def slots(charges: Iterable[Charge], request: Request) -> int:
    """Return how many units may run on a card where `request` joins those of `charges`: the smallest ``max_per_gpu``."""
    return min([request.share or 1, *(c.share or 1 for c in charges if c.kind == "activation")])


def evictions(device: Device, charges: Sequence[Charge], request: Request) -> tuple[Charge, ...]:
    """Return the idle residents that must be unloaded before the demand fits, in the order of their holders.

    Cheapest reload first: those whose load time is known by it, the others by size, since a small model is loaded again soonest; then
    those that turn out not to be needed stay. An exclusive demand sends all of them away. Empty where there is room already.
    """
    idle = sorted((c for c in charges if may_leave(c, request)), key=_reload_order)
    if request.demand.exclusive:
        return tuple(sorted(idle, key=lambda c: c.holder))
    if device.kind == "cpu":
        return ()  # a unit's `ram` is its whole need, its loaded stage with it
    need = need_mib(device, charges, request.demand)
    missing = need + kept_back_mib(device, charges, request) - free_mib(device, charges) if need else 0
    chosen: list[Charge] = []
    for charge in idle:
        if missing <= sum(c.vram_mib for c in chosen):
            break
        chosen.append(charge)
    for charge in tuple(reversed(chosen)):
        if sum(c.vram_mib for c in chosen) - charge.vram_mib >= missing:
            chosen.remove(charge)
    return tuple(sorted(chosen, key=lambda c: c.holder))


#: Where a load time is not known: seconds per MiB, at the 1 GiB/s of a consumer SSD.
_RELOAD_S_PER_MIB: Final = 1 / 1024


def reload_s(charge: Charge) -> float:
    """Return the seconds to load a resident again, as far as can be said."""
    return charge.vram_mib * _RELOAD_S_PER_MIB if charge.reload_s is None else charge.reload_s


def _reload_order(charge: Charge) -> tuple[float, int, str]:
    return reload_s(charge), charge.vram_mib, charge.holder


# The filters that see facts only


def _denied(at: Facts) -> Shortfall | None:
    for selector, source in at.request.deny:
        if selector.picks(at.device, at.host):
            return Shortfall(f"not {selector}", _told(at, selector), source)
    return None


def _not_allowed(at: Facts) -> Shortfall | None:
    allow = at.request.allow
    if allow is not None and not any(selector.picks(at.device, at.host) for selector in allow):
        have = _told(at, *allow) or at.device.name
        return Shortfall(" or ".join(map(str, allow)) or "no device at all", have, at.request.sources.get("not_allowed"))
    if at.device.kind == "gpu":
        return Shortfall("a CPU", "a GPU") if at.demand.gpus == 0 else None
    if not at.demand.cpu_ok:
        return Shortfall("a GPU", "a CPU")
    return Shortfall(f"{at.demand.gpus} GPUs", "a CPU") if at.demand.gpus > 1 else None


def _told(at: Facts, *selectors: Selector) -> str:
    """Return the facts of a device that `selectors` look at."""
    keys = {key for selector in selectors for key in selector.globs}
    facts = {"device": at.device.name, "host": at.host.name, "role": ",".join(at.host.roles) or "none", "card": at.device.model}
    return " and ".join(f"{key} {fact or NOT_REPORTED}" for key, fact in facts.items() if key in keys)


def _role(at: Facts) -> Shortfall | None:
    for role, source in at.request.roles:
        if not Selector(role=role).picks(at.device, at.host):
            return Shortfall(f"role {role}", ", ".join(at.host.roles) or "no role", source)
    return None


def _owner(at: Facts) -> Shortfall | None:
    for rule in at.request.owner:
        unmet = rule.unmet(at.host, at.minute) if rule.match.picks(at.device, at.host) else None
        if unmet is not None:
            return Shortfall(*unmet, rule.source)
    return None


def _vram_unknown(at: Facts) -> Shortfall | None:
    if at.device.kind == "cpu" or at.device.vram_mib is not None or at.demand.vram_mib == 0:
        return None
    return Shortfall(_asked_vram(at.demand), NOT_REPORTED)


def _vram_total(at: Facts) -> Shortfall | None:
    usable, total = at.device.usable_mib, at.device.vram_mib
    if at.device.kind == "cpu" or usable is None or total is None:
        return None
    if at.demand.larger_than is not None and total <= int(at.demand.larger_than):
        return Shortfall(f"more than {at.demand.larger_than}, which was too small", _size(total))
    if at.demand.vram_mib is None:
        return None if usable > 0 else Shortfall("the whole card", _size(usable))
    source = at.request.sources.get("vram_total")
    return None if at.demand.vram_mib <= usable else Shortfall(_size(at.demand.vram_mib), _size(usable), source)


def _host_ram(at: Facts) -> Shortfall | None:
    return _more_than(at.demand.ram_mib, at.host.ram_mib, _size, at.request.sources.get("host_ram"))


def _host_cpus(at: Facts) -> Shortfall | None:
    return _more_than(at.demand.cpus, at.host.cpus, str, at.request.sources.get("host_cpus"))


def _compute_capability(at: Facts) -> Shortfall | None:
    spec, capability = at.demand.capability, at.device.capability
    if at.device.kind == "cpu" or spec is None or (capability is not None and spec.accepts(capability)):
        return None
    return Shortfall(str(spec), _dotted(capability), at.request.sources.get("compute_capability"))


def _feature(at: Facts) -> Shortfall | None:
    if at.device.kind == "cpu" or at.demand.feature_set <= at.device.features:
        return None
    have = ", ".join(sorted(at.device.features)) or "none"
    return Shortfall(", ".join(sorted(at.demand.feature_set)), have, at.request.sources.get("feature"))


def _driver(at: Facts) -> Shortfall | None:
    spec, driver = at.demand.driver_spec, at.device.driver
    if at.device.kind == "cpu" or spec is None or (driver is not None and spec.accepts(driver)):
        return None
    return Shortfall(str(spec), _dotted(driver), at.request.sources.get("driver"))


def _runtime_arch(at: Facts) -> Shortfall | None:
    """A runtime that was not asked, or a card that does not tell its capability, cannot be said to mismatch."""
    arches, capability = at.device.runtime_arches, at.device.capability
    if at.device.kind == "cpu" or arches is None or capability is None or any(runs_arch(capability, a) for a in arches):
        return None
    return Shortfall(f"a runtime built for {_dotted(capability)}", ", ".join(arches) or "none")


#: In the order in which reasons are named.
NEVER_FILTERS: Final[Mapping[str, NeverFilter]] = {
    "denied": _denied,
    "not_allowed": _not_allowed,
    "role": _role,
    "owner": _owner,
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
    if not at.demand.exclusive:
        return None
    others = sorted(c.holder for c in at.charges if must_leave(c, at.demand) and not may_leave(c, at.request))
    return Shortfall("the device alone", f"used by {', '.join(others)}", at.request.sources.get("exclusive")) if others else None


def _units(at: Moment) -> list[Charge]:
    return [c for c in at.charges if c.kind == "activation"]


def _slots_taken(at: Moment) -> tuple[int, bool] | None:
    """Return how many slots there are where all are taken, and whether a ``max_per_gpu`` set that number; ``None`` where one is free."""
    units = _units(at)
    most = slots(units, at.request)
    if at.device.kind == "cpu" or len(units) < most:
        return None
    return most, most > 1 or all(share is not None for share in (at.request.share, *(c.share for c in units)))


def _share_limit(at: Moment) -> Shortfall | None:
    taken = _slots_taken(at)
    return Shortfall(f"fewer than {taken[0]} units there", f"{len(_units(at))} running") if taken and taken[1] else None


def _fits_when_empty(at: Moment) -> bool:
    """What could not fit on an empty card is `vram_total`'s to say, and of a card that hides its size `vram_unknown`'s."""
    usable = at.device.usable_mib
    return at.device.kind == "gpu" and usable is not None and (at.demand.vram_mib or 0) <= usable


def _reserved(at: Moment) -> Shortfall | None:
    if not at.request.reserves or not _fits_when_empty(at):
        return None
    need = need_mib(at.device, at.charges, at.demand)
    room = room_mib(at.device, at.charges, at.request)
    kept = kept_back_mib(at.device, at.charges, at.request)
    if need == 0 or not room - kept < need <= room:
        return None
    source = next(r.source for r in at.request.reserves if r.device == at.device.name)
    return Shortfall(_size(need), f"{_size(max(0, room - kept))} beside {_size(kept)} kept for other work", source)


def _vram_free(at: Moment) -> Shortfall | None:
    """Idle residents count as free: they can be unloaded."""
    if not _fits_when_empty(at):
        return None
    need = need_mib(at.device, at.charges, at.demand)
    room = room_mib(at.device, at.charges, at.request)
    return None if need <= room else Shortfall(_size(need), _size(max(0, room)))


def _busy(at: Moment) -> Shortfall | None:
    if at.state == "paused":
        return Shortfall("a running device", "paused")
    running = _units(at)
    if at.device.kind == "cpu":
        return _cpu_full(at, running)
    taken = _slots_taken(at)
    return Shortfall("a free unit slot", f"running {running[0].holder}") if taken and not taken[1] else None


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
    "share_limit": _share_limit,
    "reserved": _reserved,
    "vram_free": _vram_free,
    "busy": _busy,
}


def _more_than(need: int, have: int | None, text: Callable[[int], str], source: SourceRef | None) -> Shortfall | None:
    """A host that does not report its size is not refused for it."""
    return None if have is None or need <= have else Shortfall(text(need), text(have), source)


def _asked_vram(demand: Demand) -> str:
    return "the whole card" if demand.vram_mib is None else _size(demand.vram_mib)


def _size(mib: int) -> str:
    return str(Mib.of(mib))


def _dotted(version: tuple[int, ...] | None) -> str:
    return NOT_REPORTED if version is None else ".".join(map(str, version))
