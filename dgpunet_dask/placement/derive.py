"""What the facts of a machine alone justify, as a generated policy file. Pure: facts in, text out.

Two kinds of rules come from facts. *Trial*: a card that joins a fleet is kept from interactive work until `TRIAL_UNITS` units have
succeeded on it and were timed, as long as a tried card that is no smaller and no less capable can stand in. Should other rules bar
that one, the work waits for the end of the trial; it is never refused for good. The first cards of a fleet have nobody to stand in for them and are not on trial. *Owner*: a laptop that runs on its
battery, or whose owner sits before it, is left to interactive work while other machines can take the rest.

What else the facts decide needs no rule: VRAM, compute capability, driver and the arches of the installed torch are compared by
placement itself. Where that keeps all work away, a comment says so.

The text carries its own state in comments, so that one file tells all and a restart goes on where it was: ``# facts:`` a hash of what it
was derived from, and a line ``# card`` each with the card's facts and how far its trial is. Whoever changes a card or its driver changes
its hash, and its trial starts again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from dgpunet_dask.model.decision import TRIAL
from dgpunet_dask.model.fleet import Device, Fleet, Host, runs_arch
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates, device_class
from dgpunet_dask.units import Mib

#: Units that must have succeeded on a new card before interactive work may go there.
TRIAL_UNITS: Final = 3
#: How long a laptop's owner must have been away before it takes work that nobody waits for.
OWNER_AWAY: Final = "5m"

_HEADER: Final = """\
# Written by `dgpunet-dask policy derive` from what {host} reports, and again whenever that changes.
# Put rules of your own under human/: a rule of the same name there replaces the one here, clause by clause.
"""
_FACTS: Final = re.compile(r"# facts: (?P<facts>[0-9a-f]{12})")
_CARD: Final = re.compile(
    r"# card (?P<name>\S+): facts (?P<facts>[0-9a-f]{12}), (?:(?P<units>\d+) of \d+ units|(?P<first>from the start))"
    r"(?:, measured speed (?P<speed>\d+(?:\.\d+)?))?$"
)


@dataclass(frozen=True)
class Standing:
    """How far a card's trial is.

    Parameters
    ----------
    facts
        What the card was then.
    units
        How many have succeeded on it since.
    first
        It began with the fleet.
    speed
        As it was measured when the trial ended, on the fleet's scale; ``None`` where nothing had run on other cards to compare.
    """

    facts: str
    units: int = 0
    first: bool = False
    speed: float | None = None

    @property
    def tried(self) -> bool:
        """Whether it may serve interactive work."""
        return self.first or self.units >= TRIAL_UNITS


Standings = Mapping[str, Standing]


@dataclass(frozen=True)
class Generated:
    """The policy file of one host: its text, and the facts and standings that the text carries."""

    host: str
    text: str
    facts: str
    standings: Standings


def derive(fleet: Fleet, past: Standings, estimates: Estimates = NO_ESTIMATES) -> tuple[Generated, ...]:
    """Return the policy file of each host of `fleet`, in the order of their names.

    Parameters
    ----------
    past
        Each card's standing as `read_standings` found it in earlier files; cards that are not there are new.
    estimates
        What the speed of a card is measured by when its trial ends.
    """
    standings = _standings(fleet, past, estimates)
    return tuple(_generated(host, fleet, standings) for host in sorted(fleet.hosts, key=lambda h: h.name))


def read_standings(text: str) -> dict[str, Standing]:
    """Return the standings that a generated file carries; a line that a person has broken counts as not there."""
    found = (m for line in text.splitlines() if (m := _CARD.match(line)) is not None)
    return {m["name"]: _read(m) for m in found}


def _read(line: re.Match[str]) -> Standing:
    speed = None if line["speed"] is None else float(line["speed"])
    return Standing(line["facts"], int(line["units"] or 0), line["first"] is not None, speed)


def read_facts(text: str) -> str | None:
    """Return the hash of the facts that a generated file was derived from, ``None`` where it carries none."""
    found = next((m for line in text.splitlines() if (m := _FACTS.match(line)) is not None), None)
    return None if found is None else found["facts"]


def with_units(standings: Standings, done: Mapping[str, int]) -> dict[str, Standing]:
    """Return `standings` with the units that have succeeded on each device since; counting ends with the trial."""
    return {
        name: standing if standing.tried else replace(standing, units=min(TRIAL_UNITS, standing.units + done.get(name, 0)))
        for name, standing in standings.items()
    }


def measured_speed(device: Device, fleet: Fleet, estimates: Estimates) -> float | None:
    """Return the speed of `device` on the fleet's scale, from units that ran on its class and on others; ``None`` without such.

    The mean, over stages and the other classes, of their speed × their seconds ÷ its seconds.
    """
    own, speeds = device_class(device), {device_class(d): d.speed for d in fleet.devices}
    ratios = []
    for known in estimates.learned.values():
        mine = known.run_s.get(own)
        others = [(speeds[c], mean.value) for c, mean in known.run_s.items() if c != own and c in speeds]
        if mine is not None and mine.value > 0:
            ratios += [speed * seconds / mine.value for speed, seconds in others]
    return sum(ratios) / len(ratios) if ratios else None


# Facts


def card_facts(device: Device) -> str:
    """Return a hash of what a card and its software are; the load, the name and the measured speed have no part in it."""
    return _hash([
        device.model, device.uuid, device.vram_mib, device.capability, device.driver, device.runtime_arches,
        sorted(device.features), device.display,
    ])  # fmt: skip


def host_facts(host: Host, cards: Iterable[Device]) -> str:
    """Return a hash of what a machine is. What changes by the hour, its power and its owner's presence, counts only as reported or not."""
    own = [host.name, host.ram_mib, host.cpus, is_laptop(host, cards := list(cards)), host.power is None, host.idle_s is None]
    return _hash([own, [[card.name, card_facts(card)] for card in cards]])


