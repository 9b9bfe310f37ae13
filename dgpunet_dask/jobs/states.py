"""What may become of a job, a unit and an attempt: the whole state machines as tables. Pure.

The ledger's SQL is made from these tables (`jobs.schema`), so that the database refuses what they do not allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from dgpunet_dask.model.job import FINAL_STATES, JOB_STATES, JOB_TRANSITIONS

__all__ = [
    "ATTEMPT_STATES", "ATTEMPT_TRANSITIONS", "EPOCHS_A_BOOT", "FINAL_STATES", "JOB_STATES", "JOB_TRANSITIONS", "LIVE", "OPEN", "UNIT_STATES",
    "UNIT_TRANSITIONS", "AttemptState", "UnitState", "boot_of", "first_epoch",
]  # fmt: skip

#: ``ready``: nobody works on it. ``leased``: one attempt, or two, have a live lease. ``committed``: its results are durable.
#: ``failed``: its attempts failed and it is not tried again in this try of its job. ``quarantined``: the same, since it ended the processes
#: that ran it. ``dropped``: the last pass of the source did not give it; what it had committed is kept, in case a later pass does.
UnitState = Literal["ready", "leased", "committed", "failed", "quarantined", "dropped"]
UNIT_STATES: Final[tuple[str, ...]] = get_args(UnitState)

#: From `committed` a unit leaves only when its results were found damaged (to ``ready``) or when its source gives it no more.
UNIT_TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "ready": frozenset({"leased", "dropped"}),
    "leased": frozenset({"ready", "committed", "failed", "quarantined"}),
    "committed": frozenset({"ready", "dropped"}),
    "failed": frozenset({"ready", "dropped"}),
    "quarantined": frozenset({"ready", "dropped"}),
    "dropped": frozenset({"ready", "committed"}),
}

#: ``leased``: its lease lives; only such an attempt may commit. ``unknown``: an earlier head gave the lease, and its call may still run.
#: ``committed``: its results are the unit's. ``failed``: it ended with an error, which has a cause. ``lost``: what ran it is gone.
#: ``beaten``: another attempt of the unit committed first. ``stale``: it gave a result after its lease had ended, which was refused.
#: ``adopted``: its call went on without it and gave its result to a later attempt. ``damaged``: its results were committed and are gone.
AttemptState = Literal["leased", "unknown", "committed", "failed", "lost", "beaten", "stale", "adopted", "damaged"]
ATTEMPT_STATES: Final[tuple[str, ...]] = get_args(AttemptState)

ATTEMPT_TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "leased": frozenset({"unknown", "committed", "failed", "lost", "beaten"}),
    "unknown": frozenset({"lost", "stale", "adopted"}),
    "committed": frozenset({"damaged"}),
    "failed": frozenset(),
    "lost": frozenset({"stale", "adopted"}),
    "beaten": frozenset({"stale"}),
    "stale": frozenset(),
    "adopted": frozenset(),
    "damaged": frozenset(),
}

#: Attempts with a lease that may commit.
LIVE: Final = frozenset({"leased"})
#: Attempts that have not ended.
OPEN: Final = frozenset({"leased", "unknown"})

#: An epoch is the number of the ledger's boot times this, plus a counter: no epoch of an earlier head is ever current.
EPOCHS_A_BOOT: Final = 1 << 32


def first_epoch(boot: int) -> int:
    """Return the first epoch of a boot; all epochs of earlier boots are below it."""
    return boot * EPOCHS_A_BOOT


def boot_of(epoch: int) -> int:
    """Return the boot that gave an epoch."""
    return epoch // EPOCHS_A_BOOT
