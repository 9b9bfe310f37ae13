"""Staying with jobs until they end: what is shown meanwhile, how it is printed, with which exit code the command leaves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, printable

if TYPE_CHECKING:
    from dgpunet_dask.client import Client
    from dgpunet_dask.model.job import JobStatus


def follow(
    context: CliContext, client: Client, job_id: str, *, label: str, timeout_s: float | None, as_json: bool, stop_on_interrupt: bool
) -> None:
    """Show a job until its end, print its result and leave with its exit code.

    Ctrl-C stops a job of an embedded cluster, which would end with the command anyway, and detaches from one on a head.
    """
    status = _waited(context, client, [job_id], [label], timeout_s, stop_on_interrupt=stop_on_interrupt)[0]
    show_result(status, as_json=as_json)
    raise SystemExit(status.exit_code)


def follow_all(
    context: CliContext, client: Client, job_ids: Sequence[str], *, timeout_s: float | None, as_json: bool, stop_on_interrupt: bool,
    more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Show jobs until all have ended, print their results and leave with the exit code of the first that did not end well."""
    labels = [f"[{number}/{len(job_ids)}] {job_id}" for number, job_id in enumerate(job_ids, start=1)]
    found = _waited(context, client, job_ids, labels, timeout_s, stop_on_interrupt=stop_on_interrupt)
    bad = next((status for status in found if status.exit_code), None)
    for status in found:
        tell_failure(status) if as_json else show_result(status, as_json=False)
    if as_json:
        error = None if bad is None or bad.error is None else dict(bad.error)
        emit_json({**(more or {}), "jobs": [status.to_json() for status in found], "error": error})
    raise SystemExit(0 if bad is None else bad.exit_code)


def _waited(
    context: CliContext, client: Client, job_ids: Sequence[str], labels: Sequence[str], timeout_s: float | None, *, stop_on_interrupt: bool
) -> list[JobStatus]:
    """Return the jobs once each has ended: they are shown one after another, and end in whatever order they do."""
    from dgpunet_dask.cli.progress import Progress

    until, found = None if timeout_s is None else time.monotonic() + timeout_s, []
    try:
        for job_id, label in zip(job_ids, labels, strict=True):
            progress = Progress(label, quiet=context.quiet, verbose=context.verbose)
            try:
                found.append(client.wait(job_id, None if until is None else max(0.0, until - time.monotonic()), progress))
            finally:
                progress.close()
    except KeyboardInterrupt:
        if stop_on_interrupt:
            for job_id in job_ids[len(found) :]:
                client.cancel(job_id)
        else:
            click.echo(f"detached; the job goes on: dgpunet-dask jobs wait {' '.join(job_ids[len(found) :])}", err=True)
        raise
    return found


def wait_shown(context: CliContext, client: Client, job_id: str, label: str) -> JobStatus:
    """Show a job until its end and return its status."""
    return _waited(context, client, [job_id], [label], None, stop_on_interrupt=not context.head_runs())[0]


def tell_failure(status: JobStatus) -> None:
    """Say on stderr what went wrong with a job, if anything did."""
    if status.error is None:
        return
    click.echo(printable(f"job {status.job_id} {status.state}: {status.error['message']}"), err=True)
    for reason in status.error["reasons"] if status.error["code"] == "unplaceable" else ():  # others say all in the message
        click.echo(printable("  " + "  ".join(f"{k}={v}" for k, v in reason.items() if v is not None)), err=True)


def show_result(status: JobStatus, *, as_json: bool) -> None:
    """Print a job's result: as JSON on stdout, or in words; what went wrong is told on stderr in either case."""
    tell_failure(status)
    if as_json:
        emit_json(status.to_json())
    elif status.error is None:
        click.echo(f"job {status.job_id} {status.state} in {status.seconds:.1f} s: {status.units.done} units{_failed(status)}")
        for line in metric_lines(status.metrics):
            click.echo(printable(line))


def _failed(status: JobStatus) -> str:
    return f", {status.units.failed} failed" if status.units.failed else ""


def metric_lines(metrics: Mapping[str, Any]) -> Iterable[str]:
    """Yield a line for each metric of a job."""
    for name, value in metrics.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        yield f"  {name}: {shown}"
