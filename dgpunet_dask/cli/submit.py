"""`dgpunet-dask submit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, Seconds, emit_json, pass_context, printable

if TYPE_CHECKING:
    from dgpunet_dask.client import Client, JobOptions
    from dgpunet_dask.model.pipeline import Workload


@click.command()
@click.argument("workload")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a parameter; repeat the key for a list.")
@click.option(
    "--array", metavar="KEY=VALUES", multiple=True,
    help="Submit a job for each value: V1,V2 or A..B or @FILE (a line each). Several keys give every combination.",
)  # fmt: skip
@click.option("--after", metavar="ID", multiple=True, help="Start only once this job is done; repeat it for several.")
@click.option("--retry", type=click.IntRange(min=0), default=0, metavar="N", help="If it fails, start it again up to N times; finished units are kept.")
@click.option("--allow-failed", type=click.IntRange(min=0), default=0, metavar="N", help="Let the job be done with up to N units that failed for good.")
@click.option("--key", metavar="TEXT", help="Name this submission: sent again with the same key, it is the same job.")
@click.option("--detach", is_flag=True, help="Return at once; needs a running head.")
@click.option("--watch", is_flag=True, help="Submit it again whenever something below its paths has changed, until Ctrl-C.")
@click.option("--dry-run", is_flag=True, help="Show where each stage could go, and run nothing.")
@click.option("--shared", is_flag=True, help="Let every user of the cluster read this job and the index that it makes.")
@click.option("--timeout", "timeout_s", type=Seconds(min=0), metavar="S", help="Stop waiting after S seconds (exit code 101).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@pass_context
def submit(
    context: CliContext, workload: str, settings: tuple[str, ...], array: tuple[str, ...], after: tuple[str, ...], retry: int, allow_failed: int,
    key: str | None, detach: bool, watch: bool, dry_run: bool, shared: bool, timeout_s: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Run WORKLOAD: a shipped name such as embed-codebase, or the path of a folder with a job.yaml."""
    from dgpunet_dask.client.reach import options_of
    from dgpunet_dask.jobs.store import find_workload, read_workload

    found = read_workload(find_workload(workload, cwd=Path.cwd()))
    params, rows = _params(found, settings, array)
    options = options_of(after=after, key=key, retry=retry, allow_failed=allow_failed, shared=shared, array=rows)
    if detach:
        context.require_head("--detach")
    if watch:
        _check_watch(context, alone=not (detach or dry_run or key or after or array or timeout_s is not None))
    with context.client(start=not detach) as client:
        if dry_run:
            plan = client.plan(found, params if rows is None else {**params, **rows[0]}, after)
            show_plan(plan, jobs=1 if rows is None else len(rows), as_json=as_json)
            return
        if watch:
            from dgpunet_dask.cli.watching import watch_and_submit

            watch_and_submit(context, client, found, params, options, as_json=as_json)
            return
        _submitted(context, client, found, params, options, detach=detach, timeout_s=timeout_s, as_json=as_json)


def _check_watch(context: CliContext, *, alone: bool) -> None:
    from dgpunet_dask.errors import UsageError

    if not alone:
        raise UsageError(detail="`--watch` goes on until Ctrl-C; leave out --detach, --dry-run, --key, --after, --array and --timeout.")
    if context.elsewhere() is not None:
        raise UsageError(detail="`--watch` follows files of this machine, and the cluster reads its own; run it on the head's host.")


def _params(found: Workload, settings: tuple[str, ...], array: tuple[str, ...]) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Return the parameters, and for an array those that all its jobs have alike and a row for each job."""
    from dgpunet_dask.cli.arrays import combinations
    from dgpunet_dask.client.reach import only, without
    from dgpunet_dask.errors import BadValue
    from dgpunet_dask.jobs.params import cast_params, split_settings

    pairs, rows = split_settings(settings), combinations(array, cwd=Path.cwd())
    if not rows:
        return cast_params(found, pairs, cwd=Path.cwd()), None
    names = [name for name, _ in rows[0]]
    if twice := [name for name, _ in pairs if name in names]:
        raise BadValue(what="--array", value=twice[0], why="--set sets it too; give it once")
    whole = [cast_params(found, [*pairs, *row], cwd=Path.cwd()) for row in rows]
    return without(whole, names), [only(full, names) for full in whole]


def _submitted(
    context: CliContext, client: Client, found: Workload, params: dict[str, Any], options: JobOptions, *, detach: bool, timeout_s: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    from dgpunet_dask.cli.following import follow, follow_all
    from dgpunet_dask.client import JobArray

    accepted = client.submit_read(found, params, options)
    array, jobs = (accepted, accepted.jobs) if isinstance(accepted, JobArray) else (None, (accepted,))
    if detach:
        told = [{"job_id": job.job_id, "state": job.state} for job in jobs]
        if as_json:
            emit_json(told[0] if array is None else {"array_id": array.array_id, "jobs": told, "error": None})
        else:
            click.echo("\n".join(job.job_id for job in jobs))
        return
    how: dict[str, Any] = {"timeout_s": timeout_s, "as_json": as_json, "stop_on_interrupt": not context.head_runs()}
    if array is None:
        follow(context, client, jobs[0].job_id, label=found.name, **how)
    else:
        follow_all(context, client, [job.job_id for job in jobs], more={"array_id": array.array_id}, **how)


def show_plan(plan: dict[str, Any], *, jobs: int = 1, as_json: bool) -> None:
    """Print what `submit --dry-run` found, and what it comes to."""
    total = total_of(plan, jobs)
    if as_json:
        emit_json({**plan, "total": total, "error": None})
        return
    from dgpunet_dask.placement.explanation import refused_lines

    for stage in plan["stages"]:
        demand = ", ".join(f"{k} {v}" for k, v in (stage["demand"] or {}).items() if k != "stage") or "no card"
        click.echo(printable(f"{stage['stage']}: {demand} -> {stage['outcome']}: {', '.join(stage['ranking']) or '-'}"))
        for line in refused_lines(stage["verdicts"], stage["wakes"], stage["fix"]) if stage["demand"] is not None else ():
            click.echo(printable(line))
    for line in _total_lines(total):
        click.echo(printable(line))


def total_of(plan: dict[str, Any], jobs: int) -> dict[str, Any]:
    """Return what a plan comes to: jobs, units (``None``: known once the source has run), devices, and seconds a unit where they were learned."""
    learned = [stage.get("seconds") for stage in plan["stages"] if stage["demand"] is not None]
    devices = sorted({stage["ranking"][0] for stage in plan["stages"] if stage["demand"] is not None and stage["ranking"]})
    known = bool(learned) and all(seconds is not None for seconds in learned)
    return {"jobs": jobs, "units": None, "devices": devices, "seconds_per_unit": round(sum(learned), 3) if known else None}


def _total_lines(total: dict[str, Any]) -> list[str]:
    jobs = "1 job" if total["jobs"] == 1 else f"{total['jobs']} jobs"
    where = ", ".join(total["devices"]) or "CPU workers"
    pace = "time not learned yet" if total["seconds_per_unit"] is None else f"about {total['seconds_per_unit']:g} s a unit"
    return [f"total: {jobs}, number of units not known before the source has run, first on {where}, {pace}"]
