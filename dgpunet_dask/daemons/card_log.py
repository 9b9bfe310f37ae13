"""What has befallen the cards of a host, and which of it the head is told. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.hardware.card_facts import CardFacts
from dgpunet_dask.hardware.nvml import CardState
from dgpunet_dask.hardware.xids import XidEvent, meaning_of

#: A card that is too hot for this share of the window is told of. It counts as over when it is half of that.
WINDOW_S: Final = 600.0
HOT_SHARE: Final = 0.05
#: The same error of the same card is told once in this time; how often it was counts on.
XID_AGAIN_S: Final = 60.0
#: How far the stamps of errors may be off.
STAMP_S: Final = 1.0
#: What each heartbeat says of a card, in the layout of `observe.facts`.
_TOLD: Final = (
    "present", "problem", "index", "model", "temperature_c", "power_w", "power_limit_w", "power_limit_default_w", "sm_mhz", "memory_mhz", "throttle",
    "pcie", "energy_j", "vram_mib", "used_mib", "utilisation", "fan", "ecc", "recovery_action",
)  # fmt: skip

Report = dict[str, Any]


@dataclass
class Heard:
    """The errors of one number on one card: how many, the last one's time, and how many were not told yet."""

    count: int = 0
    at: float = 0.0
    told_at: float | None = None
    untold: int = 0


@dataclass
class Known:
    """One card: its name, what was last told of it, its errors, and when it was too hot: moment and seconds."""

    name: str
    row: dict[str, Any] = field(default_factory=dict)
    whole: str | None = None
    gone: bool = False
    hot: bool = False
    spells: deque[tuple[float, float]] = field(default_factory=deque)
    xids: dict[int, Heard] = field(default_factory=dict)


class CardLog:
    """Remembers the cards that were seen since it was made; each change gives the reports that it is worth."""

    def __init__(self) -> None:
        self.cards: dict[str, Known] = {}

    def row(self) -> dict[str, dict[str, Any]]:
        """Return what a heartbeat says, by UUID."""
        return {uuid: {**card.row, "name": card.name, "xids": _xid_rows(card.xids)} for uuid, card in self.cards.items()}

    def missing(self, facts: Iterable[CardFacts]) -> list[str]:
        """Return the UUIDs of cards that were there before, and are not among `facts`."""
        here = {card.uuid for card in facts if card.present}
        return [uuid for uuid in self.cards if uuid not in here]

    def looked(
        self, facts: Iterable[CardFacts], gone: Mapping[str, CardState], names: Mapping[str, str], *, at: float, since_s: float
    ) -> list[Report]:
        """Take one look at all cards.

        Parameters
        ----------
        facts, gone
            What is there, and how those are that are `missing`.
        names
            Names in the fleet by UUID.
        at
            When, seconds since 1970.
        since_s
            Seconds since the last look; what slows a card now is taken to have slowed it since.
        """
        reports: list[Report] = []
        for found in facts:
            if found.present and found.uuid is not None:
                card = self.cards.setdefault(found.uuid, Known(found.uuid))
                card.name, card.whole = names.get(found.uuid, card.name), found.mig_of
                reports += [*_came_back(found.uuid, card, at), *_hot(found, card, at, since_s)]
                plain = found.to_json()
                card.row = {key: plain[key] for key in _TOLD} | {"throttled_s": _hot_s(card)}
        for uuid, state in gone.items():
            reports += self._gone(uuid, state, at)
        return reports

    def heard(self, events: Sequence[XidEvent]) -> list[Report]:
        """Take errors; those that the card has mended itself are counted and not told."""
        return [report for event in events if (report := self._heard(event)) is not None]

    def _gone(self, uuid: str, state: CardState, at: float) -> list[Report]:
        card = self.cards[uuid]
        if card.whole is not None and not state.lost and state.present is False:  # instances come and go as their owner likes
            del self.cards[uuid]
            return []
        card.row = {"present": state.present, "problem": state.why, "index": card.row.get("index"), "model": card.row.get("model")}
        if state.present is not False or card.gone:  # no driver to ask, or told already
            return []
        card.gone = True
        how = "fell off the bus" if state.lost else "is not there any more"
        return [fault(uuid, card.name, f"the card {how}: {state.why}", at=at, cordon=True)]

    def _heard(self, event: XidEvent) -> Report | None:
        kind, card = meaning_of(event.xid), None if event.uuid is None else self.cards.get(event.uuid)
        parts = [known for known in self.cards.values() if event.uuid is not None and known.whole == event.uuid]
        told = Heard()
        for known in [card] if card is not None else parts:
            told = known.xids.setdefault(event.xid, Heard())
            told.count, told.at, told.untold = told.count + 1, event.at, told.untold + 1
        if kind.severity == "silent" or (told.told_at is not None and event.at - told.told_at < XID_AGAIN_S):
            return None
        before, told.told_at, told.untold = max(0, told.untold - 1), event.at, 0
        device = card.name if card is not None else ", ".join(sorted(known.name for known in parts)) or None
        more = f" ({before} more since it was last told)" if before else ""
        return fault(
            event.uuid, device, f"Xid {event.xid}, {kind.meaning}{more}", at=event.at, cordon=kind.severity == "critical", cause=kind.cause,
            xid=event.xid, severity=kind.severity, meaning=kind.meaning,
        )  # fmt: skip


