"""`dgpunet-dask policy replay` and `policy diff`: recorded work on a virtual clock, under one policy or under two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.cli.context import emit_json, printable

if TYPE_CHECKING:
    from dgpunet_dask.model.fleet import Fleet
    from dgpunet_dask.placement.replay import Difference, Loss, Replay

#: Lines of a list before the rest is only counted; --json has them all.
MOST: Final = 20
_FLEET = click.option(
    "--fleet", "fleet_file", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="On these machines. Default: those of the trace."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_FLEET
@click.option("--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Under these policy files. Default: the trace's.")
@_JSON
def replay(traces: tuple[Path, ...], fleet_file: Path | None, policy: tuple[Path, ...], as_json: bool) -> None:
    """Simulate recorded work and print what it comes to.

    The work of the decision log TRACE comes at the times at which it came, and takes what it took. Printed are the makespan against a
    time that no schedule can beat, waits by priority, the most VRAM charged on each device, out-of-memory errors, the longest time that
    a unit was passed over, and units per device. The files of a rotated log are given together.
    """
    from dgpunet_dask.cluster.traces import policy_at, read_scenario, recorded_policy
    from dgpunet_dask.placement.replay import replay as replayed

    scenario, notes = read_scenario(traces, _fleet(fleet_file))
    found = replayed(scenario, policy_at(*policy) if policy else recorded_policy(scenario))
    if as_json:
        row = {**_row(found), "recorded": dict(scenario.recorded), "units": len(scenario.arrivals), "notes": list(notes)}
        emit_json({**row, "error": None})
        return
    for note in notes:
        click.echo(printable(f"note: {note}"), err=True)
    for line in _lines(found, len(scenario.arrivals), dict(scenario.recorded)):
        click.echo(printable(line))


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--trace", "traces", multiple=True, required=True, type=click.Path(path_type=Path), metavar="TRACE", help="The recorded work.")
@_FLEET
@_JSON
def diff(before: Path, after: Path, traces: tuple[Path, ...], fleet_file: Path | None, as_json: bool) -> None:
    """Simulate recorded work under policy A and under policy B, and print what differs.

    A and B are policy files, or folders of them. Printed are the units that move, those that no longer run and those that now do, with
    the reason, and each figure that changes. The exit code is 0 whether anything differs or not.
    """
    from dgpunet_dask.cluster.traces import policy_at, read_scenario
    from dgpunet_dask.placement.replay import difference
    from dgpunet_dask.placement.replay import replay as replayed

    scenario, notes = read_scenario(traces, _fleet(fleet_file))
    old, new = (replayed(scenario, policy_at(path)) for path in (before, after))
    found = difference(scenario, old.run, new.run)
    if as_json:
        emit_json({**_difference_row(found), "before": _row(old), "after": _row(new), "notes": list(notes), "error": None})
        return
    for note in notes:
        click.echo(printable(f"note: {note}"), err=True)
    for line in _difference_lines(found):
        click.echo(printable(line))


def _fleet(path: Path | None) -> Fleet | None:
    from dgpunet_dask.hardware.simulated import simulated_fleet

    return None if path is None else simulated_fleet(path)


# A run


def _row(found: Replay) -> dict[str, Any]:
    return {**found.run.metrics(), "bound_s": found.bound_s, "ratio": found.ratio}


def _lines(found: Replay, units: int, recorded: dict[str, int]) -> Iterator[str]:
    run = found.run
    yield f"finished    {len(run.done)} of {units} units"
    if found.bound_s is not None:
        ratio = "" if found.ratio is None else f" = {found.ratio:.3f} × the lower bound of {found.bound_s:.1f} s"
        yield f"makespan    {run.makespan_s:.1f} s{ratio}"
    for priority, waits in run.waits.items():
        yield f"wait        {priority}: p50 {waits.p50_s:.1f} s, p95 {waits.p95_s:.1f} s, at most {waits.max_s:.1f} s ({waits.units} units)"
    yield f"passed over for {run.starvation_s:.1f} s at most"
    yield f"memory      {run.ooms} out of memory, {run.loads} loads, {run.evictions} evictions"
    yield from _table(found, recorded)
    for what, units_of in (("waits", run.waiting), ("never", run.never), ("held", run.held)):
        for reason, count in Counter(units_of.values()).most_common(MOST):
            yield f"{what:<11} {count}: {reason}"


def _table(found: Replay, recorded: dict[str, int]) -> Iterator[str]:
    from dgpunet_dask.units import Mib

    counts, high = found.run.counts, found.run.high_water_mib
    names = sorted({*counts, *high, *recorded})
    if names:
        width = max(len("device"), *map(len, names))
        yield f"{'device':<{width}}  {'units':>6}  {'recorded':>8}  VRAM charged at most"
    for name in names:
        yield f"{name:<{width}}  {counts.get(name, 0):>6}  {recorded.get(name, 0):>8}  {Mib.of(high.get(name, 0))}"


# A difference


def _difference_row(found: Difference) -> dict[str, Any]:
    return {
        "moved": [{**m._asdict(), "before": list(m.before), "after": list(m.after)} for m in found.moved],
        "newly_waiting": [loss._asdict() for loss in found.newly_waiting],
        "newly_runnable": [loss._asdict() for loss in found.newly_runnable],
        "metrics": {name: {"before": a, "after": b, "delta": b - a} for name, (a, b) in found.metrics.items()},
    }


def _difference_lines(found: Difference) -> Iterator[str]:
    if not found.any:
        yield "no difference"
        return
    moves = Counter(f"{m.stage or 'work'}: {' + '.join(m.before)} -> {' + '.join(m.after)}" for m in found.moved)
    yield from _counted("moved", moves)
    yield from _counted("newly waiting", _losses(found.newly_waiting))
    yield from _counted("newly runnable", _losses(found.newly_runnable))
    changed = [(name, a, b) for name, (a, b) in found.metrics.items() if a != b]
    if changed:
        width = max(len(name) for name, _, _ in changed)
        for name, a, b in changed:
            yield f"{name:<{width}}  {a:>12.6g}  ->  {b:>12.6g}  ({b - a:+.6g})"


def _losses(losses: Iterable[Loss]) -> Counter[str]:
    return Counter(f"{loss.stage or 'work'}: {loss.reason}" for loss in losses)


def _counted(what: str, counted: Counter[str]) -> Iterator[str]:
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    for text, count in ordered[:MOST]:
        yield f"{what:<15} {count:>6}  {text}"
    if len(ordered) > MOST:
        yield f"{what:<15} {sum(count for _, count in ordered[MOST:]):>6}  in {len(ordered) - MOST} more groups; --json has them all"
