"""`dgpunet-dask jobs`: the jobs of a running head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable


@click.group()
def jobs() -> None:
    """List, show, follow and cancel the jobs of a running head."""


@jobs.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_jobs(context: CliContext, as_json: bool) -> None:
    """List all jobs, oldest first."""
    with context.head_client() as client:
        found = client.api.jobs()
    if as_json:
        emit_json([{"workload": s.workload, "submitted_at": s.submitted_at, **s.to_json()} for s in found])
        return
    for status in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.submitted_at))
        click.echo(f"{status.job_id}  {status.state:<9}  {started}  {status.seconds:8.1f} s  {status.owner or '-':<12}  {status.workload}")


@jobs.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def show(context: CliContext, job_id: str, as_json: bool) -> None:
    """Show one job, live."""
    from dgpunet_dask.cli.submit import show_result

    with context.head_client() as client:
        show_result(client.api.show(job_id), as_json=as_json)


@jobs.command()
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@pass_context
def logs(context: CliContext, job_id: str, follow: bool, as_json: bool) -> None:
    """Print what happened in a job: states, progress, placements, tracebacks."""
    with context.head_client() as client:
        for event in client.events(job_id) if follow else client.api.events(job_id, since=0, wait_s=0.0):
            emit_json(event, indent=None) if as_json else click.echo(printable(event_line(event), keep="\t\n"))


@jobs.command()
@click.argument("job_id")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="S", help="Stop waiting after S seconds (exit code 101).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_context
def wait(context: CliContext, job_id: str, timeout_s: float | None, as_json: bool) -> None:
    """Wait for a job's end and leave with its exit code."""
    from dgpunet_dask.cli.submit import follow

    with context.head_client() as client:
        follow(context, client, job_id, label=job_id, timeout_s=timeout_s, as_json=as_json, stop_on_interrupt=False)


@jobs.command()
@click.argument("job_id")
@pass_context
def cancel(context: CliContext, job_id: str) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with context.head_client() as client:
        status = client.api.cancel(job_id)
    click.echo(f"job {job_id} is {status.state}")


@jobs.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def explain(context: CliContext, job_id: str, as_json: bool) -> None:
    """Tell why the units of a job that is on the head are where they are.

    For each kind of waiting unit: the devices that will never do, those that the policy forbids, those that are not free now, what would
    wake it, and the nearest fix. Units that run are counted by device.
    """
    found = context.reach().explain_job(job_id)
    if as_json:
        emit_json({**found, "error": None})
        return
    for line in _told(found):
        click.echo(printable(line))


def _told(found: dict[str, Any]) -> Iterator[str]:
    from dgpunet_dask.placement.explanation import lines

    units = ", ".join(f"{n} {name}" for name, n in found["units"].items() if n)
    yield f"job {found['job_id']} ({found['workload']}) is {found['state']}{f': units {units}' if units else ''}"
    if found["job_error"] is not None:
        yield f"  {found['job_error']['message']}"
        reasons = [reason for reason in found["job_error"]["reasons"] if "device" in reason]
        yield from ("  " + "  ".join(f"{k}={v}" for k, v in reason.items() if v is not None) for reason in reasons)
    for row in found["running"]:
        yield f"{row['stage']}: {row['units']} running on {row['device']}"
    if found["light"]:
        yield f"{found['light']} light tasks run on CPU workers, or are about to"
    for group in found["waiting"]:
        yield from lines(group, f"{group['stage']}, {group['units']} waiting")
        yield from _turn(group)
    if found["state"] in {"queued", "running"} and not (found["running"] or found["waiting"] or found["light"]):
        yield "no unit waits for a device: the job reads its input, or ends"


def _turn(group: dict[str, Any]) -> Iterator[str]:
    """Yield what the order of waiting work means for a group."""
    if group["queue"]["kept"]:
        yield f"  queue  : {', '.join(group['queue']['kept'])} is kept free for it, since {group['queue']['passed']} others went before it"
    elif group["outcome"] == "placed":
        yield "  queue  : other work has its turn first: by priority, by age, or by the share that its user has had"


def event_line(event: dict[str, Any]) -> str:
    """Return one event as a line for people."""
    from dgpunet_dask.cli.progress import placement_line

    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    rest = {k: v for k, v in event.items() if k not in {"seq", "time", "kind"} and v is not None}
    if event["kind"] == "placement":
        return f"{at} {placement_line(event)}"
    if event["kind"] == "log":
        return f"{at} {rest['text']}"
    return f"{at} {event['kind']}: " + ", ".join(f"{k} {v}" for k, v in rest.items())
