"""The order among devices that will do: a sum of named, weighted parts, then less VRAM left over, then the name.

A further preference is one more `Term`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dgpunet_dask.model.decision import Scored
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device
from dgpunet_dask.placement.feasible import evictions, free_mib, need_mib


@dataclass(frozen=True)
class Candidate:
    """A device that will do now. `left_mib` is the VRAM left over beside the demand once `evict` (holders) have gone."""

    device: Device
    left_mib: int = 0
    evict: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """What scores are relative to. `fastest`: the greatest speed in the fleet, so that a score does not hang on who is free."""

    fastest: float


@dataclass(frozen=True)
class Term:
    """One named part of a total: weight × score, the score in 0…1."""

    name: str
    weight: float
    score: Callable[[Candidate, Field], float]


def _speed(candidate: Candidate, field: Field) -> float:
    return candidate.device.speed / field.fastest if field.fastest > 0 else 0.0


DEFAULT_TERMS: Final[tuple[Term, ...]] = (Term("speed", 100.0, _speed),)


def field_of(devices: Iterable[Device]) -> Field:
    """Return what the scores of a fleet of `devices` are relative to."""
    return Field(fastest=max((d.speed for d in devices), default=0.0))


def candidate(device: Device, charges: Sequence[Charge], demand: Demand) -> Candidate:
    """Return `device` as a candidate for `demand`. Only for a device without verdicts; `charges` are those on it."""
    leaving = evictions(device, charges, demand)
    room = free_mib(device, charges) + sum(c.vram_mib for c in leaving)
    left = 0 if device.kind == "cpu" else room - need_mib(device, charges, demand)
    return Candidate(device, left, tuple(c.holder for c in leaving))


def scored(candidate: Candidate, field: Field, terms: Sequence[Term] = DEFAULT_TERMS) -> Scored:
    """Return the named parts of one device and their total."""
    parts = {term.name: term.weight * term.score(candidate, field) for term in terms}
    return Scored(candidate.device.name, sum(parts.values()), parts)


def order(candidate: Candidate, score: Scored) -> tuple[float, int, str]:
    """Return the sort key: best total first, then less VRAM left over, then the lower name. Total, since names are unique."""
    return (-score.total, candidate.left_mib, candidate.device.name)


def scores(candidates: Iterable[Candidate], field: Field, terms: Sequence[Term] = DEFAULT_TERMS) -> tuple[Scored, ...]:
    """Return every candidate's score, best first."""
    pairs = [(c, scored(c, field, terms)) for c in candidates]
    return tuple(score for _, score in sorted(pairs, key=lambda pair: order(*pair)))
