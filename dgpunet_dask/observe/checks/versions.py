"""Whether the hosts' software fits together: alike, tolerable, or not to be mixed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

#: How many leading numbers must be equal: values travel pickled, which other minor versions may read otherwise.
_REFUSED: Final = {"dgpunet_dask": 2, "distributed": None, "dask": None, "python": 2}
_WARNED: Final = ("python", "torch", "numpy", "dask_cuda", "dgpunet_dask")
_CURE: Final = "install the same release on both: `pip install -c constraints.txt dgpunet-dask`, then restart the host's service"


def across(hosts: list[Facts], head: str | None) -> Iterator[Finding]:
    """Compare each host's software with the head's; without a head among them, with the first host's."""
    known = [facts for facts in hosts if facts.at("software") is not None]
    if not known:
        return
    base = next((facts for facts in known if facts.host == head), known[0])
    for facts in known:
        if facts is not base:
            yield from against(base, facts)


def against(base: Facts, facts: Facts) -> Iterator[Finding]:
    """Return what differs between a host's software and that of another, the worst first."""
    check = Check("software", "versions", facts.host)
    refused = [key for key, width in _REFUSED.items() if _differs(base, facts, key, width)]
    warned = [key for key in _WARNED if key not in refused and _differs(base, facts, key, None)]
    for key in refused:
        what = f"{_told(facts, key)}, and {base.host} has {base.at('software', key)}: they do not understand each other"
        yield check.fault(what, _CURE, **_both(base, facts, key))
    for key in warned:
        what = f"{_told(facts, key)}, and {base.host} has {base.at('software', key)}: results may differ"
        yield check.warn(what, _CURE, **_both(base, facts, key))
    if not refused and not warned:
        ours, theirs = base.text("software", "lock_hash"), facts.text("software", "lock_hash")
        same = "the same packages as" if ours is not None and ours == theirs else "the same main packages as"
        yield check.ok(f"{same} {base.host}", lock_hash=theirs)


def _differs(base: Facts, facts: Facts, key: str, width: int | None) -> bool:
    ours, theirs = base.text("software", key), facts.text("software", key)
    if ours is None or theirs is None:
        return False
    return ours.split(".")[:width] != theirs.split(".")[:width]


def _told(facts: Facts, key: str) -> str:
    return f"{key.replace('_', '-')} is {facts.at('software', key)}"


def _both(base: Facts, facts: Facts, key: str) -> dict[str, object]:
    return {"package": key, facts.host: facts.at("software", key), base.host: base.at("software", key)}
