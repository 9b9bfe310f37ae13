"""A decision as people read it: two voices, a line for the list and a table with numbers per device. Text only; nothing is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from dgpunet_dask.model.decision import Decision, Verdict

Class = Literal["by rule", "never", "not now"]
KINDS: Final[tuple[Class, ...]] = ("never", "by rule", "not now")

#: What the owner's rules forbid, apart from what the hardware cannot do.
RULE_CODES: Final = frozenset({"denied", "not_allowed", "role", "owner"})


class Row(NamedTuple):
    """One verdict as a line of the table."""

    device: str
    kind: Class
    code: str
    need: str
    have: str


def kind_of(verdict: Verdict) -> Class:
    """Return what would help: another rule, another device, or time."""
    if verdict.code in RULE_CODES:
        return "by rule"
    return "never" if verdict.never else "not now"


def rows(decision: Decision) -> list[Row]:
    """Return every verdict, devices by name, each device's verdicts in the order in which reasons are named."""
    return [
        Row(v.device, kind_of(v), v.code, v.need, v.have) for name in sorted(decision.refusals) for v in decision.refusals[name]
    ]


def headline(decision: Decision, what: str = "work") -> str:
    """Return the outcome in one line: where it goes, or a histogram of first reasons."""
    if decision.outcome == "placed":
        leaving = f", once {', '.join(decision.evict)} has been unloaded" if decision.evict else ""
        return f"{what}: on {' + '.join(decision.devices)}{leaving}"
    told = "waits; no device will do now" if decision.outcome == "wait" else "can never be placed on this fleet"
    return f"{what}: {told}: {decision.summary()}"


def reasons(decision: Decision) -> list[str]:
    """Return a line for each class of refusal that occurs, first reasons only: ``never: 4070l vram_total 10GiB > 7680MiB``."""
    first = decision.first_verdicts
    lines = []
    for kind in KINDS:
        named = [f"{v.device} {v.code} (needs {v.need}, has {v.have})" for v in first if kind_of(v) == kind]
        lines += [f"{kind:<7}: {'; '.join(named)}"] if named else []
    return lines


def ranking(decision: Decision) -> list[str]:
    """Return a line for each device that will do, best first, with the parts of its total."""
    return [
        f"{place}. {scored.device}  {scored.total:.1f} = {' + '.join(f'{name} {part:.1f}' for name, part in scored.parts.items())}"
        for place, scored in enumerate(decision.ranking, start=1)
    ]


def table(decision: Decision) -> str:
    """Return all verdicts as an aligned table, empty where no device refused."""
    found = rows(decision)
    return _aligned([("device", "", "reason", "needs", "has"), *found]) if found else ""


def explain(decision: Decision, what: str = "work") -> str:
    """Return the whole decision: headline, ranking and table."""
    return "\n".join([headline(decision, what), *ranking(decision), *filter(None, [table(decision)])])


def _aligned(lines: Iterable[Sequence[str]]) -> str:
    lines = list(lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
