"""When to run the canary on a card: now and then between units, never beside one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Consumer memory has no ECC: a card that begins to err is found within this time, at a cost of seconds.
EVERY_S: Final = 6 * 3600.0
#: A card is idle when nothing ran for so long: the next unit of a job comes sooner.
IDLE_S: Final = 60.0
#: What the canary takes of a card, CUDA's context included.
NEEDS_MIB: Final = 1024


@dataclass(frozen=True, kw_only=True)
class CardUse:
    """What a card does.

    Parameters
    ----------
    device
        Its name.
    units
        How many units and canaries run on it now.
    idle_s
        Seconds since the last one ended, ``None`` if none ran since the agent's start.
    since_canary_s
        Seconds since the last canary, ``None`` if none is known.
    free_mib
        Memory that nobody holds and nothing is charged for; ``None`` where not reported.
    out
        Whether it is out of service for good: lost, or found to compute wrong.
    """

    device: str
    units: int = 0
    idle_s: float | None = None
    since_canary_s: float | None = None
    free_mib: int | None = None
    out: bool = False


def is_due(card: CardUse, *, every_s: float = EVERY_S, idle_s: float = IDLE_S) -> bool:
    """Whether the canary may run on a card now, and should."""
    if card.out or card.units > 0 or (card.idle_s is not None and card.idle_s < idle_s):
        return False
    if card.free_mib is not None and card.free_mib < NEEDS_MIB:
        return False
    return card.since_canary_s is None or card.since_canary_s >= every_s


def next_due(cards: Iterable[CardUse], *, running: bool = False, every_s: float = EVERY_S, idle_s: float = IDLE_S) -> str | None:
    """Return the card of this host to run the canary on now, ``None`` if none is due: one at a time, the longest without one first.

    Parameters
    ----------
    running
        Whether a canary runs on this host already.
    """
    due = [card for card in cards if is_due(card, every_s=every_s, idle_s=idle_s)]
    if running or not due:
        return None
    never = float("inf")
    return min(due, key=lambda card: (-(never if card.since_canary_s is None else card.since_canary_s), card.device)).device
