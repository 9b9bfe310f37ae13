"""What a request for jobs must look like, and what becomes of it: checked, and written down as the jobs to be accepted.

Operators may send a workload's code and name any path. Submitters run shipped workloads, and read below the owner's roots alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.shipped import shipped
from dgpunet_dask.errors import BadValue, BadWorkload, CodeNotAllowed
from dgpunet_dask.jobs.looks import Looks
from dgpunet_dask.jobs.params import complete_params
from dgpunet_dask.jobs.roots import bounded
from dgpunet_dask.jobs.rows import NewJob
from dgpunet_dask.jobs.store import add_workload, checked_digest, find_workload, pack_workload, read_workload
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.stagehost.folders import workload_digest as digest_of

ARRAY_MOST: Final = 1000
#: Values of parameters in one request, counted in each set of an array; an item of a list is one. Each is kept with its job.
VALUES_MOST: Final = 100_000
KEY_LETTERS: Final = 200
_DIGEST_LETTERS: Final = 64


@dataclass(frozen=True)
class Asked:
    """A request that was checked: what is to run, for each job its parameters, and the rest of it."""

    workload: Workload
    params: tuple[dict[str, Any], ...]
    user: User
    request: Mapping[str, Any]

    @property
    def array(self) -> bool:
        """Whether it asks for an array."""
        return self.request.get("array") is not None

    def jobs(self, ids: Sequence[str], array_id: str | None, now: float) -> list[NewJob]:
        """Return the jobs with these ids, accepted at `now` (seconds since 1970)."""
        told: dict[str, Any] = {
            "workload": self.workload.name, "digest": self.workload.digest, "owner": self.user.name, "operates": self.user.operates,
            "shared": self.request.get("shared") is True, "key": self.request.get("key"), "after": tuple(self.request.get("after") or ()),
            "allow_failed": self.request.get("allow_failed") or 0, "retry": self.request.get("retry") or 0,
        }  # fmt: skip
        return [
            NewJob(job_id=job_id, params=params, array_id=array_id, submitted_s=now, **told)
            for job_id, params in zip(ids, self.params, strict=True)
        ]


def asked(home: Home, request: Mapping[str, Any], roots: Sequence[Path], looks: Looks | None = None) -> Asked:
    """Check a request ``{"workload", "params", "array", "after", "allow_failed", "retry", "key", "shared", "user", "operates"}``.

    Parameters
    ----------
    roots
        What jobs of submitters may read.
    looks
        How paths and other values are looked at; by itself, for as long as that takes within `looks.LOOK_S`.

    Raises
    ------
    UsageError
        For an unknown workload, a bad parameter or option; `NotAllowed` for code or paths that are not the user's to run or read.
    """
    user = user_of(request)
    jobs_in(request)
    workload = _workload(home, request.get("workload"), user)
    sets = [{**_mapping(request, "params"), **_entry(more)} for more in request.get("array") or [{}]]
    _check_values(sets)
    looks = looks or Looks()
    if not user.operates:
        sets = [bounded(workload, values, roots, (home.root,), looks.allowed) for values in sets]
    return Asked(workload, tuple(complete_params(workload, values, cwd=None, cast=looks.cast) for values in sets), user, request)


def jobs_in(request: Mapping[str, Any]) -> int:
    """Return how many jobs a request asks for. Nothing is looked at but the request, so that this may be asked before anything else.

    Raises
    ------
    BadValue
        For a bad option.
    """
    _check_options(request)
    return len(request.get("array") or [{}])


def user_of(request: Mapping[str, Any]) -> User:
    """Return whose work a request is; without a name where it does not say."""
    user = request.get("user")
    return User(user if isinstance(user, str) and user else None, operates=request.get("operates") is True)


def _check_options(request: Mapping[str, Any]) -> None:
    for name in ("allow_failed", "retry"):
        value = request.get(name) or 0
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadValue(what=name, value=value, why="write a whole number, 0 or more")
    key = request.get("key")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= KEY_LETTERS):
        raise BadValue(what="key", value=key, why=f"write a text of at most {KEY_LETTERS} letters")
    after = request.get("after") or []
    if not isinstance(after, list) or not all(isinstance(job_id, str) for job_id in after):
        raise BadValue(what="after", value=after, why="write a list of job ids")
    array = request.get("array")
    if array is not None and not (isinstance(array, list) and 0 < len(array) <= ARRAY_MOST):
        raise BadValue(what="array", value=type(array).__name__, why=f"write a list of 1 to {ARRAY_MOST} sets of parameters")


def _mapping(request: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = request.get(name) or {}
    if not isinstance(found, dict):
        raise BadValue(what="request", value=sorted(request), why='send {"workload": digest, "params": {...}}')
    return found


def _check_values(sets: Sequence[Mapping[str, Any]]) -> None:
    count = sum(len(value) if isinstance(value, list | tuple) else 1 for values in sets for value in values.values())
    if count > VALUES_MOST:
        raise BadValue(what="params", value=f"{count} values", why=f"one submission may have {VALUES_MOST} in all its jobs; name folders, or submit it in parts")


def _entry(more: object) -> dict[str, Any]:
    if not isinstance(more, dict):
        raise BadValue(what="array", value=more, why="each entry is a set of parameters, {name: value}")
    return more


def _workload(home: Home, named: object, user: User) -> Workload:
    """Return the workload of a digest that has arrived, or of a shipped name."""
    if not isinstance(named, str):
        raise BadValue(what="request", value=named, why='send {"workload": digest or shipped name, "params": {...}}')
    if len(named) != _DIGEST_LETTERS:
        return read_workload(_installed(home, find_shipped(named)))
    own = shipped_digests()
    if not user.operates and named not in own:
        raise CodeNotAllowed(workload=named[:16], what="running a workload's own code", why="its key is a submitter's")
    folder = _installed(home, own[named]) if named in own else home.workloads / checked_digest(named)
    if not folder.is_dir():
        raise BadWorkload(workload=named[:16], why="its files have not arrived; send them first")
    return read_workload(folder)


def find_shipped(name: str) -> Path:
    """Return the folder of a shipped workload.

    Raises
    ------
    NoSuchWorkload
        If there is none of that name; a path is none.
    """
    return find_workload(Path(name).name if name not in {"", ".", ".."} else "-", cwd=Path("/nonexistent"))


@functools.cache
def shipped_digests() -> Mapping[str, Path]:
    """Return the folders of the shipped workloads by their digest."""
    folders = [path for path in sorted(shipped("workloads").iterdir()) if (path / "job.yaml").is_file()]
    return {digest_of(folder): folder for folder in folders}


def _installed(home: Home, folder: Path) -> Path:
    """Return a shipped workload's folder in the store, where stage hosts look for it."""
    return add_workload(home.workloads, digest_of(folder), pack_workload(folder))


def ids(made: Callable[[], str], count: int) -> list[str]:
    """Return `count` new ids, all of them different."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[made()] = None
    return list(found)
