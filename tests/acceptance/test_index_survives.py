"""An index on a live cluster: published into by two jobs at once, and by processes that are killed, while others search it."""

from __future__ import annotations

import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.errors import NoSuchIndex
from dgpunet_dask.failpoints import POINTS
from dgpunet_dask.retrieval.verify import verify
from dgpunet_dask.testing.faults import Arming, Case
from dgpunet_dask.testing.livecluster import LiveCluster, live_cluster

pytestmark = pytest.mark.timeout(600)

INDEX = "x"
FILES = ("a.md", "b.md", "sub/c.md")
#: So many that one file's rows are not too much to be passed over: a publication then leaves them to the next compaction.
OTHERS = 6
_VERSION = re.compile(r"edition (\d+)")


@dataclass
class Killing:
    """A cluster whose processes can be killed at points, and a tree to index."""

    cluster: LiveCluster
    arming: Arming
    tree: Path

    def write(self, number: int) -> None:
        """Make the tree that of an edition, which three files name; the others stay as they are."""
        for n in range(OTHERS):
            (self.tree / f"other{n}.md").parent.mkdir(parents=True, exist_ok=True)
            (self.tree / f"other{n}.md").write_text(f"# Part {n}\n\nWhat is told here never changes.\n")
        for name in FILES:
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_text(f"# Manual of {name}\n\nThis is edition {number} of the manual.\n")

    def submit(self, index: str = INDEX) -> str:
        return self.cluster.submit_named("embed-codebase", {"path": [str(self.tree)], "index": index}).job_id

    def whole(self) -> None:
        """Nothing of the index is torn."""
        assert verify(self.cluster.home, INDEX).faults == []
        assert self.cluster.orphans() == []


@dataclass
class Reader:
    """Searches all the time, and keeps which editions each answer told of."""

    api: ApiClient
    seen: list[frozenset[int]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                [answer] = self.api.search(INDEX, {"queries": [{"query": "edition of the manual"}], "k": 50})
                self.seen.append(editions(answer["hits"]))
            except Exception as error:  # whatever a reader meets is what the test is about
                self.errors.append(error)


def editions(hits: list[dict]) -> frozenset[int]:
    return frozenset(int(number) for hit in hits for number in _VERSION.findall(hit["text"]))


@pytest.fixture(scope="module")
def live(homes: Path) -> Iterator[Killing]:
    folder = Path(tempfile.mkdtemp(prefix="k", dir=homes))
    arming = Arming(folder / "f")
    with live_cluster(folder / "h", extra=arming.variables) as cluster:
        yield Killing(cluster, arming, folder / "tree")


def hits_now(live: Killing) -> list[dict]:
    return live.cluster.api().search(INDEX, {"queries": [{"query": "edition of the manual"}], "k": 50})[0]["hits"]


@pytest.mark.long
def test_readers_see_the_old_version_or_the_new_one_whatever_is_killed(live):
    live.write(1)
    assert live.cluster.ended(live.submit(), 300).state == "done"
    points = [name for name, point in POINTS.items() if point.role == "publisher"]
    assert len(points) == 7
    with Reader(live.cluster.api()) as reader:
        for number, point in enumerate((name for name in points if name.startswith("index.")), 2):
            live.write(number)
            live.arming.arm(Case(point, "kill"))
            before = len(reader.seen)
            status = live.cluster.ended(live.submit(), 300)
            assert (status.state, live.arming.fired()[-1]["point"]) == ("done", point)
            assert editions(hits_now(live)) == {number}
            assert {edition for seen in reader.seen[before:] for edition in seen} <= {number - 1, number}
            live.whole()
        (live.tree / "b.md").unlink()
        assert live.cluster.ended(live.submit(), 300).state == "done"
        wanted = {hit["path"]: hit["text"] for hit in hits_now(live)}
        for point in (name for name in points if name.startswith("compact.")):
            live.arming.arm(Case(point, "kill"))
            process = live.cluster.command("index", "compact", INDEX)
            process.communicate(timeout=300)
            assert (process.returncode, live.arming.fired()[-1]["point"]) == (-signal.SIGKILL, point)
            assert {hit["path"]: hit["text"] for hit in hits_now(live)} == wanted
            live.whole()
        process = live.cluster.command("index", "compact", INDEX)
        assert process.communicate(timeout=300)[0] is not None
        assert process.returncode == 0
        live.whole()
    assert reader.errors == []
    assert all(len(seen) == 1 for seen in reader.seen), "an answer is of one version"
    told = [min(seen) for seen in reader.seen]
    assert told == sorted(told), "a version that was seen is never taken back"
    assert len(reader.seen) > 20


def test_two_jobs_that_write_one_index_at_once_leave_one_of_them_whole(live):
    live.write(100)
    other = live.tree.parent / "other"
    other.mkdir()
    for n in range(4):
        (other / f"{n}.md").write_text(f"# Song {n}\n\nThis is edition {200 + n} of the songs.\n")
    jobs = [live.cluster.submit_named("embed-codebase", {"path": [str(path)], "index": "both"}).job_id for path in (live.tree, other)]
    states = [live.cluster.ended(job, 300) for job in jobs]
    assert [status.state for status in states] == ["done", "done"]
    [answer] = live.cluster.api().search("both", {"queries": [{"query": "edition"}], "k": 50})
    found = {hit["path"] for hit in answer["hits"]}
    trees = [{path.relative_to(root).as_posix() for path in root.rglob("*.md")} for root in (live.tree, other)]
    assert found in trees, "each version is of one tree, and the last one is in force"
    verdict = verify(live.cluster.home, "both")
    assert (verdict.faults, verdict.files) == ([], len(found))
    live.cluster.api().index_remove("both")
    with pytest.raises(NoSuchIndex):
        live.cluster.api().search("both", {"queries": [{"query": "edition"}]})
