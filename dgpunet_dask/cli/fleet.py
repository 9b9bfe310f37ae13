"""`dgpunet-dask fleet`: the machines as placement sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import UnreadablePath

if TYPE_CHECKING:
    from dgpunet_dask.model.fleet import Fleet


@click.group()
def fleet() -> None:
    """Show and record the machines as placement sees them."""


@fleet.command()
@click.option("--fleet", "file", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Show this file. Default: the running cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def show(context: CliContext, file: Path | None, as_json: bool) -> None:
    """Show hosts and devices: what they are, what lies on them, what is free."""
    from dgpunet_dask.cluster.fleet_rows import fleet_lines, fleet_rows
    from dgpunet_dask.hardware.simulated import simulated_fleet

    rows = fleet_rows(simulated_fleet(file)) if file is not None else fleet_rows(*live(context))
    if as_json:
        emit_json({**rows, "error": None})
        return
    for line in fleet_lines(rows):
        click.echo(printable(line))


@fleet.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there. Default: stdout.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write the decision log there, for `policy replay`.")
@pass_context
def record(context: CliContext, output: Path | None, trace: Path | None) -> None:
    """Write the running cluster's machines as a fleet file, or with --trace what was decided on them.

    `up --simulate`, `policy test` and `policy explain --fleet` take the file.
    """
    from dgpunet_dask.placement.fleet_text import fleet_text

    if trace is not None:
        from dgpunet_dask.cluster.decisions import read_log

        _write(trace, read_log(context.home.decisions))
        if output is None:
            return
    text = fleet_text(live(context)[0])
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)


def live(context: CliContext) -> tuple[Fleet, dict[str, Any]]:
    """Return the running cluster's fleet, and the speeds that were measured there."""
    from dataclasses import replace

    from dgpunet_dask.cluster.fleets import live_fleet

    found = context.reach().fleet()
    return replace(live_fleet(found), minute=found["minute"]), found["speeds"]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
