"""Decision logs on disk: read as one trace, and with them the fleet and the policies that a replay is to use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dgpunet_dask.cluster.policy_files import policy_paths, read_policies
from dgpunet_dask.config.yamlfile import read_text
from dgpunet_dask.errors import MalformedFile, NoRecordedFleet, Problem
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.policy_file import parse_policies
from dgpunet_dask.placement.replay import Scenario, scenario_of
from dgpunet_dask.placement.trace import Trace, parse_trace


def read_traces(paths: Iterable[Path]) -> Trace:
    """Return the records of several files as one trace, ordered by the times at which the files begin.

    Raises
    ------
    MissingPath, UnreadablePath, NewerFormat
    MalformedFile
        With every mistake of every file.
    """
    found: list[Trace] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            found.append(parse_trace(read_text(path, most=-1), str(path)))
        except MalformedFile as error:
            problems += error.problems
    if problems:
        raise MalformedFile(problems)
    found.sort(key=lambda t: t.records[0].t if t.records else 0.0)
    return Trace(tuple(r for t in found for r in t.records), tuple(w for t in found for w in t.warnings))


def read_scenario(paths: Sequence[Path], fleet: Fleet | None) -> tuple[Scenario, tuple[str, ...]]:
    """Return what the logs at `paths` say, on `fleet` or on the machines that they name, and what is to be said about it.

    Raises
    ------
    NoRecordedFleet
        If neither names any. Else as `read_traces`.
    """
    trace = read_traces(paths)
    scenario = scenario_of(trace.records, fleet)
    if scenario is None:
        raise NoRecordedFleet(where=", ".join(map(str, paths)))
    return scenario, (*trace.warnings, *scenario.notes)


def recorded_policy(scenario: Scenario) -> Policy:
    """Return the last policy that a log names, without rules where it names none.

    Raises
    ------
    MalformedFile
        If its files are not policies.
    """
    if scenario.policy is None:
        return NO_POLICY
    return parse_policies([(s.text, s.file, s.layer) for s in scenario.policy.sources])


def policy_at(*paths: Path) -> Policy:
    """Return what the policy files at `paths`, or in such folders, say together.

    Raises
    ------
    MissingPath, UnreadablePath, MalformedFile, NewerFormat
    """
    return read_policies(policy_paths(paths))
