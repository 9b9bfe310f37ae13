"""What the API's handlers share, and what they ask of the rest of the head."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.daemons.api.callers import Keys
from dgpunet_dask.daemons.api.limits import OPEN_OF_ADDRESS, OPEN_OF_ALL, OPEN_OF_USER, WAITING_MAX, Attempts, Open, Rates
from dgpunet_dask.daemons.api.sessions import Sessions
from dgpunet_dask.jobs.model_owners import ModelInfo
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.submitted import Submitted

JSON_BYTES_MAX: Final = 1 << 20
WORKLOAD_BYTES_MAX: Final = 256 << 20

NodeAction = Literal["cordon", "uncordon", "drain", "remove"]


class JobService(Protocol):
    """What the API asks of the jobs. Errors are DgpunetErrors."""

    async def submit(self, request: dict[str, Any], gone: Callable[[], bool]) -> Submitted:
        """Accept a job, or with ``array`` one for each set of parameters in it; what is said again with the same ``key`` is the same.

        The keys are those of `daemons.api.forms.JobRequest` and ``operates``. The owner is ``user``, and ``shared`` lets everybody read it.
        `gone` tells that nobody waits for the answer any more; where that was in time it ends with `jobs.looks.Abandoned`.
        TooManyJobs if the user has too many; KeyReused if the key was used for something else.
        """

    async def plan(self, request: dict[str, Any], gone: Callable[[], bool]) -> dict[str, Any]:
        """Return where each stage of a job could go now, without running it."""

    async def list(self) -> Sequence[JobStatus]:
        """Return all jobs, oldest first."""

    async def show(self, job_id: str) -> JobStatus:
        """Return one job; NoSuchJob if there is none."""

    async def events(self, job_id: str, since: int, wait_s: float) -> Sequence[dict[str, Any]]:
        """Return the job's events after number `since`, waiting up to `wait_s` seconds for the first."""

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; a finished one stays as it is."""

    async def retry(self, job_id: str) -> JobStatus:
        """Take a job that has not ended well back to the queue, with its committed units."""

    async def progress(self, job_id: str) -> dict[str, Any]:
        """Return how far a job is: `daemons.api.forms.Progress`."""

    async def attempts(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Return the attempts at a job's units, oldest first: `daemons.api.forms.Attempt`."""

    async def has_workload(self, digest: str) -> bool:
        """Whether the workload's files are here."""

    async def add_workload(self, digest: str, stream: BinaryIO) -> None:
        """Take a workload as a tar stream; refuse it where its digest is another."""

    async def scheduler_lost(self, why: str) -> None:
        """Fail what runs, with the cause: the scheduler is gone, and with it every task it knew."""

    async def close(self) -> None:
        """Stop what runs."""


class Indexes(Protocol):
    """What the API asks of the indexes. Errors are DgpunetErrors; what `by` may not read is not there."""

    async def list(self, by: User) -> Sequence[dict[str, Any]]:
        """Return the indexes that `by` may read."""

    async def show(self, name: str, by: User) -> dict[str, Any]:
        """Return one index."""

    async def search(self, name: str, by: User, asked: dict[str, Any]) -> str:
        """Return ``{"answers": [...]}`` as JSON for a request of `retrieval.request.asked_for`."""

    async def lines(self, name: str, by: User, path: str, first: int, last: int) -> dict[str, Any]:
        """Return lines of an indexed file, as the index holds them."""

    async def share(self, name: str, by: User, *, shared: bool) -> dict[str, Any]:
        """Let every user read an index, or its owner alone; return it."""

    async def verify(self, name: str, by: User) -> dict[str, Any]:
        """Return what is wrong with an index of `by`'s."""

    async def compact(self, name: str, by: User) -> dict[str, Any]:
        """Merge the segments of an index of `by`'s; return what it had before, and has now."""

    async def remove(self, name: str, by: User) -> None:
        """Remove an index for good."""


class Models(Protocol):
    """What the API asks of the models that users brought; each call reads or writes a file. Errors are DgpunetErrors."""

    def list(self, by: User) -> Sequence[ModelInfo]:
        """Return the models that `by` may use."""

    def share(self, model_id: str, by: User, *, shared: bool) -> ModelInfo:
        """Let every user's jobs use a model, or its owner's alone; return it."""


