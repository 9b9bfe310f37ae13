"""`dgpunet-dask ledger`: looking through the head's ledger of jobs, putting a copy back, making it anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, printable
from dgpunet_dask.errors import CheckFailed, DamagedFile

if TYPE_CHECKING:
    from dgpunet_dask.daemons.restoring import Outcome

_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SHOWN: Final = 20


@click.group()
def ledger() -> None:
    """Check the head's ledger of jobs, put a copy back, make it anew. All of them on the head's host."""


@ledger.command()
@_JSON
@pass_context
def check(context: CliContext, as_json: bool) -> None:
    """Look through the ledger: whether the file is whole, and whether what it says agrees. Nothing is changed.

    Beside a head that runs, this looks at a copy of the file; while jobs run it may be written too often for that. Exit code 3 if there is a
    fault.
    """
    from dgpunet_dask.daemons.restoring import check as look

    try:
        found = look(context.home.ledger)
        told = {"path": str(found.path), "jobs": found.jobs, "units": found.units, "attempts": found.attempts, "boot": found.boot}
        faults = [dict(row) for row in found.faults]
    except DamagedFile as error:
        told = {"path": str(context.home.ledger), "jobs": None, "units": None, "attempts": None, "boot": None}
        faults = [{"fault": str(error), "job_id": "", "unit_id": ""}]
    _show(told, faults, as_json=as_json)


def _show(told: dict[str, Any], faults: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        error = CheckFailed(what="ledger check", count=len(faults)).to_json() if faults else None
        emit_json({**told, "faults": faults, "error": error})
    else:
        if told["jobs"] is not None:
            click.echo(printable(f"{told['path']}: {told['jobs']} jobs, {told['units']} units, {told['attempts']} attempts, boot {told['boot']}"))
        for row in faults[:_SHOWN]:
            where = " ".join(text for text in (row["job_id"], row["unit_id"]) if text)
            click.echo(printable(f"fault: {row['fault']}" + (f" ({where})" if where else "")))
        click.echo({0: "no faults", 1: "1 fault"}.get(len(faults), f"{len(faults)} faults"))
    if faults:
        raise SystemExit(CheckFailed.exit_code)


@ledger.command()
@click.option("--from", "folder", type=click.Path(path_type=Path), metavar="FOLDER", help="The copy. Default: the last whole one under $DGPUNET_HOME/backups.")
@_JSON
@pass_context
def restore(context: CliContext, folder: Path | None, as_json: bool) -> None:
    """Put a copy in place of the ledger, while no head runs. The ledger before is set aside, never removed.

    What jobs have done here since the copy was made counts: their records and result files tell of it. Commits whose files are not here are
    taken back, and those units are computed again.
    """
    from dgpunet_dask.daemons.restoring import restore as put_back

    _tell(context, put_back(context.home, folder), as_json=as_json)


@ledger.command()
@_JSON
@pass_context
def rebuild(context: CliContext, as_json: bool) -> None:
    """Make the ledger anew from the records and result files of the jobs, while no head runs. The ledger before is set aside.

    A head that finds its ledger damaged does this by itself.
    """
    from dgpunet_dask.daemons.restoring import rebuild_anew

    _tell(context, rebuild_anew(context.home), as_json=as_json)


def _tell(context: CliContext, done: Outcome, *, as_json: bool) -> None:
    if as_json:
        emit_json({**done.to_json(), "error": None})
        return
    click.echo(printable(f"{context.home.ledger} has {done.jobs} jobs and {done.units} committed units, of {done.source} ({moment(done.at)})"))
    if done.from_disk:
        click.echo(f"{len(done.from_disk)} jobs were taken from what lies here, which tells more of them")
    if done.taken_back:
        click.echo(f"{len(done.taken_back)} commits have no files here: those units are computed again")
    for digest in done.missing:
        click.echo(f"the workload {digest} of an unfinished job is not here: copy it from $DGPUNET_HOME/workloads of another host", err=True)
    if done.aside is not None:
        click.echo(printable(f"the ledger before is in {done.aside}"))
