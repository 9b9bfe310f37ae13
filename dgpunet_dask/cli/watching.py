"""`submit --watch`: the same job again whenever something below its paths has changed.

A workload that takes `changed` and `since` is told which paths, so that it looks at nothing else. All of the trees are looked at by the first
job, after one that failed, where too much has come at once for all of it to be sure to have been heard of, and every `RECONCILE_S` seconds: network
file systems lose events.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.errors import UsageError

if TYPE_CHECKING:
    from dgpunet_dask.cli.context import CliContext
    from dgpunet_dask.client import Client, JobOptions
    from dgpunet_dask.model.job import JobStatus
    from dgpunet_dask.model.pipeline import Workload
    from dgpunet_dask.retrieval.following import Follower

#: Changes that come within so many milliseconds of each other make one job: editors and git write in several steps.
_SETTLE_MS: Final = 200
#: How often it is looked for changes, in milliseconds, and how soon after the last of several.
_LOOK_MS: Final = 50
#: How often all of the trees is looked at.
RECONCILE_S: Final = 600.0
#: Events below one of these are of no interest, but for git's own list of what is ignored.
_EXCLUDE: Final = (".git", "info", "exclude")
#: Stands for what has no name in UTF-8.
_UNNAMED: Final = "\ufffd"

#: Paths that have changed; ``None``: any may have.
Batch = frozenset[str] | None


def roots_of(found: Workload, params: dict[str, Any]) -> list[Path]:
    """Return the paths among a workload's parameters, without links, as they will be told of.

    Raises
    ------
    UsageError
        If it has none to watch.
    """
    values = [params.get(name) for name, param in found.params.items() if param.type == "path"]
    roots = [Path(os.path.realpath(path)) for value in values if value is not None for path in (value if isinstance(value, list) else [value])]
    if not roots:
        raise UsageError(detail=f"`--watch` follows the paths of a workload, and {found.name} has none set.")
    return roots


def heard(roots: Sequence[Path]) -> Callable[[Any, str], bool]:
    """Return what says of an event whether it may matter: not in what no walk enters, nor what editors write for themselves."""
    from watchfiles import DefaultFilter

    from dgpunet_dask.retrieval.rules import MACHINERY, VENDORED

    closed = frozenset((*MACHINERY, *VENDORED))
    names = DefaultFilter(ignore_dirs=())
    tops = [os.path.join(root, "") for root in roots]

    def accepts(change: Any, path: str) -> bool:
        top = next((top for top in tops if path.startswith(top)), None)
        parts = Path(path.removeprefix(top or "")).parts
        if top is not None and not closed.isdisjoint(parts[:-1]):
            return parts[-3:] == _EXCLUDE
        return names(change, path)

    return accepts


def changes(roots: Sequence[Path], reconcile_s: float = RECONCILE_S) -> Iterator[Batch]:
    """Yield ``None`` as soon as the roots are watched, then the paths that changed, whenever some have; ``None`` after so long since the last.

    What changes while the caller is busy is not lost: it is yielded next.
    """
    from watchfiles import watch

    whole_s: float | None = None
    for seen in watch(
        *roots, watch_filter=heard(roots), debounce=_SETTLE_MS, step=_LOOK_MS, rust_timeout=_SETTLE_MS, yield_on_timeout=True, recursive=True
    ):
        if whole_s is None or time.monotonic() - whole_s > reconcile_s:
            whole_s = time.monotonic()
            yield None
        elif seen:
            yield frozenset(path for _, path in seen)


@dataclass
class Pending:
    """What has changed and is not in the index yet. Pure: it is told the time.

    Parameters
    ----------
    version
        Of the index, as the last job that went well made or left it; ``None``: not known.
    """

    version: str | None = None
    paths: set[str] = field(default_factory=set)
    whole: bool = True
    since_s: float | None = None

    def add(self, batch: Batch, now_s: float) -> None:
        """Take in what was heard of."""
        self.since_s = now_s if self.since_s is None else self.since_s
        self.whole = self.whole or batch is None or any(_UNNAMED in path for path in batch)
        self.paths |= batch or frozenset()

    def told(self, known: Iterable[str]) -> dict[str, Any]:
        """Return the parameters that tell a job of it, of those that its workload knows; none where all is to be looked at."""
        from dgpunet_dask.retrieval.changes import PATHS_MAX

        if self.whole or self.version is None or not 0 < len(self.paths) <= PATHS_MAX or not {"changed", "since"} <= set(known):
            return {}
        return {"changed": sorted(self.paths), "since": self.version}

    def done(self, version: str | None) -> None:
        """Take in that a job went well that was told of all."""
        self.version, self.paths, self.whole, self.since_s = version, set(), False, None

    @property
    def count(self) -> int:
        """How many paths; 1 at least where any may have changed."""
        return max(len(self.paths), int(self.whole))


def watch_and_submit(context: CliContext, client: Client, found: Workload, params: dict[str, Any], options: JobOptions, *, as_json: bool) -> None:
    """Submit a job, and once it has ended the same again whenever something has changed; until Ctrl-C. Later jobs may fail."""
    from dgpunet_dask.cli.following import tell_failure
    from dgpunet_dask.retrieval.following import Follower

    first, pending, roots = True, Pending(), roots_of(found, params)
    with Follower(context.home, index_of(params, roots)) as follower:
        for batch in changes(roots):
            pending.add(batch, time.time())
            follower.tell(pending.count, pending.since_s)
            if not first:
                click.echo(f"{len(batch)} changed" if batch is not None else "looking at all of it again", err=True)
            told = pending.told(found.params)
            status = _ran(context, client, found, {**params, **told}, options)
            if as_json:
                click.echo(status_line(status.to_json()))
            tell_failure(status)
            if first and status.exit_code:
                raise SystemExit(status.exit_code)
            first = False
            _settle(pending, follower, status)


def _settle(pending: Pending, follower: Follower, status: JobStatus) -> None:
    """Note what a job has left behind: all of it where it failed."""
    if status.exit_code:
        pending.whole = True
    else:
        pending.done(version_of(status.metrics))
    follower.tell(pending.count if status.exit_code else 0, pending.since_s)


def _ran(context: CliContext, client: Client, found: Workload, params: dict[str, Any], options: JobOptions) -> JobStatus:
    from dgpunet_dask.cli.following import wait_shown
    from dgpunet_dask.model.job import JobStatus

    job = client.submit_read(found, params, replace(options, key=secrets.token_hex(16)))  # each is a job of its own
    assert isinstance(job, JobStatus)  # no array was asked for
    return wait_shown(context, client, job.job_id, found.name)


def version_of(metrics: Mapping[str, Any]) -> str | None:
    """Return the version of the index that a job told."""
    found = metrics.get("version")
    return found if isinstance(found, str) else None


def index_of(params: Mapping[str, Any], roots: Sequence[Path]) -> str:
    """Return the name of the index that a job with these parameters makes."""
    return str(params.get("index") or roots[0].name)


def status_line(status: dict[str, Any]) -> str:
    """Return a job's result as one line of JSON."""
    import json

    return json.dumps(status, separators=(",", ":"))
