"""A small live cluster whose processes can be made to fail."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.testing.faults import Arming, Trial
from dgpunet_dask.testing.history import check_history
from dgpunet_dask.testing.livecluster import live_cluster

HERE = Path(__file__).parent
STEADY = HERE / "steady"
TWO = HERE / "two.yaml"
UNITS = 12
WORKERS = 2


def made(homes: Path) -> Iterator[Trial]:
    """Give a trial on a cluster of its own that has run the job undisturbed."""
    folder = Path(tempfile.mkdtemp(prefix="d", dir=homes))
    arming = Arming(folder / "f")
    with live_cluster(folder / "h", TWO, arming.variables) as cluster:
        trial = Trial(cluster, arming, STEADY, UNITS, WORKERS, check_history)
        trial.calm()
        yield trial


@pytest.fixture(scope="module")
def shared_trial(homes: Path) -> Iterator[Trial]:
    """A trial that the cases of a module share, as long as each leaves its cluster whole."""
    yield from made(homes)
