"""The outcome of a placement: a device, or one named reason per device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: By rule, or for ever: no waiting helps.
NEVER_CODES: Final = (
    "denied", "not_allowed", "role", "owner", "vram_unknown", "vram_total", "host_ram", "host_cpus",
    "compute_capability", "feature", "driver", "runtime_arch",
)  # fmt: skip
#: Not now: the device could hold the demand at another moment.
NOT_NOW_CODES: Final = ("lost", "draining", "cordoned", "exclusive", "share_limit", "reserved", "vram_free", "busy")
#: The order in which the first reason of a device is named (design §5.4).
REASON_ORDER: Final[Mapping[str, int]] = {code: rank for rank, code in enumerate(NEVER_CODES + NOT_NOW_CODES)}

#: What the names of generated rules begin with that keep work from a card until others have succeeded there.
TRIAL: Final = "probation-"

Outcome = Literal["placed", "wait", "never"]


@dataclass(frozen=True)
class Verdict:
    """Why one device will not do: a code of `REASON_ORDER`, what was needed and what is there, as text with units.

    `rule`: the policy line that asks for it, as ``file:line (name)``; ``None`` where the demand itself or the hardware does.
    """

    device: str
    code: str
    need: str
    have: str
    rule: str | None = None

    @property
    def never(self) -> bool:
        """Whether the device fails by rule or for ever."""
        return self.code in NEVER_CODES

    @property
    def final(self) -> bool:
        """Whether only another policy or another device would help: the owner's conditions change by themselves, and trials end."""
        on_trial = self.code == "denied" and f"({TRIAL}" in (self.rule or "")
        return self.never and self.code != "owner" and not on_trial

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a mapping."""
        return {"device": self.device, "code": self.code, "need": self.need, "have": self.have, "rule": self.rule}


@dataclass(frozen=True)
class Scored:
    """One device that will do: `total` = Σ of `parts`, each part weight × score in 0…1. `finish_s`: when the work would be done there."""

    device: str
    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    finish_s: float | None = None


@dataclass(frozen=True)
class Decision:
    """Where a demand goes, or why it does not.

    `ranking` holds every device that will do now, best first; `refusals` the others, each with all its verdicts in
    `REASON_ORDER`. Every device of the fleet is in exactly one of the two. `evict` names the idle residents that must leave the
    chosen device first. `device` is the first of the ranking (a list of names for a gang). `waits_for` is the device that would finish
    waiting work first, where that can be said: work waits for it by choice if the ranking is not empty. `policy`: the digest of the
    policy that decided.
    """

    outcome: Outcome
    ranking: tuple[Scored, ...] = ()
    refusals: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    evict: tuple[str, ...] = ()
    waits_for: str | None = None
    policy: str = ""

    @property
    def final(self) -> bool:
        """Whether no waiting can help. The owner's conditions may come to hold and trials end: these alone are not final."""
        return self.outcome == "never" and all(any(v.final for v in verdicts) for verdicts in self.refusals.values())

    @property
    def device(self) -> str | None:
        """The chosen device, ``None`` where the demand waits or can never run."""
        return self.devices[0] if self.devices else None

    @property
    def first_verdicts(self) -> tuple[Verdict, ...]:
        """The first reason of each refusing device, in the order of their names."""
        return tuple(self.refusals[name][0] for name in sorted(self.refusals))

    def summary(self) -> str:
        """Return a histogram such as ``3 vram_total, 1 compute_capability``, most frequent first."""
        counted = Counter(v.code for v in self.first_verdicts)
        ordered = sorted(counted.items(), key=lambda item: (-item[1], REASON_ORDER[item[0]]))
        return ", ".join(f"{count} {code}" for code, count in ordered) or "the fleet is empty"