def is_laptop(host: Host, cards: Iterable[Device]) -> bool:
    """Whether the machine has a battery, or a card that is made for laptops."""
    return bool(host.battery) or host.power == "battery" or any("laptop" in (card.model or "").lower() for card in cards)


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


# Trials


def _standings(fleet: Fleet, past: Standings, estimates: Estimates) -> dict[str, Standing]:
    """Return the standing of each card: as it was where its facts are the same, else new; all are first where none was known."""
    cards = list(fleet.gpus())
    first = not any(card.name in past for card in cards)
    return {card.name: _measured(card, _standing(card, past, first), fleet, estimates) for card in cards}


def _standing(card: Device, past: Standings, first: bool) -> Standing:
    before, facts = past.get(card.name), card_facts(card)
    return before if before is not None and before.facts == facts else Standing(facts, first=first)


def _measured(card: Device, standing: Standing, fleet: Fleet, estimates: Estimates) -> Standing:
    """Return `standing` with the card's speed as it is when its trial ends; later samples shape the estimates alone."""
    if standing.first or not standing.tried or standing.speed is not None:
        return standing
    speed = measured_speed(card, fleet, estimates)
    return standing if speed is None else replace(standing, speed=round(speed, 3))


def _stand_in(card: Device, fleet: Fleet, standings: Standings) -> Device | None:
    """Return a tried card that can hold whatever `card` can: no smaller, no less capable, nor of fewer features."""
    tried = (d for d in fleet.gpus() if d.name != card.name and standings[d.name].tried)
    return next((d for d in tried if _covers(d, card)), None)


def _covers(other: Device, card: Device) -> bool:
    if card.vram_mib is None or other.vram_mib is None:
        return False
    return (
        other.vram_mib >= card.vram_mib
        and (other.capability or ()) >= (card.capability or ())
        and other.features >= card.features
        and not (_no_code(other) or other.cordoned)
    )


# Text


def _generated(host: Host, fleet: Fleet, standings: Standings) -> Generated:
    cards = [card for card in fleet.gpus() if card.host == host.name]
    facts = host_facts(host, cards)
    own = {card.name: standings[card.name] for card in cards}
    lines = [*_HEADER.format(host=host.name).splitlines(), f"# facts: {facts}"]
    for card in cards:
        lines += _card_comments(card, own[card.name])
    rules = [line for card in cards for line in _trial(card, own[card.name], _stand_in(card, fleet, standings))]
    owner = list(_owner(host, cards, alone=len(fleet.hosts) == 1))
    lines += ["version: 1", *(["rules:", *rules] if rules else ["rules: []"]), *(["hosts:", *owner] if owner else [])]
    return Generated(host.name, "\n".join(lines) + "\n", facts, own)


def _card_comments(card: Device, standing: Standing) -> Iterator[str]:
    how_far = "from the start" if standing.first else f"{standing.units} of {TRIAL_UNITS} units"
    yield f"# card {card.name}: facts {standing.facts}, {how_far}" + (
        "" if standing.speed is None else f", measured speed {standing.speed:.3f}"
    )
    yield f"#   {_described(card)}"
    if card.vram_mib is None:
        yield "#   It does not report its memory: work that needs VRAM is refused with vram_unknown."
    if _no_code(card):
        arches = ", ".join(card.runtime_arches or ()) or "it was built without CUDA"
        yield f"#   The installed torch has no code for it ({arches}): all work is refused with runtime_arch."
    if card.display:
        yield "#   A display is attached: more of the card is kept free."


def _no_code(card: Device) -> bool:
    """Whether the installed torch is known to have no code for the card."""
    arches, capability = card.runtime_arches, card.capability
    return arches is not None and capability is not None and not any(runs_arch(capability, arch) for arch in arches)


def _described(card: Device) -> str:
    capability = "not reported" if card.capability is None else ".".join(map(str, card.capability))
    driver = "not reported" if card.driver is None else ".".join(map(str, card.driver))
    vram = "not reported" if card.vram_mib is None else str(Mib.of(card.vram_mib))
    return f"{_plain(card.model or 'model not reported')}; VRAM {vram}, compute capability {capability}, driver {driver}"


def _plain(text: str) -> str:
    """Return `text` on one line, in ASCII: it becomes a comment."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _trial(card: Device, standing: Standing, stand_in: Device | None) -> Iterator[str]:
    if standing.tried or stand_in is None:
        return
    yield f"# New: interactive work goes elsewhere, {stand_in.name} can hold it, until {TRIAL_UNITS} units have succeeded here."
    yield f"- name: {TRIAL}{card.name}"
    yield "  match: {priority: interactive}"
    yield f'  deny: [{{device: "{card.name}"}}]'


def _owner(host: Host, cards: list[Device], *, alone: bool) -> Iterator[str]:
    """Yield the owner's conditions on a laptop. One machine alone has none: what is started there is started by its owner."""
    if alone or not is_laptop(host, cards):
        return
    when = {}
    if host.power is not None:
        yield "# A laptop: on its battery it takes only what somebody waits for."
        when["power"] = "mains"
    if host.idle_s is not None and any(card.display for card in cards):
        yield "# Its display is attached: while its owner is there, it takes only what somebody waits for."
        when["idle"] = f'">={OWNER_AWAY}"'
    if when:
        conditions = ", ".join(f"{key}: {value}" for key, value in sorted(when.items()))
        yield f'- {{match: {{host: "{host.name}"}}, when: {{{conditions}}}, otherwise: [interactive]}}'
