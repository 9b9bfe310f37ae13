"""What the owner and the users of a fleet want: rules on work, standing reserves, and the owner's conditions on hosts (design §5.3).

Values only: `placement.policy_file` reads them from files, `placement.resolve` applies them to a demand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.units import VersionSpec

MATCH_KEYS: Final = ("stage", "model", "user", "priority")
SELECTOR_KEYS: Final = ("device", "host", "role", "card")
WILDCARDS: Final = "*?["

Layer = Literal["built-in", "generated", "human"]
LAYERS: Final[Mapping[Layer, int]] = {"built-in": 0, "generated": 1, "human": 2}


class SourceRef(NamedTuple):
    """Where a clause stands; `name` is the rule's."""

    file: str
    line: int
    col: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.name})"


@dataclass(frozen=True)
class Match:
    """Globs over a demand; a key that is ``None`` matches everything, and a name that a demand lacks is matched as empty text."""

    stage: str | None = None
    model: str | None = None
    user: str | None = None
    priority: str | None = None

    @cached_property
    def globs(self) -> Mapping[str, str]:
        """The keys that are given."""
        return {key: glob for key in MATCH_KEYS if (glob := getattr(self, key)) is not None}

    def holds(self, stage: str | None, model: str | None, user: str | None, priority: str | None) -> bool:
        """Whether every glob matches."""
        values = {"stage": stage, "model": model, "user": user, "priority": priority}
        return all(fnmatchcase(values[key] or "", glob) for key, glob in self.globs.items())

    @cached_property
    def specificity(self) -> tuple[int, int, int]:
        """Keys, then values without wildcard, then literal characters: the greater, the more specific."""
        globs = self.globs.values()
        return len(globs), sum(is_literal(g) for g in globs), sum(literal_characters(g) for g in globs)


@dataclass(frozen=True)
class Selector:
    """Devices, by globs over their name, their host, one of its roles, and what the card is called. All given keys must hold."""

    device: str | None = None
    host: str | None = None
    role: str | None = None
    card: str | None = None

    @property
    def globs(self) -> Mapping[str, str]:
        """The keys that are given."""
        return {key: glob for key in SELECTOR_KEYS if (glob := getattr(self, key)) is not None}

    def picks(self, device: Device, host: Host) -> bool:
        """Whether `device` of `host` is meant. A CPU, and a card that does not report what it is, is called by no `card` glob."""
        return (
            _named(device.name, self.device)
            and _named(host.name, self.host)
            and (self.role is None or any(fnmatchcase(role, self.role) for role in host.roles))
            and _named(device.model, self.card)
        )

    def __str__(self) -> str:
        return " and ".join(f"{key} {glob}" for key, glob in self.globs.items())


@dataclass(frozen=True, kw_only=True)
class Require:
    """What a device must have beside the demand's own needs; ``None`` and empty ask nothing. Sizes in MiB."""

    vram_mib: int | None = None
    compute_capability: VersionSpec | None = None
    features: frozenset[str] = frozenset()
    role: str | None = None
    driver: VersionSpec | None = None
    ram_mib: int | None = None
    cpus: int | None = None


@dataclass(frozen=True)
class Preference:
    """One weighted wish: by ``finish``, ``speed`` or ``data_local``, or (``selector``) for the devices that it picks."""

    by: Literal["finish", "speed", "data_local", "selector"]
    weight: float
    selector: Selector | None = None

    @property
    def name(self) -> str:
        """What the part is called in a score."""
        return self.by if self.selector is None else ",".join(f"{k}:{v}" for k, v in self.selector.globs.items())


@dataclass(frozen=True)
class OnOom:
    """What to do when a card's memory was too small: ask `grow` times as much, at most `max_mib`, `retries` times."""

    grow: float = 1.5
    max_mib: int | None = None
    retries: int = 2


#: Where no rule says anything.
DEFAULT_ON_OOM: Final = OnOom()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. A clause that is ``None`` is not set. `at`: where each clause stands, by paths such as ``require.vram``, ``deny.0``."""

    name: str
    match: Match = Match()
    require: Require | None = None
    allow: tuple[Selector, ...] | None = None
    deny: tuple[Selector, ...] | None = None
    prefer: tuple[Preference, ...] | None = None
    max_per_gpu: int | None = None
    exclusive: bool | None = None
    priority: str | None = None
    on_oom: OnOom | None = None
    layer: Layer = "human"
    at: Mapping[str, SourceRef] = field(default_factory=dict, compare=False, hash=False)

    def source(self, clause: str = "") -> SourceRef:
        """Return where `clause` stands; the rule's own place where that is not known."""
        return self.at.get(clause) or self.at.get("") or SourceRef("policy", 0, 0, self.name)


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """VRAM of one device that is kept for work that `match` holds for; such work draws on it."""

    name: str
    device: str
    vram_mib: int
    match: Match = Match()
    source: SourceRef | None = field(default=None, compare=False, hash=False)


