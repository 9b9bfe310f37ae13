"""What both clients share: which cluster is meant, where its head answers now, and a job's request."""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpunet_dask.client.talk import NEW_KEY_S, RETURN_S, JobOptions, JobTalk, Line, Parcel
from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.config import joined_cluster
from dgpunet_dask.config.home import Home, home_from
from dgpunet_dask.config.shipped import shipped
from dgpunet_dask.daemons.embedded import client_of, current_head, named_cluster, no_head
from dgpunet_dask.errors import BadValue
from dgpunet_dask.jobs.params import complete_params
from dgpunet_dask.jobs.store import find_workload, pack_workload, read_workload
from dgpunet_dask.model.pipeline import Workload


class Reach:
    """A cluster, by name or by where its head keeps its files. Making the value connects to nothing.

    Parameters
    ----------
    cluster
        Name or address of a head's HTTP API; ``None``: ``$DGPUNET_CLUSTER``, the head under `home`, else an embedded cluster.
    home
        Instead of ``$DGPUNET_HOME``.
    say
        Is told, once each time, that the head is away and waited for.
    start
        Whether an embedded cluster is started where no head runs.
    """

    def __init__(
        self, cluster: str | None = None, *, home: Home | Path | str | None = None, say: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None, start: bool = True,
    ) -> None:  # fmt: skip
        self.home = home if isinstance(home, Home) else home_from() if home is None else Home(Path(home).absolute())
        self.cluster = cluster
        self._say = say
        self._start = start
        self._said = set[str]()
        self._clock = clock or SystemClock()
        self._api: ApiClient | None = None

    def found(self) -> ApiClient:
        """Return a connection to the head that answers now.

        Raises
        ------
        NoHead
            If none does.
        NotAllowed
            If the one that does knows another key: it has just begun, and will write it down.
        """
        named = self._named()
        head = None if named else current_head(self.home)
        if not named and head is None:
            raise no_head(self.home)
        found = named_cluster(self.home, named, os.environ) if head is None else client_of(head)  # type: ignore[arg-type]  # named, then
        found.do(calls.alive())
        self._said.clear()
        return found

    def line(self, timeout_s: float | None = None) -> Line:
        """Return a line for one talk."""
        new_key_s = NEW_KEY_S if self._named() else RETURN_S
        return Line(self._clock.monotonic, self._is_embedded, self._say_away, timeout_s, new_key_s)

    def _named(self) -> str | None:
        return self.cluster or os.environ.get("DGPUNET_CLUSTER") or joined_cluster(self.home)

    def job(self, job_id: str, timeout_s: float | None = None) -> JobTalk:
        """Return what can be said about a job."""
        return JobTalk(job_id, self.line(timeout_s))

    def _is_embedded(self) -> bool:
        return self._api is not None and self._api.embedded

    def _say_away(self, text: str) -> None:
        if text not in self._said:  # of all that wait at once, one says so
            self._said.add(text)
            self._say(text)


def options_of(
    *, after: str | Sequence[str], key: str | None, retry: int, allow_failed: int, shared: bool, array: Sequence[Mapping[str, Any]] | None
) -> JobOptions:
    """Return the options, with a key of their own where none is given, so that a request that is sent twice is one job.

    Raises
    ------
    BadValue
        For a key without a letter.
    """
    if key is not None and not key.strip():
        raise BadValue(what="key", value=key, why="write a text that names the submission, or leave it out")
    ids = (after,) if isinstance(after, str) else tuple(after)
    made = JobOptions(after=ids, key=key, retry=retry, allow_failed=allow_failed, shared=shared, array=array)
    return made.keyed(secrets.token_hex(16))


def parcel_named(
    workload: str | Path, params: Mapping[str, Any] | None, array: Sequence[Mapping[str, Any]] | None
) -> tuple[Parcel, list[dict[str, Any]] | None]:
    """Return a workload by shipped name or folder with its parameters, checked, and the rows of an array, checked too.

    Raises
    ------
    UsageError, NotFound
        For an unknown workload or a bad parameter.
    """
    found, given = read_workload(find_workload(str(workload), cwd=Path.cwd())), params or {}
    if array is None:
        return parcel_of(found, complete_params(found, given, cwd=Path.cwd())), None
    names = {name for row in array for name in row}
    whole = [complete_params(found, {**given, **row}, cwd=Path.cwd()) for row in array]
    return parcel_of(found, without(whole, names)), [only(full, names) for full in whole]


def without(whole: Sequence[Mapping[str, Any]], names: Collection[str]) -> dict[str, Any]:
    """Return the parameters that every job of an array has alike: those that are not `names`."""
    return {name: value for name, value in (whole[0] if whole else {}).items() if name not in names}


def only(full: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the row of one job: its parameters that are `names`."""
    return {name: value for name, value in full.items() if name in names}


def parcel_of(workload: Workload, params: Mapping[str, Any]) -> Parcel:
    """Return a workload that was read, and parameters that were cast."""
    folder = Path(workload.folder)
    return Parcel(
        name=workload.name, digest=workload.digest, shipped=folder.is_relative_to(shipped("workloads")), pack=lambda: pack_workload(folder),
        params=params, user=_user(),
    )  # fmt: skip


def _user() -> str | None:
    """Return the name of who calls, as policies match it; ``None`` where the system has none for this user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
