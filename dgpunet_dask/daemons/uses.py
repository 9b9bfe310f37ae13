"""What loaded stages and live jobs use of a host's caches, so that none of it is removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.tidying import Key
from dgpunet_dask.errors import EnvironmentFailed
from dgpunet_dask.stagehost.environments import environment_digest
from dgpunet_dask.stagehost.spec import StageCallSpec


def used_by_stages(specs: Iterable[StageCallSpec], home: Home) -> set[Key]:
    """Return the workloads, models and environments of stages that are loaded or about to be."""
    return {key for spec in specs for key in _of(spec, home)}


def _of(spec: StageCallSpec, home: Home) -> Iterator[Key]:
    yield "workload", spec.digest
    for digest in spec.models.values():
        yield "model", digest
    if spec.env is not None:
        try:
            yield "env", environment_digest(home.workloads / spec.digest / spec.env)
        except EnvironmentFailed:  # its lock file cannot be read: it cannot be built either
            return


def used_by_jobs(home: Home, jobs: Iterable[tuple[str, Iterable[str], Iterable[str]]]) -> set[Key]:
    """Return what jobs that have not ended use: of each the workload's digest, its models' digests and its stages' lock files."""
    found: set[Key] = set()
    for digest, models, locks in jobs:
        found |= {("workload", digest), *(("model", model) for model in models)}
        for lock in locks:
            found |= set(_of(StageCallSpec(stage="", run="", digest=digest, env=lock), home))
    return found
