"""Whether the hosts' software fits together: alike, tolerable, or not to be mixed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.hardware.skew import RULES, Skew, compare
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

_CURE: Final = "install the same release on both hosts"


def across(hosts: list[Facts], head: str | None) -> Iterator[Finding]:
    """Compare each host's software with the head's; without a head among them, with the first host's."""
    known = [facts for facts in hosts if facts.at("software")]
    if not known:
        return
    base = next((facts for facts in known if facts.host == head), known[0])
    for facts in known:
        if facts is not base:
            yield from against(base, facts)


def against(base: Facts, facts: Facts) -> Iterator[Finding]:
    """Return how a host's software differs from that of another, the worst first."""
    check = Check("software", "versions", facts.host)
    skews = compare(_versions(base), _versions(facts), base.texts("software", "packages"), facts.texts("software", "packages"))
    differing = [skew for skew in skews if skew.level != "ok"]
    for skew in differing:
        make = check.fault if skew.level == "refuse" else check.warn
        evidence = {"package": skew.what, base.host: skew.ours, facts.host: skew.theirs}
        yield make(_told(skew, base.host), skew.cure or _CURE, **evidence)
    if not differing:
        same = base.text("software", "lock_hash") == facts.text("software", "lock_hash") is not None
        what = f"the same packages as {base.host}" if same else f"nothing differs from {base.host} that matters"
        yield check.ok(what, lock_hash=facts.text("software", "lock_hash"))


def _told(skew: Skew, base: str) -> str:
    name = skew.what.replace("_", "-")
    return f"{name} {skew.theirs or 'is not reported'}, and {base} has {skew.ours or 'none that it reports'}: {skew.why}"


def _versions(facts: Facts) -> dict[str, str | None]:
    return {name: facts.text("software", name) for name in (*RULES, "lock_hash")}
