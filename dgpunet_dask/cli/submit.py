"""`dgpunet-dask submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable


@click.command()
@click.argument("workload")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a parameter; repeat the key for a list.")
@click.option("--detach", is_flag=True, help="Return at once; needs a running head.")
@click.option("--dry-run", is_flag=True, help="Show where each stage could go, and run nothing.")
@click.option("--shared", is_flag=True, help="Let every user of the cluster read this job and the index that it makes.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), metavar="S", help="Stop waiting after S seconds (exit code 101).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@pass_context
def submit(
    context: CliContext, workload: str, settings: tuple[str, ...], detach: bool, dry_run: bool, shared: bool, timeout_s: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Run WORKLOAD: a shipped name such as embed-codebase, or the path of a folder with a job.yaml."""
    from dgpunet_dask.client import Client
    from dgpunet_dask.jobs.params import cast_params, split_settings
    from dgpunet_dask.jobs.store import find_workload, read_workload

    found = read_workload(find_workload(workload, cwd=Path.cwd()))
    params = cast_params(found, split_settings(settings), cwd=Path.cwd())
    if detach:
        context.require_head("--detach")
    with Client(context.cluster, home=context.home) as client:
        if dry_run:
            show_plan(client.plan(found, params), as_json=as_json)
            return
        status = client.submit_read(found, params, shared=shared)
        if detach:
            emit_json({"job_id": status.job_id, "state": status.state}) if as_json else click.echo(status.job_id)
            return
        follow(context, client, status.job_id, label=found.name, timeout_s=timeout_s, as_json=as_json, stop_on_interrupt=not context.head_runs())


def follow(
    context: CliContext, client: Any, job_id: str, *, label: str, timeout_s: float | None, as_json: bool, stop_on_interrupt: bool
) -> None:
    """Show a job until its end, print its result and leave with its exit code.

    Ctrl-C stops a job of an embedded cluster, which would end with the command anyway, and detaches from one on a head.
    """
    from dgpunet_dask.cli.progress import Progress

    progress = Progress(label, quiet=context.quiet, verbose=context.verbose)
    try:
        status = client.wait(job_id, timeout_s, progress)
    except KeyboardInterrupt:
        if stop_on_interrupt:
            client.api.cancel(job_id)
        else:
            click.echo(f"detached; the job goes on: dgpunet-dask jobs wait {job_id}", err=True)
        raise
    finally:
        progress.close()
    show_result(status, as_json=as_json)
    raise SystemExit(status.exit_code)


def show_result(status: Any, *, as_json: bool) -> None:
    """Print a job's result: as JSON on stdout, or in words; what went wrong is told on stderr in either case."""
    if status.error is not None:
        click.echo(printable(f"job {status.job_id} {status.state}: {status.error['message']}"), err=True)
        for reason in status.error["reasons"] if status.error["code"] == "unplaceable" else ():  # others say all in the message
            click.echo(printable("  " + "  ".join(f"{k}={v}" for k, v in reason.items() if v is not None)), err=True)
    if as_json:
        emit_json(status.to_json())
        return
    if status.error is not None:
        return
    click.echo(f"job {status.job_id} {status.state} in {status.seconds:.1f} s: {status.units.done} units")
    for name, value in status.metrics.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        click.echo(f"  {name}: {shown}")


def show_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    """Print what `submit --dry-run` found."""
    if as_json:
        emit_json({**plan, "error": None})
        return
    from dgpunet_dask.placement.explanation import refused_lines

    for stage in plan["stages"]:
        demand = ", ".join(f"{k} {v}" for k, v in (stage["demand"] or {}).items() if k != "stage") or "no card"
        click.echo(printable(f"{stage['stage']}: {demand} -> {stage['outcome']}: {', '.join(stage['ranking']) or '-'}"))
        for line in refused_lines(stage["verdicts"], stage["wakes"], stage["fix"]) if stage["demand"] is not None else ():
            click.echo(printable(line))
