"""The local machine as a fleet: its cards with a name and a prior speed each, and its CPU."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from dgpunet_dask.hardware.cpu import probe_host
from dgpunet_dask.hardware.nvml import Card, probe_cards
from dgpunet_dask.hardware.runtime import torch_arches
from dgpunet_dask.model.fleet import Device, Fleet, Host, features_of
from dgpunet_dask.placement.fleet_file import cpu_of

#: Kept free of every probed card, for the desktop and the driver.
RESERVE_MIB: Final = 512
#: Kept free of a card with a display: an eighth, for a desktop with a browser takes 1 to 2 GiB and should not meet a full card.
DISPLAY_SHARE: Final = 8
DISPLAY_MOST_MIB: Final = 2048

#: Rough dense 16-bit throughput of a whole card by compute capability, RTX 3090 = 1. A prior, from vendors' data sheets, until work
#: has been measured: it only has to order the cards of one house.
_SPEED_FROM: Final[tuple[tuple[tuple[int, int], float], ...]] = (
    ((12, 0), 2.4),
    ((10, 0), 12.0),
    ((9, 0), 7.0),
    ((8, 9), 1.6),
    ((8, 6), 1.0),
    ((8, 0), 2.2),
    ((7, 5), 0.6),
    ((7, 0), 0.8),
    ((0, 0), 0.3),
)
#: Within a generation, more VRAM means a larger chip: speed grows with its root, from the size at which the table's number holds.
_VRAM_AT_PRIOR_MIB: Final = 24 << 10
_NAME_NOISE: Final = re.compile(r"nvidia|geforce|tesla|quadro|graphics|gpu|\(.*?\)", re.IGNORECASE)


def local_fleet(
    cards: Sequence[Card] | None = None,
    host: Host | None = None,
    arches: Callable[[], tuple[str, ...] | None] = torch_arches,
) -> Fleet:
    """Return this machine as a fleet of one host: its cards and its CPU.

    Parameters
    ----------
    cards, host
        What was probed; ``None`` probes now.
    arches
        Tells what the installed torch has code for; asked only where there are cards.
    """
    host = probe_host() if host is None else host
    cards = probe_cards() if cards is None else cards
    names = device_names([card.model for card in cards])
    built_for = arches() if cards else None
    found = (device_of(card, name, host.name, built_for) for card, name in zip(cards, names, strict=True))
    return Fleet(hosts=(host,), devices=(*found, cpu_of(host)))


def device_of(card: Card, name: str, host: str, arches: tuple[str, ...] | None = None) -> Device:
    """Return `card` as the device `name` of `host`, where torch has code for `arches`."""
    return Device(
        name=name,
        host=host,
        model=card.model,
        vram_mib=card.vram_mib,
        capability=card.capability,
        speed=_speed(card),
        reserve_mib=reserve_mib(card),
        driver=card.driver,
        runtime_arches=arches,
        display=card.display,
        features=features_of(card.capability) if card.capability else frozenset(),
        uuid=card.uuid or str(card.index),  # CUDA_VISIBLE_DEVICES takes an index as well
    )


def reserve_mib(card: Card) -> int:
    """Return what to keep free of a card, in MiB: more where a display is attached."""
    if not card.display or card.vram_mib is None:
        return RESERVE_MIB
    return max(RESERVE_MIB, min(DISPLAY_MOST_MIB, card.vram_mib // DISPLAY_SHARE))


def _speed(card: Card) -> float:
    """Return the speed to assume of a card; of a MIG instance the part of its card's that its memory is."""
    if card.whole_mib is None or card.vram_mib is None:
        return prior_speed(card.capability, card.vram_mib)
    return round(prior_speed(card.capability, card.whole_mib) * card.vram_mib / card.whole_mib, 2)


def prior_speed(capability: tuple[int, ...] | None, vram_mib: int | None) -> float:
    """Return the speed to assume before anything was measured, RTX 3090 = 1."""
    if capability is None:
        return 1.0
    base = next(speed for since, speed in _SPEED_FROM if capability >= since)
    size = 1.0 if vram_mib is None else min(2.0, max(0.5, (vram_mib / _VRAM_AT_PRIOR_MIB) ** 0.5))
    return round(base * size, 2)


def device_names(models: Sequence[str | None]) -> list[str]:
    """Return a name for each card, in order: ``rtx4090-0``, ``rtx4090-1``; the number counts cards of one model."""
    seen: Counter[str] = Counter()
    names = []
    for model in models:
        short = short_name(model)
        names.append(f"{short}-{seen[short]}")
        seen[short] += 1
    return names


def short_name(model: str | None) -> str:
    """Return ``rtx4090laptop`` for ``NVIDIA GeForce RTX 4090 Laptop GPU``, ``gpu`` where the model is not reported."""
    return re.sub(r"[^a-z0-9]", "", _NAME_NOISE.sub("", model or "").lower()) or "gpu"