class Why(Protocol):
    """What the API asks about placement."""

    async def fleet(self) -> dict[str, Any]:
        """Return the live fleet."""

    async def demand(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return where a demand would go now."""

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return why the units of a job are where they are; NoSuchJob if there is none."""


class Membership(Protocol):
    """What the API asks of a cluster of several machines. Errors are DgpunetErrors; a host's name is always its certificate's."""

    async def ca_pem(self) -> str:
        """Return the authority's certificate, which is public."""

    async def enrol(self, request: dict[str, Any], peer_address: str) -> dict[str, Any]:
        """Take a host in for the token that its request carries; return its certificate and what else it needs."""

    async def join_check(self, request: dict[str, Any], peer_address: str) -> dict[str, Any]:
        """Tell who has a token what a host that joins by it would find; the token stays as good as it is."""

    async def heartbeat(self, host: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take what a host reports; return epoch, commands, peers and the revocation list."""

    async def me(self, host: str) -> dict[str, Any]:
        """Return one host as `nodes` has it."""

    async def renew(self, host: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return a new certificate for the request in `body`."""

    async def leave(self, host: str) -> None:
        """Let a host go that says good-bye."""

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the hosts."""

    async def node_action(self, host: str, action: NodeAction, body: dict[str, Any]) -> dict[str, Any]:
        """Change what a host may do; NoSuchNode if there is none."""

    async def doctor(self, body: dict[str, Any]) -> dict[str, Any]:
        """Examine the cluster; return the findings."""

    async def token_create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a join token: ``{"host", "ttl_s"}``. The answer's ``token`` is its text, which is told this once."""

    async def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens, without their secrets."""

    async def token_revoke(self, token_id: str) -> dict[str, Any]:
        """Make a token worthless."""

    async def key_create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make an API key: ``{"user", "scope", "ttl_s"}``. The answer's ``key`` is its text, which is told this once."""

    async def keys(self) -> list[dict[str, Any]]:
        """Return the keys, without their secrets."""

    async def key_revoke(self, key_id: str) -> dict[str, Any]:
        """Make a key worthless."""


def local_user() -> str | None:
    """Return the name of who runs this process; ``None`` where the system has none for this user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


@dataclass
class ApiContext:
    """What the handlers share.

    Parameters
    ----------
    key
        The bearer key of this machine's own commands: an operator's, on the loopback listener alone.
    service
        The jobs.
    status, placements
        Answer ``/v1/status`` and ``/v1/placements``.
    why
        Answers ``/v1/fleet``, ``/v1/explain`` and ``/v1/jobs/ID/explain``.
    indexes
        The search indexes of the head's home.
    models
        The models that users brought.
    policy, reload
        Answer ``/v1/policy``; `reload` reads the files first.
    shutdown
        Called once the head shall stop, with the reason.
    embedded
        Whether the head stops with its last lease.
    uploads
        Folder for workloads while they arrive.
    membership
        The machines of the cluster; ``None`` where no other can join.
    keys
        The users' keys; ``None``: only `key` counts.
    dashboard_upstream
        Gives the base address of Dask's dashboard, ``http://127.0.0.1:PORT/PREFIX``; ``None`` without one.
    user
        Whose commands `key` is for.
    sites
        By ``http`` and ``https``: the ``host:port`` names under which that listener may be asked.
    """

    key: str
    service: JobService
    status: Callable[[], Awaitable[dict[str, Any]]]
    placements: Callable[[int], Awaitable[Sequence[dict[str, Any]]]]
    why: Why
    indexes: Indexes
    models: Models
    policy: Callable[[], dict[str, Any]]
    reload: Callable[[], Awaitable[dict[str, Any]]]
    shutdown: Callable[[str], None]
    embedded: bool
    uploads: Path
    keep: Callable[[], None] = lambda: None
    port: int = 0
    tls_port: int = 0
    leases: set[object] = field(default_factory=set)
    stopping: bool = False
    membership: Membership | None = None
    keys: Keys | None = None
    dashboard_upstream: Callable[[], str | None] = lambda: None
    user: str | None = field(default_factory=local_user)
    clock: Clock = field(default_factory=SystemClock)
    sites: dict[str, frozenset[str]] = field(default_factory=dict)
    attempts: Attempts = field(default_factory=Attempts)
    rates: Rates = field(default_factory=Rates)
    open: Open = field(default_factory=lambda: Open(user=OPEN_OF_USER, address=OPEN_OF_ADDRESS, all=OPEN_OF_ALL))
    waiting: Open = field(default_factory=lambda: Open(user=WAITING_MAX))
    sessions: Sessions = field(default_factory=lambda: Sessions(lambda: secrets.token_urlsafe(32)))

    def end_lease(self, lease: object) -> bool:
        """Forget `lease`; return whether it was the last of an embedded head, which then stops."""
        if lease not in self.leases:
            return False
        self.leases.discard(lease)
        last = self.embedded and not self.leases
        if last:
            self.stopping = True
            self.shutdown("the last command that used this embedded cluster has ended")
        return last
