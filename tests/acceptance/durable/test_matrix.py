"""Whatever fails wherever: the job ends with the same bytes, and the history breaks no rule.

The seed decides at which unit a fault strikes: ``DGPUNET_TEST_SEED`` sets it, and each case's name tells it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dgpunet_dask.testing.faults import Case, Outcome, Trial, cases, table
from tests.acceptance.durable.conftest import UNITS, made

SEED = int(os.environ.get("DGPUNET_TEST_SEED", "1"))
CASES = cases(SEED, UNITS)

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


class Cluster:
    """Gives the trial of one cluster after the other: the next one where a case has left faults behind."""

    def __init__(self, homes: Path) -> None:
        self._homes = homes
        self._made: Iterator[Trial] | None = None
        self._trial: Trial | None = None
        self.outcomes: list[Outcome] = []

    def run(self, case: Case) -> Outcome:
        if self._trial is None:
            self._made = made(self._homes)
            self._trial = next(self._made)
        found = Outcome(case.name, "?", 0.0, 0, 0, 0.0, ("the trial itself broke",))
        try:
            found = self._trial.run(case, len(self.outcomes))
        finally:
            self.outcomes.append(found)
            if found.faults:
                self.close()
        return found

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
        self._made = self._trial = None


@pytest.fixture(scope="module")
def cluster(homes: Path) -> Iterator[Cluster]:
    with closing(Cluster(homes)) as found:
        yield found
    print(f"seed {SEED}", table(found.outcomes), sep="\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_changes_no_result(cluster, case):
    found = cluster.run(case)
    assert not found.faults, f"seed {SEED}: {table([found])}"
