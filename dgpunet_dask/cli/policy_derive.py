"""`dgpunet-dask policy derive`: generated policies from facts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable

if TYPE_CHECKING:
    from dgpunet_dask.cluster.generated import Change
    from dgpunet_dask.model.fleet import Fleet


@click.command()
@click.option("--fleet", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Derive for the machines of this file.")
@click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and write nothing.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write there. Default: $DGPUNET_HOME/policy/generated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def derive(context: CliContext, fleet: Path | None, dry_run: bool, out: Path | None, as_json: bool) -> None:
    """Write the rules that the facts of each machine justify.

    One file a host, from its cards, their software and what feeds it: of the running cluster, else of this machine. A head does it by
    itself. Policies that people write are left alone.
    """
    from dgpunet_dask.cluster.generated import changes, generated_folder, past_standings, write
    from dgpunet_dask.placement.derive import derive as derived_from

    folder = generated_folder(context.home) if out is None else out
    found = changes(folder, derived_from(_fleet(context, fleet), past_standings(folder)))
    if not dry_run:
        write(found)
    if as_json:
        emit_json({"files": [_row(change, dry_run) for change in found], "error": None})
    elif dry_run:
        click.echo(printable("".join(change.diff() for change in found), keep="\n\t"), nl=False)
    if not as_json and not context.quiet:
        _say(found, dry_run)


def _fleet(context: CliContext, file: Path | None) -> Fleet:
    from dgpunet_dask.cli.fleet import live
    from dgpunet_dask.hardware.probe import local_fleet
    from dgpunet_dask.hardware.runtime import torch_arches
    from dgpunet_dask.hardware.simulated import simulated_fleet

    if file is not None:
        return simulated_fleet(file)
    if context.head_runs():
        return live(context)[0]
    return local_fleet(arches=functools.partial(torch_arches, context.home.torch_arches))


def _row(change: Change, dry_run: bool) -> dict[str, Any]:
    return {
        "host": change.host,
        "path": str(change.path),
        "facts": change.facts,
        "changed": change.differs,
        "written": change.differs and not dry_run,
        "diff": change.diff(),
        "text": change.new,
    }


def _say(found: list[Change], dry_run: bool) -> None:
    for change in found:
        done = ("would be " if dry_run else "") + ("removed" if change.new is None else "written")
        click.echo(printable(f"{change.path}: {done if change.differs else 'unchanged'}"), err=True)