@dataclass(frozen=True, kw_only=True)
class HostRule:
    """The owner's side: unless every condition holds on a picked host, only work of the priorities in `otherwise` may run there.

    Parameters
    ----------
    idle_s
        Seconds without keyboard or mouse, at least.
    power
        ``mains`` or ``battery``.
    hours
        From and until, in minutes of the day; from > until spans midnight.
    """

    match: Selector
    idle_s: float | None = None
    power: Literal["mains", "battery"] | None = None
    hours: tuple[int, int] | None = None
    otherwise: frozenset[str] = frozenset()
    source: SourceRef | None = field(default=None, compare=False, hash=False)

    def unmet(self, host: Host, minute: int | None) -> tuple[str, str] | None:
        """Return the first condition that does not hold and what is the case, as text; ``None`` where all hold.

        What a host does not report does not hold: the owner's machine is not taken on a guess.
        """
        if self.idle_s is not None and (host.idle_s is None or host.idle_s < self.idle_s):
            return f"idle for {self.idle_s:g} s", "not reported" if host.idle_s is None else f"{host.idle_s:g} s"
        if self.power is not None and host.power != self.power:
            return f"power {self.power}", host.power or "not reported"
        if self.hours is not None and (minute is None or not within(minute, self.hours)):
            return f"{clock_text(self.hours[0])}-{clock_text(self.hours[1])}", "not reported" if minute is None else clock_text(minute)
        return None


@dataclass(frozen=True)
class Policy:
    """All rules in force. `weights`: each user's weight in the fair share, by glob; 1 where none matches."""

    rules: tuple[Rule, ...] = ()
    reserves: tuple[Reserve, ...] = ()
    hosts: tuple[HostRule, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()

    @cached_property
    def digest(self) -> str:
        """The first 12 hex digits of the SHA-256 of all that the policy says, without the places where it says so."""
        return hashlib.sha256(repr(_compared(self)).encode()).hexdigest()[:12]

    def weight_of(self, user: str | None) -> float:
        """Return the weight of `user` in the fair share: of the first glob that matches."""
        return next((weight for glob, weight in self.weights if fnmatchcase(user or "", glob)), 1.0)

    @cached_property
    def selectors(self) -> tuple[Selector, ...]:
        """Every selector that some clause uses, each once: devices that these treat alike are alike to the policy."""
        found: dict[Selector, None] = {}
        for rule in self.rules:
            wishes = (p.selector for p in rule.prefer or () if p.selector is not None)
            found.update(dict.fromkeys((*(rule.allow or ()), *(rule.deny or ()), *wishes)))
        found.update(dict.fromkeys(h.match for h in self.hosts))
        return tuple(found)


NO_POLICY: Final = Policy()


def is_literal(glob: str) -> bool:
    """Whether `glob` has no wildcard."""
    return not any(c in WILDCARDS for c in glob)


def literal_characters(glob: str) -> int:
    """Return how many characters of `glob` stand for themselves; a set in brackets is one wildcard."""
    count, inside = 0, False
    for c in glob:
        inside = (inside or c == "[") and c != "]"
        count += not inside and c not in "*?]"
    return count


def within(minute: int, hours: tuple[int, int]) -> bool:
    """Whether a minute of the day lies in `hours`, from inclusive, until exclusive; equal ends are the whole day."""
    start, end = hours
    return start <= minute < end if start < end else minute >= start or minute < end


def clock_text(minute: int) -> str:
    """Return ``22:05`` for 1325."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _compared(value: Any) -> Any:
    """Return what counts when values are compared, as nested lists: the same text in every process, whatever its seed for sets."""
    if is_dataclass(value):
        return [type(value).__name__, *(_compared(getattr(value, f.name)) for f in fields(value) if f.compare)]
    if isinstance(value, frozenset):
        return sorted(value)
    return [_compared(v) for v in value] if isinstance(value, tuple) else value


def _named(name: str | None, glob: str | None) -> bool:
    return glob is None or (name is not None and fnmatchcase(name, glob))


def subject_of(demand: Demand, priority: str | None) -> tuple[Any, ...]:
    """Return what `Match.holds` looks at."""
    return demand.stage, demand.model, demand.user, priority
