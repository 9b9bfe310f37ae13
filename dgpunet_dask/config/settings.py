"""What an owner may set in ``$DGPUNET_HOME/config.yaml``, as values. Pure: `settings_file` reads them.

Without a file, or where a key is missing, the defaults hold; they are written once, in `settings_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How much of the cluster one user may ask for.

    Parameters
    ----------
    jobs
        Queued and running at once.
    units
        Of one job.
    submissions_per_minute
        Jobs submitted within any minute.
    """

    jobs: int
    units: int
    submissions_per_minute: int


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The quotas: of everybody, and of users who are named."""

    everybody: Quota
    users: Mapping[str, Quota]

    def of(self, user: str | None, *, operates: bool = False) -> Quota | None:
        """Return the quota of a user; ``None``: there is none, as for operators who are not named."""
        named = None if user is None else self.users.get(user)
        return named or (None if operates else self.everybody)


@dataclass(frozen=True)
class Floor:
    """How much of a disk stays free: a share of it, a size, or a share that is at most a size.

    Parameters
    ----------
    share
        Of the disk, 0 to 1; ``None``: the size alone counts.
    most
        Bytes; ``None``: the share alone counts.
    """

    share: float | None
    most: int | None

    def of(self, total: int) -> int:
        """Return the bytes that stay free on a disk of `total` bytes: never more than half of it, so that small disks can be used."""
        stated = [] if self.most is None else [self.most]
        stated += [] if self.share is None else [int(total * self.share)]
        return min([total // 2, *stated])


@dataclass(frozen=True, kw_only=True)
class Backup:
    """Where copies of the ledger go: to `host`, or with ``auto`` to one that the head chooses, every so many seconds."""

    host: str
    every_s: float


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What may lie on the disk of a host. Sizes in bytes.

    Parameters
    ----------
    floor
        Below it no unit is started.
    logs, stage_logs
        Of daemons and workers, and of stage hosts.
    spill
        What the Dask worker of one device may write of results that do not fit into memory.
    caches
        Models, workloads and stage environments together; what is in use stays whatever this says.
    results, results_days
        Of jobs that have ended: all together, and how long each is kept.
    ledger_backup
        Copies of the ledger on another host.
    """

    floor: Floor
    logs: int
    stage_logs: int
    spill: int
    caches: int
    results: int
    results_days: float
    ledger_backup: Backup


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Which language model `ask` sends a context to; ``None``: the command or the environment names it."""

    endpoint: str | None
    model: str | None


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the head's searches use the cluster: `resident_percent` of a host's memory, 0 to 50, may hold vectors of very large indexes."""

    resident_percent: float

    def room_bytes(self, total: int) -> int:
        """Return what the worker of a host with `total` bytes of memory may hold."""
        return int(total * self.resident_percent / 100)


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """A model's folder, and the digest that its files must have (`retrieval.modelfiles`)."""

    folder: Path
    digest: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of it.

    Parameters
    ----------
    roots
        Folders of the head's host below which jobs of submitters may read.
    ask
        For the commands of the host that the file lies on.
    search
        How the head's searches use the cluster.
    rerankers
        Cross-encoders that searches may name.
    """

    roots: tuple[Path, ...]
    quotas: Quotas
    disk: Disk
    ask: Ask
    search: Search
    rerankers: Mapping[str, PinnedModel]
