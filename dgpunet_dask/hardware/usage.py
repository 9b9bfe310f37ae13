"""Whose memory a card holds: ours, or that of games, browsers and other people's programs. Pure.

NVML's list of processes tells, where it can be read: in a container it may be empty or name processes by numbers of another name space,
and some drivers hide the sizes. Then the ledger stands in: what is used beyond what is charged is not ours.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

#: A change of less than this is not worth telling.
NEWS_MIB: Final = 64


@dataclass(frozen=True, kw_only=True)
class Use:
    """What is used of one card at one moment, in MiB.

    Parameters
    ----------
    used_mib
        By whomever; ``None`` where the card does not report it.
    ours_mib
        By our processes that are listed; ``None`` where the list, or one of our sizes in it, is hidden.
    others_mib
        By listed processes that are surely not ours.
    context_mib
        The part of `ours_mib` that no stage holds: the worker's own CUDA context.
    """

    used_mib: int | None = None
    ours_mib: int | None = None
    others_mib: int = 0
    context_mib: int = 0


def use_of(
    used_mib: int | None,
    processes: Collection[tuple[int, int | None]] | None,
    *,
    ours: Collection[int],
    workers: Collection[int],
    alive: Collection[int],
) -> Use:
    """Return whose the use of a card is.

    Parameters
    ----------
    processes
        Process id and MiB of each process that the driver lists; MiB ``None`` where hidden.
    ours, workers
        Our processes on this machine, and those of them that hold no stage.
    alive
        Ids that exist here: any other is a number of another name space, and may stand for a process of ours.
    """
    if processes is None:
        return Use(used_mib=used_mib)
    mine = [mib for pid, mib in processes if pid in ours]
    hidden = any(mib is None for mib in mine)
    return Use(
        used_mib=used_mib,
        ours_mib=None if hidden else sum(mib or 0 for mib in mine),
        others_mib=sum(mib or 0 for pid, mib in processes if pid not in ours and pid in alive),
        context_mib=sum(mib or 0 for pid, mib in processes if pid in ours and pid in workers),
    )


def is_news(told: Use | None, now: Use) -> bool:
    """Whether `now` differs enough from what was told last. What is not listed by process is told each time: the ledger has a part in it."""
    if told is None or (told.used_mib is None) != (now.used_mib is None) or (told.ours_mib is None) != (now.ours_mib is None):
        return True
    if now.used_mib is not None and not now.ours_mib:
        return True
    pairs = zip(_sizes(told), _sizes(now), strict=True)
    return any(abs((a or 0) - (b or 0)) >= NEWS_MIB for a, b in pairs)


def _sizes(use: Use) -> tuple[int | None, ...]:
    return use.used_mib, use.ours_mib, use.others_mib, use.context_mib
