"""What was measured between hosts: bandwidth against its baseline, round trips, both ways. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Final

from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

#: Below this share of what a link once did, it is told.
DEGRADED: Final = 0.70
#: One way this much slower than the other is told: both ends of a cable do the same.
LOPSIDED: Final = 0.50
#: A round trip on a wired network of one house takes well under this; Wi-Fi and full queues take more.
ROUND_TRIP_S: Final = 0.005

Pair = tuple[str, str]
Rates = Mapping[Pair, float]


def rates_of(rows: tuple[Facts, ...], key: str = "bytes_per_s") -> dict[Pair, float]:
    """Return a number of each link by (source, destination); the last row of a link counts."""
    found = {}
    for row in rows:
        src, dst, number = row.text("src"), row.text("dst"), row.number(key)
        if src is not None and dst is not None and number is not None:
            found[src, dst] = number
    return found


def bandwidth(rates: Rates, baseline: Rates) -> Iterator[Finding]:
    """Whether each link does what it did, and the same both ways."""
    for (src, dst), rate in sorted(rates.items()):
        check = Check("link_rate", "network", f"{src} -> {dst}")
        before, back = baseline.get((src, dst)), rates.get((dst, src))
        told = {"bytes_per_s": rate, "baseline": before, "back": back}
        if before and rate < before * DEGRADED:
            yield check.warn(f"{_rate(rate)}, {rate / before:.0%} of the {_rate(before)} it once did", _SLOW, **told)
        elif back and rate < back * LOPSIDED:
            yield check.warn(f"{_rate(rate)}, and {_rate(back)} the other way", _LOPSIDED, **told)
        else:
            yield check.ok(_rate(rate), **told)


_SLOW: Final = (
    "see whether cable, switch port or interface changed (`ethtool IFACE` on both hosts), or whether something else uses the link; "
    "if the new speed is meant, remove $DGPUNET_HOME/links.json on the head so that it becomes the baseline"
)
_LOPSIDED: Final = "look at duplex and flow control of both ends (`ethtool IFACE`), and change the cable"


def round_trips(trips: Rates) -> Iterator[Finding]:
    """Whether round trips are short; one finding holds the matrix."""
    slow = {pair: trip for pair, trip in trips.items() if trip > ROUND_TRIP_S}
    for (src, dst), trip in sorted(slow.items()):
        what = f"a round trip takes {trip * 1e3:.1f} ms"
        cure = "plug in a cable where Wi-Fi is used, and see what fills the link"
        yield Check("round_trip", "network", f"{src} -> {dst}").warn(what, cure, rtt_s=trip)
    if trips and not slow:
        matrix = {f"{src} -> {dst}": trip for (src, dst), trip in sorted(trips.items())}
        what = f"round trips take {statistics.median(trips.values()) * 1e3:.2f} ms in the median of {len(trips)} links"
        yield Check("round_trip", "network", "all hosts").ok(what, rtt_s=matrix)


def unmeasured(hosts: list[str], rates: Rates) -> Iterator[Finding]:
    """Which links nobody has measured yet."""
    missing = [f"{src} -> {dst}" for src in hosts for dst in hosts if src != dst and (src, dst) not in rates]
    if missing:
        what = f"{len(missing)} of {len(hosts) * (len(hosts) - 1)} links are not measured yet; agents measure one after the other"
        yield Check("link_rate", "network", "all hosts").ok(what, missing=missing)


def _rate(rate: float) -> str:
    return f"{rate * 8 / 1e9:.2f} Gbit/s"
