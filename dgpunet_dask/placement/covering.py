"""Which rules apply to whatever another rule applies to, exactly: two matches overlap, or one covers the other."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from dgpunet_dask.model.demand import PRIORITIES
from dgpunet_dask.model.policy import LAYERS, Match, Rule, is_literal
from dgpunet_dask.placement.globs import covers, overlap

#: What a match on priority is held against: there are only these, so that they are tried one by one.
ALL: Final = tuple(PRIORITIES)
#: While the priority itself is looked for, work has none yet, which a glob sees as empty text.
UNSTATED: Final = ("",)


def matches_overlap(one: Match, other: Match) -> bool:
    """Whether some demand is matched by both."""
    a, b = one.globs, other.globs
    shared = a.keys() & b.keys()
    if "priority" in shared and not set(taken(one)) & set(taken(other)):
        return False
    return all(_overlap(a[key], b[key]) for key in shared - {"priority"})


def _overlap(one: str, other: str) -> bool:
    return one == other if is_literal(one) and is_literal(other) else overlap(one, other)


def match_covers(wide: Match, narrow: Match, priorities: Iterable[str] = ALL) -> bool:
    """Whether every demand of one of `priorities` that `narrow` matches is matched by `wide`."""
    a, b = wide.globs, narrow.globs
    if not all(_covers(glob, b.get(key, "*")) for key, glob in a.items() if key != "priority"):
        return False
    return wide.priority is None or set(taken(narrow, priorities)) <= set(taken(wide, priorities))


def _covers(wide: str, narrow: str) -> bool:
    if wide in {"*", narrow}:
        return True
    return fnmatchcase(narrow, wide) if is_literal(narrow) else not is_literal(wide) and covers(wide, narrow)


def taken(match: Match, priorities: Iterable[str] = ALL) -> tuple[str, ...]:
    """Return those of `priorities` that `match` takes."""
    only = Match(priority=match.priority)
    return tuple(p for p in priorities if only.holds(None, None, None, p))


def outranks(one: Rule, other: Rule) -> bool:
    """Whether a clause of `one` counts rather than that of `other` where both match."""
    return (LAYERS[one.layer], one.match.specificity) > (LAYERS[other.layer], other.match.specificity)
