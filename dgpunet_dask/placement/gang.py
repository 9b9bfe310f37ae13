"""Several cards for one unit: all of them or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dgpunet_dask.model.decision import Scored, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device


def group_of(device: Device, demand: Demand) -> str:
    """Return the name of the group whose cards may serve together: the host under `same_host`, else the fleet."""
    return device.host if demand.same_host else ""


def too_few(cards: Iterable[Device], demand: Demand, code: str, which: str) -> dict[str, Verdict]:
    """Return a verdict `code` for each of `cards` whose group has fewer than `demand.gpus` of them."""
    cards = tuple(cards)
    size = Counter(group_of(d, demand) for d in cards)
    need = f"{demand.gpus} cards {which}{' in one host' if demand.same_host else ''}"
    short = (d for d in cards if size[group_of(d, demand)] < demand.gpus)
    return {d.name: Verdict(d.name, code, need, str(size[group_of(d, demand)])) for d in short}


def choose(ranking: Sequence[Scored], devices: Mapping[str, Device], demand: Demand) -> tuple[str, ...]:
    """Return the best `demand.gpus` devices of the ranking (one for work without cards) that may serve together, or none at all.

    Under `same_host` the host with the greatest sum of totals wins; equal sums: the one whose best card ranks first.
    """
    size = max(1, demand.gpus)
    groups: dict[str, list[Scored]] = {}
    for score in ranking:
        groups.setdefault(group_of(devices[score.device], demand), []).append(score)
    sets = [members[:size] for members in groups.values() if len(members) >= size]
    best = max(sets, key=lambda members: sum(s.total for s in members), default=[])  # max keeps the first of equals
    return tuple(s.device for s in best)
