"""`dgpunet-dask policy test`: cases against policies, in seconds and without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import CheckFailed, NoCases

if TYPE_CHECKING:
    from dgpunet_dask.model.decision import Decision
    from dgpunet_dask.placement.cases.coverage import Line
    from dgpunet_dask.placement.cases.properties import Failure
    from dgpunet_dask.placement.cases.run import Result
    from dgpunet_dask.placement.cases.values import Suite


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-k", "text", metavar="TEXT", help="Only cases whose name contains this.")
@click.option(
    "--properties/--no-properties", default=True, help="Also try on generated fleets what must hold of any policy. Default: yes."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which generated fleets.")
@click.option("--examples", type=click.IntRange(1), default=50, show_default=True, help="How many of them for each policy.")
@click.option(
    "--coverage", is_flag=True, help="Tell of each clause how often it was seen to hold and not to, of each preference to decide."
)
@click.option("--require-coverage", is_flag=True, help="The same, and exit code 3 where a clause was not seen both ways.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def test(
    context: CliContext, paths: tuple[Path, ...], text: str | None, properties: bool, seed: int, examples: int, coverage: bool,
    require_coverage: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run the cases of policy test files, or of all such files in a folder.

    A line for each case, the full table of reasons for each failure, and the count at the end. Exit code 3 if any fails.
    """
    from dgpunet_dask.cluster.policy_tests import find_cases, load_suites
    from dgpunet_dask.placement.cases.run import run_suite

    suites = [_only(suite, text) for suite in load_suites(find_cases(paths))]
    if not any(suite.cases for suite in suites):
        raise NoCases(where=", ".join(map(str, paths)), text="" if text is None else f" with {text!r} in their names")
    results = [result for suite in suites for result in run_suite(suite)]
    broken = _broken(suites, seed, examples) if properties else []
    lines = _coverage(suites) if coverage or require_coverage else None
    failed = sum(not r.passed for r in results) + len(broken)
    gaps = [line for line in lines or () if line.gap] if require_coverage else []
    if as_json:
        error = CheckFailed(what="policy test", count=failed + len(gaps)).to_json() if failed or gaps else None
        emit_json(_document(results, broken, lines, seed, examples if properties else 0) | {"error": error})
    else:
        _say(results, broken, lines, quiet=context.quiet)
        if properties and not broken and not context.quiet:
            click.echo(f"ok    properties, {examples} generated fleets for each policy, seed {seed}")
        click.echo(f"{sum(r.passed for r in results)} passed, {failed} failed")
    if failed or gaps:
        raise SystemExit(CheckFailed.exit_code)


def _only(suite: Suite, text: str | None) -> Suite:
    from dataclasses import replace

    return suite if text is None else replace(suite, cases=tuple(c for c in suite.cases if text.lower() in c.name.lower()))


def _broken(suites: Sequence[Suite], seed: int, examples: int) -> list[Failure]:
    """Return the properties that do not hold, for each policy once."""
    from random import Random

    from dgpunet_dask.placement.cases.properties import failures

    policies = {suite.policy.digest: suite.policy for suite in suites}
    return [failure for policy in policies.values() for failure in failures(policy, seed, examples, Random)]


def _coverage(suites: Sequence[Suite]) -> list[Line]:
    from dgpunet_dask.placement.cases.coverage import coverage

    return coverage(suites)


def _say(results: Iterable[Result], broken: Iterable[Failure], lines: Iterable[Line] | None, *, quiet: bool) -> None:
    from dgpunet_dask.placement.cases import coverage, properties

    for result in results:
        if not (quiet and result.passed):
            click.echo(printable(f"{'ok  ' if result.passed else 'FAIL'}  {result.case.name}  {result.file}:{result.case.line}"))
        _indented(() if result.passed else [*result.faults, *result.details])
    for failure in broken:
        click.echo(printable(f"FAIL  property: {failure.name}"))
        _indented(properties.told(failure))
    for line in () if lines is None else coverage.told(lines):
        click.echo(printable(line))


def _indented(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(f"      {line}"))


def _document(
    results: Sequence[Result], broken: Sequence[Failure], lines: Sequence[Line] | None, seed: int, examples: int
) -> dict[str, Any]:
    """Return the same as data."""
    from dgpunet_dask.placement.cases.properties import told

    passed = sum(r.passed for r in results)
    found: dict[str, Any] = {
        "cases": [_row(r) for r in results],
        "properties": {"seed": seed, "examples": examples, "failures": [{"name": f.name, "details": told(f)} for f in broken]},
        "passed": passed,
        "failed": len(results) - passed + len(broken),
    }
    if lines is not None:
        found["coverage"] = [{**line.clause._asdict(), **line.seen._asdict(), "gap": line.gap} for line in lines]
    return found


def _row(result: Result) -> dict[str, Any]:
    from dgpunet_dask.placement.run import Run

    row = {
        "name": result.case.name,
        "file": result.file,
        "line": result.case.line,
        "passed": result.passed,
        "faults": list(result.faults),
    }
    if result.decision is not None:
        return row | _decision(result.decision)
    course = result.course or Run()
    left = {**course.waiting, **course.never, **course.held}
    return row | {"counts": dict(course.counts), "makespan_s": course.makespan_s, "left": left}


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "outcome": decision.outcome,
        "on": list(decision.devices),
        "waits_for": decision.waits_for,
        "ranking": [{"device": s.device, "total": s.total, "parts": dict(s.parts)} for s in decision.ranking],
        "verdicts": [v.to_json() for name in sorted(decision.refusals) for v in decision.refusals[name]],
    }
