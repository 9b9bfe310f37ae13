"""`submit --watch`: the same job again whenever something below its paths has changed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.errors import UsageError

if TYPE_CHECKING:
    from dgpunet_dask.cli.context import CliContext
    from dgpunet_dask.client import Client, JobOptions
    from dgpunet_dask.model.pipeline import Workload

#: Changes that come within so many milliseconds of each other make one job: editors and git write in several steps.
_SETTLE_MS: Final = 200
#: How often it is looked for changes, in milliseconds, and how soon after the first.
_LOOK_MS: Final = 50
#: A job is submitted after so long without any change, too: network file systems lose events, and an unchanged tree costs little.
RECONCILE_S: Final = 600.0


def roots_of(found: Workload, params: dict[str, Any]) -> list[Path]:
    """Return the paths among a workload's parameters.

    Raises
    ------
    UsageError
        If it has none to watch.
    """
    values = [params.get(name) for name, param in found.params.items() if param.type == "path"]
    roots = [Path(path) for value in values if value is not None for path in (value if isinstance(value, list) else [value])]
    if not roots:
        raise UsageError(detail=f"`--watch` follows the paths of a workload, and {found.name} has none set.")
    return roots


def changes(roots: Sequence[Path], reconcile_s: float = RECONCILE_S) -> Iterator[int]:
    """Yield 0 as soon as the roots are watched, then the number of paths that changed, whenever some have; 0 after so long without any.

    What changes while the caller is busy is not lost: it is yielded next.
    """
    from watchfiles import DefaultFilter, watch

    told, since = False, time.monotonic()
    # the filter leaves out what version control and editors write for themselves
    for seen in watch(
        *roots, watch_filter=DefaultFilter(), debounce=_SETTLE_MS, step=_LOOK_MS, rust_timeout=_SETTLE_MS, yield_on_timeout=True, recursive=True
    ):
        if seen or not told or time.monotonic() - since > reconcile_s:
            yield len({path for _, path in seen})
            told, since = True, time.monotonic()


def watch_and_submit(context: CliContext, client: Client, found: Workload, params: dict[str, Any], options: JobOptions, *, as_json: bool) -> None:
    """Submit a job, and once it has ended the same again whenever something has changed; until Ctrl-C. Later jobs may fail."""
    from dgpunet_dask.cli.following import tell_failure, wait_shown
    from dgpunet_dask.model.job import JobStatus

    first = True
    for count in changes(roots_of(found, params)):
        if not first:
            click.echo(f"{count} changed" if count else "nothing changed for a while; looking again", err=True)
        job = client.submit_read(found, params, replace(options, key=secrets.token_hex(16)))  # each is a job of its own
        assert isinstance(job, JobStatus)  # no array was asked for
        status = wait_shown(context, client, job.job_id, found.name)
        if as_json:
            click.echo(status_line(status.to_json()))
        tell_failure(status)
        if first and status.exit_code:
            raise SystemExit(status.exit_code)
        first = False


def status_line(status: dict[str, Any]) -> str:
    """Return a job's result as one line of JSON."""
    import json

    return json.dumps(status, separators=(",", ":"))
