"""`dgpunet-dask jobs`: the jobs of a running head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.cli.context import CliContext, Seconds, emit_json, pass_context, printable
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.job import FINAL_STATES, JOB_STATES

if TYPE_CHECKING:
    from dgpunet_dask.client import Client
    from dgpunet_dask.model.job import JobStatus

JOB_IDS: Final = click.argument("job_ids", metavar="ID...", nargs=-1, required=True)


@click.group()
def jobs() -> None:
    """List, show, follow, cancel and retry the jobs of a running head."""


@jobs.command("list")
@click.option("--state", type=click.Choice(JOB_STATES), help="Only jobs in this state.")
@click.option("--owner", metavar="U", help="Only jobs of this user.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the N newest of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_jobs(context: CliContext, state: str | None, owner: str | None, limit: int | None, as_json: bool) -> None:
    """List jobs, oldest first."""
    with context.head_client() as client:
        found = client.jobs(state=state, owner=owner)
    found = found if limit is None else found[-limit:]
    if as_json:
        emit_json([{"workload": s.workload, "owner": s.owner, "submitted_at": s.submitted_at, **s.to_json()} for s in found])
        return
    for status in found:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.submitted_at))
        line = f"{status.job_id}  {status.state:<9}  {started}  {status.seconds:8.1f} s  {status.owner or '-':<12}  {status.workload}"
        click.echo(printable(line))


@jobs.command()
@click.argument("job_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def show(context: CliContext, job_id: str, as_json: bool) -> None:
    """Show one job, live: how far it is, what each stage and device has done, which attempts failed and why."""
    from dgpunet_dask.cli.following import show_result

    with context.head_client() as client:
        status = client.show(job_id)
        if as_json:
            show_result(status, as_json=True)
            return
        told = list(_shown(status, client.progress(job_id), client.attempts(job_id)))
    for line in told:
        click.echo(printable(line))


def _shown(status: JobStatus, progress: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    from dgpunet_dask.cli.following import metric_lines
    from dgpunet_dask.cli.wording import failed_lines, progress_lines, spoken

    since = f"after {status.seconds:.1f} s" if status.state in FINAL_STATES else f"for {spoken(status.seconds)}"
    yield f"job {status.job_id} ({status.workload}) {status.state} {since}{f', owner {status.owner}' if status.owner else ''}"
    if status.error is not None:
        yield f"  {status.error['message']}"
    yield from progress_lines(progress)
    yield from metric_lines(status.metrics)
    yield from failed_lines(attempts)


@jobs.command()
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@click.option("--stage", metavar="NAME", help="Only what this stage printed, and its attempts and placements.")
@click.option("--unit", type=int, metavar="N", help="Only what concerns this unit, by its number.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@pass_context
def logs(context: CliContext, job_id: str, follow: bool, stage: str | None, unit: int | None, as_json: bool) -> None:
    """Print what happened in a job: states, progress, placements, failed attempts, what its stages printed.

    The head keeps it, so that it is there after a worker, a host or the head itself has died.
    """
    from dgpunet_dask.cli.wording import event_line

    with context.head_client() as client:
        found, stages = False, set[str]()
        for event in client.events(job_id) if follow else client.history(job_id):
            stages |= {str(event["stage"])} if event.get("stage") else set()
            if _wanted(event, stage, unit):
                found = True
                emit_json(event, indent=None) if as_json else click.echo(printable(event_line(event), keep="\t\n"))
        if not found and (stage is not None or unit is not None):
            _check_there(client, job_id, stage, unit, stages)


def _check_there(client: Client, job_id: str, stage: str | None, unit: int | None, stages: set[str]) -> None:
    """Raise where a job has no such stage or unit, as far as that is known: nothing printed must not look like nothing said."""
    from dgpunet_dask.errors import BadValue

    known = client.progress(job_id).get("all_stages")  # of a job that has ended, what was told may be of its last stage alone
    if stage is not None and known is not None and stage not in {*known, *stages}:
        raise BadValue(what="--stage", value=stage, why=f"the stages of the job are {', '.join(known)}")
    if stage is not None and known is None and stage not in stages:
        click.echo(printable(f"nothing was told of a stage {stage}, and the job's workload is not on the head any more to say whether it had one"), err=True)
    total = client.show(job_id).units.total
    if unit is not None and (unit < 0 or (total is not None and unit >= total)):
        raise BadValue(what="--unit", value=unit, why=f"the job has {'units from 0 on' if total is None else f'{total} units, from 0 on'}")


def _wanted(event: Mapping[str, Any], stage: str | None, unit: int | None) -> bool:
    return (stage is None or event.get("stage") == stage) and (unit is None or event.get("unit") == unit)


@jobs.command()
@JOB_IDS
@click.option("--timeout", "timeout_s", type=Seconds(min=0), metavar="S", help="Stop waiting after S seconds (exit code 101).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@pass_context
def wait(context: CliContext, job_ids: tuple[str, ...], timeout_s: float | None, as_json: bool) -> None:
    """Wait until jobs have ended, and leave with the exit code of the first that did not end well."""
    from dgpunet_dask.cli.following import follow, follow_all

    how: dict[str, Any] = {"timeout_s": timeout_s, "as_json": as_json, "stop_on_interrupt": False}
    with context.head_client() as client:
        if len(job_ids) == 1:
            follow(context, client, job_ids[0], label=job_ids[0], **how)
        for job_id in dict.fromkeys(job_ids):  # one that is misspelt is told now, and not when those before it have ended
            client.show(job_id, timeout_s=timeout_s)
        follow_all(context, client, job_ids, **how)


@jobs.command()
@JOB_IDS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def cancel(context: CliContext, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel jobs; one that has ended stays as it is."""
    with context.head_client() as client:
        _each(job_ids, client.cancel, as_json=as_json)