def evidence(row: Mapping[str, Any], since_s: float) -> dict[str, Any]:
    """Return what a row of `CardLog.row` tells of a call that began at `since_s` (seconds since 1970) and failed: ``xid``, ``thermal``, where it does.

    The kernel's log stamps an error by another clock: one that is a second too old is taken as well.
    """
    xids = [one["xid"] for one in row.get("xids", ()) if one["at"] >= since_s - STAMP_S]
    hot = any("thermal" in reason for reason in row.get("throttle") or ())
    return ({"xid": xids} if xids else {}) | ({"thermal": True} if hot else {})


def fault(uuid: str | None, device: str | None, what: str, *, at: float, cordon: bool, cause: str = "hardware", **more: Any) -> Report:
    """Return a report of the kind ``card_fault``; `what` begins with the card's name."""
    return {
        "kind": "card_fault", "uuid": uuid, "device": device, "what": f"{device or uuid or 'a card'}: {what}", "cause": cause, "cordon": cordon,
        "xid": None, "at": at, **more,
    }  # fmt: skip


def _came_back(uuid: str, card: Known, at: float) -> list[Report]:
    if not card.gone:
        return []
    card.gone = False
    return [{"kind": "card_back", "uuid": uuid, "device": card.name, "what": f"{card.name}: the card is back", "at": at}]


def _hot(found: CardFacts, card: Known, at: float, since_s: float) -> list[Report]:
    """Return the report of a card that has begun to be too hot for too long."""
    if any("thermal" in reason for reason in found.throttle or ()):
        card.spells.append((at, since_s))
    while card.spells and card.spells[0][0] <= at - WINDOW_S:
        card.spells.popleft()
    hot_s = _hot_s(card)
    if hot_s <= HOT_SHARE * WINDOW_S / 2:
        card.hot = False
    if card.hot or hot_s <= HOT_SHARE * WINDOW_S:
        return []
    card.hot = True
    share = f"too hot for {hot_s:.0f} s of the last {WINDOW_S / 60:.0f} min, and slowed down"
    return [fault(found.uuid, card.name, share, at=at, cordon=False, temperature_c=found.temperature_c, severity="warning")]


def _hot_s(card: Known) -> float:
    return round(sum(seconds for _, seconds in card.spells), 1)


def _xid_rows(heard: Mapping[int, Heard]) -> list[dict[str, Any]]:
    return [{"xid": xid, "count": one.count, "at": one.at, "severity": meaning_of(xid).severity} for xid, one in sorted(heard.items())]
