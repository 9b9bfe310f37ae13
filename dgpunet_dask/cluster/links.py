"""Measured links between hosts: how fast, how far, whose turn it is, and which have become slow. Pure: the caller brings the time.

A link goes one way, from the host that sends to the host that receives; the other way is another link. Its rate is the median of the last
three measurements, so that one that was disturbed by other traffic says nothing. The *baseline* is the best that a link has been seen to
do; one that now gives less than 70 % of it is *degraded*.

>>> table = LinkTable()
>>> table.plan(["a", "b", "c"], now=0.0)
[('a', 'b')]
>>> table.note("a", "b", now=1.0, bytes_per_s=1.1e9, rtt_s=0.0002)
>>> table.transfer_s(110_000_000, "a", "b")
0.1001
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from dgpunet_dask.errors import NewerFormat

VERSION: Final = 1
#: How often each link is measured.
EVERY_S: Final = 900.0
#: A measurement that was handed out and never reported counts as failed after so long.
LOST_S: Final = 30.0
#: One that failed is tried again after so long.
RETRY_S: Final = 60.0
#: Of a baseline: below it a link is degraded.
DEGRADED: Final = 0.7
#: Measurements that a rate is the median of.
KEPT: Final = 3
#: Bytes per second, and seconds, that nothing reaches; a whole number may be too large to be a float.
_RATE_MOST: Final = 1e15

Way = tuple[str, str]


@dataclass(frozen=True)
class Link:
    """What is known of one way.

    Parameters
    ----------
    rates
        Bytes per second of the last measurements under TLS, the newest last.
    rtt_s
        The shortest round trip of the last measurement; ``None``: not known.
    at
        When it was last measured, in seconds since 1970; 0 if it never was.
    """

    rates: tuple[float, ...] = ()
    rtt_s: float | None = None
    at: float = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """The median of the last rates, ``None`` before the first."""
        return statistics.median(self.rates) if self.rates else None


class Degraded(NamedTuple):
    """A link that is slow now: bytes per second now and at its best."""

    src: str
    dst: str
    now: float
    was: float

    @property
    def share(self) -> float:
        """Of the baseline, 0 to 1."""
        return self.now / self.was


@dataclass
class LinkTable:
    """All links of a cluster. Hosts are named as in the fleet."""

    links: dict[Way, Link] = field(default_factory=dict)
    baseline: dict[Way, float] = field(default_factory=dict)
    _running: dict[Way, float] = field(default_factory=dict)
    _tried: dict[Way, float] = field(default_factory=dict)

    # Measuring

    def plan(self, hosts: Iterable[str], now: float, *, every_s: float = EVERY_S, busy: Collection[str] = ()) -> list[Way]:
        """Return what is to be measured now, the longest overdue first, and those never measured before all others.

        No two of them, and none of those that run, share a host, since they would slow each other. `busy` hosts are left in peace.
        """
        self._running = {way: since for way, since in self._running.items() if _within(LOST_S, since, now)}
        taken = {host for way in self._running for host in way} | set(busy)
        due = sorted((self._last(way), way) for way in _ways(hosts))
        found: list[Way] = []
        for last, way in due:
            fresh = _within(every_s, last, now) or _within(RETRY_S, self._tried.get(way, -math.inf), now)
            if not fresh and taken.isdisjoint(way):
                found.append(way)
                taken.update(way)
        return found

    def begin(self, src: str, dst: str, now: float) -> None:
        """Note that a measurement was handed out; the host does not count as free before it ends."""
        self._running[src, dst] = self._tried[src, dst] = now

    def note(self, src: str, dst: str, now: float, *, bytes_per_s: float | None, rtt_s: float | None = None) -> None:
        """Take a measurement; ``None`` as its rate, or one that is no positive number, says that it failed."""
        self._running.pop((src, dst), None)
        self._tried[src, dst] = now
        before = self.links.get((src, dst), Link())
        known = rtt_s if _is_rate(rtt_s) else before.rtt_s
        if bytes_per_s is None or not _is_rate(bytes_per_s):
            self.links[src, dst] = replace(before, rtt_s=known)
            return
        self.links[src, dst] = Link((*before.rates, float(bytes_per_s))[-KEPT:], known, now)
        self._raise_baseline(src, dst)

    def _raise_baseline(self, src: str, dst: str) -> None:
        """Let the baseline be the best median of three: one lucky measurement would make a link look degraded for ever."""
        link = self.links[src, dst]
        if len(link.rates) == KEPT and link.bytes_per_s is not None:
            self.baseline[src, dst] = max(link.bytes_per_s, self.baseline.get((src, dst), 0.0))

    def _last(self, way: Way) -> float:
        return self.links[way].at if way in self.links and self.links[way].rates else -math.inf

    def keep_only(self, hosts: Iterable[str]) -> None:
        """Forget the links of hosts that have left for good."""
        ways = set(_ways(hosts))
        self.links = {way: link for way, link in self.links.items() if way in ways}
        self.baseline = {way: rate for way, rate in self.baseline.items() if way in ways}
        self._running = {way: at for way, at in self._running.items() if way in ways}
        self._tried = {way: at for way, at in self._tried.items() if way in ways}

    # Reading

    def rate(self, src: str, dst: str) -> float | None:
        """Return the bytes per second from `src` to `dst`, ``None`` where that was not measured."""
        link = self.links.get((src, dst))
        return None if link is None else link.bytes_per_s

    def rates(self) -> dict[Way, float]:
        """Return the bytes per second of every measured link, as `Fleet.links` has them."""
        return {way: rate for way in sorted(self.links) if (rate := self.links[way].bytes_per_s) is not None}

    def transfer_s(self, nbytes: int, src: str, dst: str, stated: Mapping[str, float] | None = None) -> float | None:
        """Return the seconds that `nbytes` take from `src` to `dst`: half a round trip, and bytes ÷ rate.

        `stated`: bytes per second of each host's own link, as the fleet states it: the slower end counts where nothing was measured.
        ``None``: not known.
        """
        if src == dst:
            return 0.0
        ends = [rate for host in (src, dst) if (rate := (stated or {}).get(host)) is not None]
        rate = self.rate(src, dst) or min(ends, default=None)
        if rate is None:
            return None
        link = self.links.get((src, dst))
        return (link.rtt_s if link is not None and link.rtt_s is not None else 0.0) / 2 + nbytes / rate

    def degraded(self, below: float = DEGRADED) -> list[Degraded]:
        """Return the links whose rate is less than `below` of their baseline, the worst first."""
        found = [
            Degraded(*way, rate, was) for way, was in self.baseline.items()
            if (rate := self.rate(*way)) is not None and rate < below * was
        ]  # fmt: skip
        return sorted(found, key=lambda d: (d.share, d.src, d.dst))

    def reset_baseline(self) -> None:
        """Let what is measured now be the baseline: a cable or a switch was changed on purpose."""
        self.baseline = self.rates()

    # Kept

    def to_json(self) -> dict[str, Any]:
        """Return what is kept in ``H/links.json``."""
        rows = [
            {"src": src, "dst": dst, "rates": list(link.rates), "rtt_s": link.rtt_s, "at": link.at, "baseline": self.baseline.get((src, dst))}
            for (src, dst), link in sorted(self.links.items())
        ]  # fmt: skip
        return {"version": VERSION, "links": rows}

    @classmethod
    def from_json(cls, raw: Any, path: object = "links.json") -> LinkTable:
        """Return the table that `to_json` gave.

        Raises
        ------
        NewerFormat
            If a newer release wrote it.
        ValueError
            If it is no such table.
        """
        table = cls()
        try:
            if raw["version"] > VERSION:
                raise NewerFormat(path=path, found=raw["version"], known=VERSION)
            for row in raw["links"]:
                way = (str(row["src"]), str(row["dst"]))
                rates = tuple(float(rate) for rate in row["rates"] if _is_rate(rate))
                table.links[way] = Link(rates[-KEPT:], row["rtt_s"] if _is_rate(row["rtt_s"]) else None, float(row["at"]))
                if _is_rate(row["baseline"]):
                    table.baseline[way] = float(row["baseline"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it holds no table of links ({error})") from error
        return table

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping per link for `doctor` and the status page: src, dst, bytes_per_s, rtt_s, at, baseline."""
        return [
            {"src": src, "dst": dst, "bytes_per_s": link.bytes_per_s, "rtt_s": link.rtt_s, "at": link.at or None, "baseline": self.baseline.get((src, dst))}
            for (src, dst), link in sorted(self.links.items())
        ]  # fmt: skip


