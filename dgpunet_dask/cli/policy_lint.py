"""`dgpunet-dask policy lint`: the mistakes in policy files, and what in them says nothing."""

from __future__ import annotations

from pathlib import Path

import click

from dgpunet_dask.cli.context import emit_json, printable


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--fleet", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Hold the rules against these machines too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint(files: tuple[Path, ...], fleet: Path | None, as_json: bool) -> int:
    """Check policy files.

    All files count as one policy, as a head reads them; of a folder, all its *.yaml. Files under a folder `generated` are of that layer,
    all others are written by people. Every mistake is told at once as file:line:col (exit code 2); else what can never have an effect,
    and with --fleet what these machines cannot meet (exit code 3).
    """
    from dgpunet_dask.cluster.policy_files import policy_paths, read_policies
    from dgpunet_dask.errors import CheckFailed
    from dgpunet_dask.hardware.simulated import simulated_fleet
    from dgpunet_dask.placement.lint import lint as findings_of

    paths = policy_paths(files)
    policy = read_policies(paths)
    found = findings_of(policy, None if fleet is None else simulated_fleet(fleet))
    if as_json:
        error = CheckFailed(what="policy lint", count=len(found)).to_json() if found else None
        warnings = [finding._asdict() for finding in found]
        emit_json({"files": list(map(str, paths)), "rules": len(policy.rules), "warnings": warnings, "error": error})
    else:
        for finding in found:
            click.echo(printable(finding))
        click.echo(f"{_count(len(paths), 'file')}, {_count(len(policy.rules), 'rule')}, {_count(len(found), 'warning')}")
    return 3 if found else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
