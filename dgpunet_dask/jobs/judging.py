"""What becomes of a unit whose attempt failed. Pure.

*Its process died or hung*: it is tried elsewhere. A unit whose processes died on two hosts, or more often than its stage allows, is
*poison*: it is set aside with its evidence, and the job goes on without it.
*Its code raised*: trying again would give the same, so the unit has failed. *The system failed* (disk, network, an environment): the
unit is not to blame and is tried again, for as long as that may help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from dgpunet_dask.errors import DgpunetError, DiskFull, FolderMissing, OutOfFiles, StageHostLost, StageHung, WorkerKilled

#: How often a unit is tried again for a cause that is not its own, and how long before each time (twice as long each, up to the last).
SYSTEM_TRIES: Final = 8
SYSTEM_WAIT_S: Final = 0.5
SYSTEM_WAIT_MOST_S: Final = 30.0
#: Processes may die under a unit on so many hosts before it counts as poison.
HOSTS_MAX: Final = 2

Next = Literal["again", "quarantined", "failed"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed attempt.

    Parameters
    ----------
    error
        What it ended with.
    host, device
        Where, as far as that is known.
    alone
        Whether no other unit of ours ran in the process that died, so that this one must have been it.
    stage
        That of the unit, ``-`` where it is not known.
    """

    error: DgpunetError
    host: str | None = None
    device: str | None = None
    alone: bool = True
    stage: str = "-"

    @property
    def killed(self) -> bool:
        """Whether the process of the unit died or had to be killed."""
        return isinstance(self.error, StageHostLost | StageHung | WorkerKilled)


@dataclass(frozen=True)
class Verdict:
    """What is next: `wait_s` before it is tried again, and on which devices rather not."""

    next: Next
    wait_s: float = 0.0
    avoid: tuple[str, ...] = ()


def judge(failures: Sequence[Failure], retries: int) -> Verdict:
    """Return what becomes of a unit after `failures`, the last of which is new.

    Parameters
    ----------
    retries
        How often the stage allows a unit to be started again after its process died (job.yaml).
    """
    last = failures[-1]
    if isinstance(last.error, WorkerKilled) and last.alone:
        return Verdict("quarantined")  # Dask has tried it on several workers in a row
    if last.killed:
        return _after_death([f for f in failures if f.killed and f.alone], retries)
    if isinstance(last.error, DiskFull | FolderMissing | OutOfFiles):
        again = sum(isinstance(f.error, DiskFull | FolderMissing | OutOfFiles) for f in failures)
        if again <= SYSTEM_TRIES or isinstance(last.error, OutOfFiles):  # the head's own, which pass without anybody's hand
            return Verdict("again", min(SYSTEM_WAIT_MOST_S, SYSTEM_WAIT_S * 2.0 ** min(again - 1, SYSTEM_TRIES)))
    return Verdict("failed")


def _after_death(deaths: Sequence[Failure], retries: int) -> Verdict:
    hosts = {death.host for death in deaths if death.host is not None}
    if len(hosts) >= HOSTS_MAX or len(deaths) > retries:
        return Verdict("quarantined")
    return Verdict("again", avoid=tuple(sorted({death.device for death in deaths if death.device is not None})))
