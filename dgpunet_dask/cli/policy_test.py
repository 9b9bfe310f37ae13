"""`dgpunet-dask policy test`: cases against policies, in seconds and without a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import CheckFailed, NoCases

if TYPE_CHECKING:
    from dgpunet_dask.placement.cases.run import Result
    from dgpunet_dask.placement.cases.values import Suite


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", "text", metavar="TEXT", help="Only cases whose name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def test(context: CliContext, paths: tuple[Path, ...], text: str | None, as_json: bool) -> None:
    """Run the cases of policy test files, or of all such files in a folder.

    A line for each case, the full table of reasons for each failure, and the count at the end. Exit code 3 if any fails.
    """
    from dgpunet_dask.cluster.policy_tests import find_cases, load_suites
    from dgpunet_dask.placement.cases.run import run_suite

    suites = [_only(suite, text) for suite in load_suites(find_cases(paths))]
    if not any(suite.cases for suite in suites):
        raise NoCases(where=", ".join(map(str, paths)), text="" if text is None else f" with {text!r} in their names")
    results = [result for suite in suites for result in run_suite(suite)]
    failed = sum(not result.passed for result in results)
    if as_json:
        error = CheckFailed(what="policy test", count=failed).to_json() if failed else None
        emit_json({"cases": [_row(r) for r in results], "passed": len(results) - failed, "failed": failed, "error": error})
    else:
        _say(results, quiet=context.quiet)
        click.echo(f"{len(results) - failed} passed, {failed} failed")
    if failed:
        raise SystemExit(CheckFailed.exit_code)


def _only(suite: Suite, text: str | None) -> Suite:
    from dataclasses import replace

    return suite if text is None else replace(suite, cases=tuple(c for c in suite.cases if text.lower() in c.name.lower()))


def _say(results: Iterable[Result], *, quiet: bool) -> None:
    from dgpunet_dask.placement.cases.run import details

    for result in results:
        if not (quiet and result.passed):
            click.echo(printable(f"{'ok  ' if result.passed else 'FAIL'}  {result.case.name}  {result.file}:{result.case.line}"))
        lines = [*result.faults, *details(result).splitlines()] if not result.passed else []
        for line in lines:
            click.echo(printable(f"      {line}"))


def _row(result: Result) -> dict[str, Any]:
    decision = result.decision
    ranking = [] if decision is None else [{"device": s.device, "total": s.total, "parts": dict(s.parts)} for s in decision.ranking]
    return {
        "name": result.case.name,
        "file": result.file,
        "line": result.case.line,
        "passed": result.passed,
        "faults": list(result.faults),
        "outcome": None if decision is None else decision.outcome,
        "on": [] if decision is None else list(decision.devices),
        "waits_for": None if decision is None else decision.waits_for,
        "ranking": ranking,
        "verdicts": [] if decision is None else [v.to_json() for name in sorted(decision.refusals) for v in decision.refusals[name]],
    }
