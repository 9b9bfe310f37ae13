"""A codebase is embedded while head, worker, client and stage host are killed: the index is the same, and a kill costs at most a unit."""

from __future__ import annotations

import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.testing.durable_embed import KILLS, calm, likeness, storm, tree
from dgpunet_dask.testing.history import check_history
from dgpunet_dask.testing.livecluster import LiveCluster, live_cluster

TOKENS = 100_000
STDLIB = Path(sysconfig.get_paths()["stdlib"])

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(homes: Path) -> Iterator[LiveCluster]:
    with live_cluster(Path(tempfile.mkdtemp(prefix="e", dir=homes))) as made:
        yield made


def test_killing_every_kind_of_process_on_the_way_leaves_the_same_index(cluster, tmp_path):
    assert tree(STDLIB, tmp_path / "tree", TOKENS) > 10
    _, plain = calm(cluster, tmp_path / "tree", "calm")
    assert plain.state == "done"
    assert plain.tokens > TOKENS // 2
    _, ran, kills = storm(cluster, tmp_path / "tree", "storm", plain.units, print)
    assert [kill.role for kill in kills] == [role for _, role in KILLS]
    assert (ran.state, ran.units, ran.tokens) == ("done", plain.units, plain.tokens)
    assert ran.attempts - ran.units <= len(kills)
    assert max(kill.serving_s for kill in kills) < 30
    found = likeness(cluster.home, "calm", "storm")
    assert found.same, found
    assert check_history(cluster.home.root / "ledger.db", cluster.root) == []
    assert cluster.orphans() == []
