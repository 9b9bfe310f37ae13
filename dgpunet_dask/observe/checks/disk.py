"""Room on the disks in use, and the settings that bound what lies there. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.observe.facts import Facts, gib
from dgpunet_dask.observe.finding import Check, Finding
from dgpunet_dask.units import shown_bytes

WARN_SHARE: Final = 0.10
WARN_BYTES: Final = 5 << 30
FAULT_SHARE: Final = 0.02


def room(facts: Facts) -> Iterator[Finding]:
    """Whether there is room on the disks in use, and enough for work to be started."""
    for row in facts.rows("disk"):
        total, free, path, floor = row.number("total"), row.number("free"), row.text("path") or "?", row.number("floor")
        if not total or free is None:
            continue
        check = Check("disk", "system", facts.host)
        text, told = f"{shown_bytes(free)} of {gib(total)} are free on the disk of {path}", {"path": path, "free": free, "total": total, "floor": floor}
        cure = f"free some space, or move $DGPUNET_HOME: `du -sh {path}/*` shows what is large"
        if floor is not None and free < floor:
            what = f"only {text}, below the floor of {shown_bytes(floor)}: no unit is started until there is more"
            yield check.fault(what, f"{cure}; a lower `disk: floor:` in config.yaml lets work go on", **told)
        elif free < total * FAULT_SHARE:
            yield check.fault(f"only {text}", cure, **told)
        elif free < total * WARN_SHARE or free < WARN_BYTES:
            yield check.warn(f"only {text}", cure, **told)
        else:
            yield check.ok(text, **told)


def settings(facts: Facts) -> Iterator[Finding]:
    """Whether the owner's settings can be read."""
    path = facts.text("settings", "path")
    if path is None:
        return
    check, mistakes = Check("settings", "system", facts.host), facts.texts("settings", "mistakes")
    if mistakes:
        cure = f"mend {path}: until then the last good settings stay in force, also under a head that comes back after a kill, and one that is started anew refuses it"
        yield check.fault(f"{path} is wrong: {'; '.join(mistakes[:3])}", cure, path=path, mistakes=list(mistakes))
    else:
        yield check.ok(f"{path} is right" if facts.flag("settings", "exists") else f"there is no {path}: the defaults hold", path=path)