def _ways(hosts: Iterable[str]) -> Iterator[Way]:
    names = sorted(set(hosts))
    return ((src, dst) for src in names for dst in names if src != dst)


def _within(seconds: float, since: float, now: float) -> bool:
    """Whether `since` is at most so long ago. What is yet to come was told by a clock that has been set back since."""
    return 0 <= now - since < seconds


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _RATE_MOST


# Compression


@dataclass(frozen=True)
class Codec:
    """What compressing takes: bytes of plain data per second in and out, on one core."""

    name: str
    pack_bytes_per_s: float
    unpack_bytes_per_s: float


def compress_for(bytes_per_s: float | None, ratio: float, codec: Codec) -> bool:
    """Whether data that compresses to `ratio` of its size gets across a link of `bytes_per_s` sooner compressed.

    Both hosts work on it while the link waits, as Dask's comms do: it pays where what the link saves is more than what both ends spend.
    A link that was not measured is taken for a fast one.
    """
    if bytes_per_s is None or not 0 < ratio < 1:
        return False
    return (1 - ratio) / bytes_per_s > 1 / codec.pack_bytes_per_s + 1 / codec.unpack_bytes_per_s


def break_even(ratio: float, codec: Codec) -> float:
    """Return the bytes per second of a link above which compressing to `ratio` costs more than it saves."""
    return (1 - ratio) / (1 / codec.pack_bytes_per_s + 1 / codec.unpack_bytes_per_s)


#: What Dask can compress with, by its name there: rates of text on one core of a desktop. Of these only zlib comes with Python.
CODECS: Final = (Codec("lz4", 5e8, 2e9), Codec("zstd", 3e8, 9e8), Codec("zlib", 3e7, 2e8))
#: Of its size, what packed text compresses to. Vectors and images hardly compress, and Dask sends as they are what a sample shows so.
TEXT_RATIO: Final = 0.5


def comm_compression(rates: Iterable[float], available: Collection[str], ratio: float = TEXT_RATIO) -> str | None:
    """Return the codec for Dask's comms in a whole cluster, ``None`` for none, by the measured `rates` of its links.

    Dask compresses between two processes only if both are set to the same codec, so there is one answer for all hosts. With equal traffic
    on all links the harmonic mean of their rates decides.
    """
    known = [rate for rate in rates if _is_rate(rate)]
    if not known:
        return None
    mean = statistics.harmonic_mean(known)
    paying = [codec for codec in CODECS if codec.name in available and compress_for(mean, ratio, codec)]
    return max(paying, key=lambda codec: break_even(ratio, codec)).name if paying else None
