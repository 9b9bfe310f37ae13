"""What a check found: how bad it is, whose fault, the evidence and the cure. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Level = Literal["ok", "warn", "fault"]
Cause = Literal["hardware", "network", "versions", "system", "workload"]

LEVELS: Final[tuple[Level, ...]] = get_args(Level)
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


@dataclass(frozen=True)
class Finding:
    """One answer of one check.

    Parameters
    ----------
    check
        The check's name, fixed for scripts: ``pcie_link``.
    level
        ``warn`` slows work or may break it later; with ``fault`` something does not work now.
    cause
        The class of what to look at.
    subject
        What it is about: a host, ``HOST/CARD``, or ``SOURCE -> DESTINATION``.
    what
        The finding in one sentence.
    evidence
        The facts it rests on, as JSON.
    cure
        What to do; ``None`` where nothing needs doing.
    """

    check: str
    level: Level
    cause: Cause
    subject: str
    what: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a mapping of plain values."""
        return {
            "check": self.check, "level": self.level, "cause": self.cause, "subject": self.subject, "what": self.what,
            "evidence": dict(self.evidence), "cure": self.cure,
        }  # fmt: skip


@dataclass(frozen=True)
class Check:
    """Makes the findings of one check about one subject, so that its name is written once."""

    name: str
    cause: Cause
    subject: str

    def ok(self, what: str, **evidence: Any) -> Finding:
        """Return that all is well."""
        return Finding(self.name, "ok", self.cause, self.subject, what, evidence)

    def warn(self, what: str, cure: str, **evidence: Any) -> Finding:
        """Return a warning."""
        return Finding(self.name, "warn", self.cause, self.subject, what, evidence, cure)

    def fault(self, what: str, cure: str, **evidence: Any) -> Finding:
        """Return a fault."""
        return Finding(self.name, "fault", self.cause, self.subject, what, evidence, cure)


def summary(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in LEVELS}


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by cause, what is wrong first, then by check and subject."""
    return sorted(findings, key=lambda f: (CAUSES.index(f.cause), -LEVELS.index(f.level), f.check, f.subject, f.what))