@jobs.command()
@JOB_IDS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def retry(context: CliContext, job_ids: tuple[str, ...], as_json: bool) -> None:
    """Start jobs again that failed, were cancelled or lost: under their ids, and only what is not finished."""
    from dgpunet_dask.cluster.wire import error_from_wire

    with context.head_client() as client:

        def again(job_id: str) -> JobStatus:
            status = client.retry(job_id)
            if status.error is not None:  # it has ended at once, since what it waits for will never be done
                raise error_from_wire({**status.error, "exit_code": status.exit_code})
            return status

        _each(job_ids, again, as_json=as_json)


def _each(job_ids: Iterable[str], change: Callable[[str], JobStatus], *, as_json: bool) -> None:
    """Change each job and print its state; one that cannot be does not keep the others from it, and the first error is told last."""
    told, errors = [], list[DgpunetError]()
    for job_id in job_ids:
        try:
            status = change(job_id)
        except DgpunetError as error:
            errors.append(error)
            continue
        told.append({"job_id": status.job_id, "state": status.state})
        if not as_json:
            click.echo(f"job {job_id} is {status.state}")
    for failed in errors:
        click.echo(printable(f"dgpunet-dask: {failed}"), err=True)
    if as_json:
        emit_json({"jobs": told, "error": errors[0].to_json() if errors else None})
    raise SystemExit(errors[0].exit_code if errors else 0)


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
    from dgpunet_dask.cli.wording import awaited_lines
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
    awaited = found.get("waits_for", ())
    yield from awaited_lines(awaited)
    if found["state"] == "queued" and not awaited:
        yield "it waits for its turn: other jobs run"
    if found["state"] == "running" and not (found["running"] or found["waiting"] or found["light"]):
        yield "no unit waits for a device: the job reads its input, or ends"


def _turn(group: dict[str, Any]) -> Iterator[str]:
    """Yield what the order of waiting work means for a group."""
    if group["queue"]["kept"]:
        yield f"  queue  : {', '.join(group['queue']['kept'])} is kept free for it, since {group['queue']['passed']} others went before it"
    elif group["outcome"] == "placed":
        yield "  queue  : other work has its turn first: by priority, by age, or by the share that its user has had"
