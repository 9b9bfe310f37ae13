"""How much of a card others use. Pure."""

from __future__ import annotations


def foreign_mib(used_mib: int, ours_mib: int | None, others_mib: int, charged_mib: int) -> int:
    """Return what processes that are not ours use of a card, in MiB, never negative.

    Parameters
    ----------
    used_mib
        What the card reports as used.
    ours_mib
        What our own processes use of it, ``None`` where they cannot be told apart. With none of ours in sight while something is
        charged, the list of processes is not believed: a container hides them.
    others_mib
        What processes use that are surely not ours.
    charged_mib
        What the ledger has given out on the card, foreign use left out.
    """
    if ours_mib is not None and (ours_mib > 0 or charged_mib == 0):
        return max(0, used_mib - ours_mib)
    return max(0, min(others_mib, used_mib), used_mib - charged_mib)
