"""The order among devices that will do: a sum of named, weighted parts, then less VRAM left over, then the name (design §5.3).

The part ``finish`` is always there, with weight 100 unless a policy sets it; a policy's ``prefer`` adds others. A further kind of
preference is one more line in `SCORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dgpunet_dask.model.decision import Scored
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.policy import Preference
from dgpunet_dask.placement.feasible import evictions, free_mib, need_mib, reload_s, slots
from dgpunet_dask.placement.resolve import FINISH_WEIGHT, Request


@dataclass(frozen=True)
class Candidate:
    """A device that will do now.

    Parameters
    ----------
    left_mib
        The VRAM left over beside the demand once `evict` (holders) have gone.
    finish_s
        Seconds from now until the work would be done there, and those that it will take to load again what leaves for it. Without
        these, two stages called in turn would drive each other off the fastest card for ever, with room for one of them elsewhere.
    """

    device: Device
    host: Host
    left_mib: int = 0
    evict: tuple[str, ...] = ()
    finish_s: float = 0.0


@dataclass(frozen=True)
class Field:
    """What scores are relative to.

    Parameters
    ----------
    fastest
        The greatest speed in the fleet, so that this score does not hang on who is free.
    best_s
        The earliest finish among the candidates.
    request
        The work.
    places
        The host of each device and of each host itself, by name: where inputs lie.
    links
        Bytes per second of each host's link, where known.
    measured
        Bytes per second from one host to another, where measured.
    """

    fastest: float
    request: Request
    best_s: float = 0.0
    places: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[tuple[str, str], float] = field(default_factory=dict)


Score = Callable[[Candidate, Field, Preference], float]


def _finish(candidate: Candidate, field: Field, _: Preference) -> float:
    return field.best_s / candidate.finish_s if candidate.finish_s > 0 else 1.0


def _speed(candidate: Candidate, field: Field, _: Preference) -> float:
    return candidate.device.speed / field.fastest if field.fastest > 0 else 0.0


def _data_local(candidate: Candidate, field: Field, _: Preference) -> float:
    inputs = field.request.demand.inputs
    total = sum(map(int, inputs.values()))
    here = sum(int(n) for where, n in inputs.items() if field.places.get(where) == candidate.host.name)
    return here / total if total else 0.0


def _selected(candidate: Candidate, _: Field, wish: Preference) -> float:
    return float(wish.selector is not None and wish.selector.picks(candidate.device, candidate.host))


SCORES: Final[Mapping[str, Score]] = {"finish": _finish, "speed": _speed, "data_local": _data_local, "selector": _selected}


def terms_of(request: Request) -> tuple[Preference, ...]:
    """Return the weighted parts of a total: what the policy prefers, and `finish` where it does not set that."""
    wishes = request.prefer or ()
    own = () if any(p.by == "finish" for p in wishes) else (Preference("finish", FINISH_WEIGHT),)
    return (*own, *wishes)


def field_of(fleet: Fleet, request: Request) -> Field:
    """Return what scores in `fleet` are relative to, but for the earliest finish."""
    fastest = max((d.speed for d in fleet.devices), default=0.0)
    if not request.demand.inputs:
        return Field(fastest, request)
    places = {d.name: d.host for d in fleet.devices} | {h.name: h.name for h in fleet.hosts}
    return Field(fastest, request, 0.0, places, {h.name: h.link for h in fleet.hosts if h.link is not None}, fleet.links)


def transfer_s(host: str, field: Field) -> float:
    """Return the seconds to bring the inputs to `host`: bytes ÷ what was measured between the two, else the slower link of both ends.

    What lies on the host costs nothing; a link of unknown rate, or a place that is not in the fleet, leaves the known end to count.
    """
    total = 0.0
    for where, size in field.request.demand.inputs.items():
        source = field.places.get(where, where)  # a host without devices may have been measured all the same
        rate = rate_of(source, host, field)
        if source != host and rate is not None:
            total += int(size) / rate
    return total


def rate_of(source: str, host: str, field: Field) -> float | None:
    """Return the bytes per second from `source` to `host`: measured, else the slower of the links that are stated; ``None``: not known."""
    stated = [field.links[end] for end in (host, source) if end in field.links]
    return field.measured.get((source, host), min(stated, default=None))


def transfers(fleet: Fleet, request: Request) -> dict[str, dict[str, Any]]:
    """Return, by host, the seconds that bringing the inputs would take (``None``: not known of any) and whether each rate was measured.

    ``{"b": {"seconds": 2.0, "from": {"a": {"bytes": …, "bytes_per_s": …, "measured": True}}}}``; empty without inputs.
    """
    field, found = field_of(fleet, request), {}
    for host in sorted({d.host for d in fleet.devices} if request.demand.inputs else ()):
        sources = {where: _source(field.places.get(where, where), host, int(size), field) for where, size in request.demand.inputs.items()}
        away = {where: told for where, told in sources.items() if told is not None}
        known = not away or any(told["bytes_per_s"] is not None for told in away.values())
        found[host] = {"seconds": transfer_s(host, field) if known else None, "from": away}
    return found


def _source(source: str, host: str, size: int, field: Field) -> dict[str, Any] | None:
    """Return what is known of bringing `size` bytes from `source`, ``None`` where they lie on `host`."""
    if source == host:
        return None
    return {"bytes": size, "bytes_per_s": rate_of(source, host, field), "measured": (source, host) in field.measured}


def duration_s(device: Device, charges: Sequence[Charge], field: Field) -> float:
    """Return the seconds from the start on `device` to the end: load, transfer, and the run at the share that the unit would have."""
    request = field.request
    share = 1 if device.kind == "cpu" else slots(charges, request)
    return request.load_s(device, charges) + transfer_s(device.host, field) + share * request.run_s(device)


def candidate(device: Device, host: Host, charges: Sequence[Charge], field: Field) -> Candidate:
    """Return `device` as a candidate. Only for a device without verdicts; `charges` are those on it."""
    request = field.request
    leaving = evictions(device, charges, request)
    room = free_mib(device, charges) + sum(c.vram_mib for c in leaving)
    left = 0 if device.kind == "cpu" else room - need_mib(device, charges, request.demand)
    finish_s = duration_s(device, charges, field) + sum(map(reload_s, leaving))
    return Candidate(device, host, left, tuple(c.holder for c in leaving), finish_s)


def scored(candidate: Candidate, field: Field, terms: Sequence[Preference]) -> Scored:
    """Return the named parts of one device and their total."""
    parts: dict[str, float] = {}
    for term in terms:
        parts[term.name] = parts.get(term.name, 0.0) + term.weight * SCORES[term.by](candidate, field, term)
    return Scored(candidate.device.name, sum(parts.values()), parts, candidate.finish_s)


def order(candidate: Candidate, score: Scored) -> tuple[float, int, str]:
    """Return the sort key: best total first, then less VRAM left over, then the lower name. Total, since names are unique.

    Totals are compared to a millionth: beyond that they differ by rounding, and rounding must not decide.
    """
    return (-round(score.total, 6), candidate.left_mib, candidate.device.name)


def scores(candidates: Iterable[Candidate], field: Field) -> tuple[Scored, ...]:
    """Return every candidate's score, best first."""
    found = tuple(candidates)
    relative = with_best(field, found)
    terms = terms_of(field.request)
    pairs = [(c, scored(c, relative, terms)) for c in found]
    return tuple(score for _, score in sorted(pairs, key=lambda pair: order(*pair)))


def with_best(field: Field, candidates: Iterable[Candidate]) -> Field:
    """Return `field` with the earliest finish of `candidates`."""
    best = min((c.finish_s for c in candidates), default=0.0)
    return replace(field, best_s=best)
