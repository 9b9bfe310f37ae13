"""All checks of one machine's facts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from dgpunet_dask.observe.checks import cards, cuda, disk, network, system, workload
from dgpunet_dask.observe.facts import VERSION, Facts
from dgpunet_dask.observe.finding import Check, Finding

HostCheck = Callable[[Facts], Iterable[Finding]]

OF_A_HOST: Final[tuple[HostCheck, ...]] = (
    cards.driver, cards.xids, cards.canary, cuda.torch_build, cuda.driver_age, cuda.arches, network.interface, network.path_mtu, network.ports,
    system.clock, disk.room, disk.settings, system.memory, system.open_files, system.power, system.home, system.sqlite, system.certificate, system.probes,
)  # fmt: skip
OF_A_CARD: Final[tuple[HostCheck, ...]] = (
    cards.lost, cards.throttle, cards.pcie, cards.power_limit, cards.ecc, cards.display, workload.foreign_memory,
)  # fmt: skip


def check_host(raw: Mapping[str, Any], host: str | None = None) -> list[Finding]:
    """Return what the facts of one machine mean.

    Parameters
    ----------
    raw
        What `collect.collect_local` gathered, perhaps on another machine and by another release.
    host
        What to call it; default: what it calls itself.
    """
    name = host or Facts(raw, "").text("host") or "this host"
    facts = Facts(raw, name)
    version = facts.number("version")
    if version is not None and version > VERSION:
        cure = "upgrade dgpunet-dask here to the release that runs there"
        newer = Check("facts", "versions", name).warn(f"its facts have format {version:g}, and this release reads up to {VERSION}", cure)
        return [newer, *_run(facts)]
    return list(_run(facts))


def _run(facts: Facts) -> Iterator[Finding]:
    for check in OF_A_HOST:
        yield from guarded(check, facts)
    for card in facts.rows("cards"):
        for check in OF_A_CARD if card.flag("present") is not False else (cards.lost,):
            yield from guarded(check, card)


def guarded(check: HostCheck, facts: Facts, name: str = "") -> list[Finding]:
    """Return the findings of one check. One that fails tells so and harms no other: facts may come from another release."""
    try:
        return list(check(facts))
    except Exception as error:
        name = name or getattr(check, "__name__", "check")
        what = f"the check {name} does not understand the facts: {type(error).__name__}: {error}"
        return [Check("facts", "system", facts.host).warn(what, "run one release on all hosts; if they do, please report this", failed=name)]
