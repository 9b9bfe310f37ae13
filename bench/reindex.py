"""Submitting an index again: one changed file of many, nothing changed, a renamed folder, a copy, a branch switch and back.

The tree is a git repository of generated Python files, no two alike. Its first index is made by the product's own scan, cutting and publication,
with random vectors of length 1 in the place of the model's, which are then known (cache/vectors): what is measured begins with a whole index, and embedding
50,000 files would tell nothing of it. What changes afterwards is embedded by the model. The cluster is warm: each arm has run once before it is timed.

`job` is from submission to the job's end, `searchable` until the head, which has the index open, has answered a query for what is new from the new
version. `told` names the changed paths in the submission, as the jobs of `submit --watch` have them; `watch` is a real `submit --watch`, from the
write of the file until it has told of its job's end. `embedded` are the most chunks that were embedded in any round.

    python bench/reindex.py                             # 50,000 files, 7 rounds
    python bench/reindex.py --files 500 --rounds 5 --output -
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.chunk import chunks_of
from dgpunet_dask.retrieval.discover import roots_of
from dgpunet_dask.retrieval.ingest import Plan, Scan, SourceFile, publish
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.rows import Row, packed
from dgpunet_dask.retrieval.tokens import load_tokens

INDEX = "reindexed"
#: Files of one folder, and folders of one package.
PER_FOLDER, PER_PACKAGE = 50, 20
#: Files that the two branches have otherwise.
BRANCH_FILES = 20
TARGETS = {"told": 1.0, "watch": 1.0, "rename_embedded": 0, "copy_embedded": 0, "branch_embedded": 0}
PACKAGES = ("dask", "distributed", "faiss-cpu", "numpy", "openvino", "pyarrow", "tantivy", "watchfiles")


def git(root: Path, *arguments: str) -> None:
    """Run git in the tree as a user without settings."""
    who = ("-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main", "-c", "gc.auto=0")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def make_tree(root: Path, files: int, seed: int) -> list[Path]:
    """Write the files, commit them, and make a second branch in which some are others; return them in the order of their names."""
    words, made = random.Random(seed), []
    for n in range(files):
        folder = root / f"pkg{n // (PER_FOLDER * PER_PACKAGE):03d}" / f"mod{n // PER_FOLDER % PER_PACKAGE:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder / f"file_{n % PER_FOLDER:02d}.py")
        made[-1].write_text(f"def function_{n}(x):\n    return x + {words.randrange(10**9)}\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    git(root, "checkout", "-qb", "other")
    for path in made[:: max(1, files // BRANCH_FILES)]:
        path.write_text(path.read_text() + f"\n\ndef other_{words.randrange(10**9)}():\n    return None\n")
    git(root, "commit", "-qam", "two")
    git(root, "checkout", "-q", "main")
    return made


def first_index(home: Home, root: Path, folder: Path, seed: int) -> int:
    """Make the first version with random vectors; return its chunks."""
    plan = Plan(INDEX, roots_of([root]), find_model("minilm", home.root / "cache"))
    folder.mkdir()
    scan = Scan(plan, home, folder, lambda *_: None)
    done = publish(folder, home, _units(list(scan.files(scan.entries())), seed))
    return done.chunks


def _units(files: list[SourceFile], seed: int) -> Iterator[dict[str, Any]]:
    numbers, tokens = np.random.default_rng(seed), load_tokens("minilm")
    for at in range(0, len(files), 512):
        part = files[at : at + 512]
        rows = [Row(chunk, part[0].space) for chunk in chunks_of([(f.key, f.text, f.language) for f in part], tokens, lambda *_: None)]
        vectors = numbers.normal(size=(len(rows), 384)).astype(np.float32)
        for row, vector in zip(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True):
            row.vector, row.embedded = vector, True
        yield packed(rows)


class Bench:
    """One tree, its index and a cluster."""

    def __init__(self, client: Client, root: Path, files: list[Path], seed: int) -> None:
        self.client, self.root, self.files = client, root, files
        self.random = random.Random(seed)
        self.version = ""
        self.names = 0

    def submit(self, changed: list[Path] | None = None, query: str = "function") -> dict[str, float]:
        """Submit, wait, search; return the seconds and what was embedded."""
        params: dict[str, Any] = {"path": [str(self.root)], "index": INDEX}
        if changed is not None:
            params |= {"changed": [str(path) for path in changed], "since": self.version}
        started = time.perf_counter()
        status = self.client.wait(self.client.submit("embed-codebase", params).job_id)
        ended = time.perf_counter()
        if status.state != "done":
            raise SystemExit(f"the job ended as {status.state}: {status.to_json()['error']}")
        asked = {"queries": [{"query": query}], "k": 3, "path": None, "lang": None}
        [answer] = self.client.api.search(INDEX, asked)
        searched = time.perf_counter()
        if query not in "".join(hit["text"] for hit in answer["hits"]):
            raise SystemExit(f"{query} is not found")
        self.version = str(status.metrics["version"])
        return {"job": ended - started, "searchable": searched - started, "embedded": float(status.metrics["embedded"])}

    def edit(self) -> tuple[Path, str]:
        """Add a function of a new name to a file; return both."""
        self.names += 1
        name, path = f"added_{self.names}", self.random.choice(self.files)
        path.write_text(path.read_text() + f"\n\ndef {name}(value):\n    return value * {self.names}\n")
        return path, name

    def told(self) -> dict[str, float]:
        """One changed file that is named."""
        path, name = self.edit()
        return self.submit([path], name)

    def changed(self) -> dict[str, float]:
        """One changed file that has to be found."""
        return self.submit(None, self.edit()[1])

    def nothing(self) -> dict[str, float]:
        """Nothing changed."""
        return self.submit()

    def rename(self) -> dict[str, float]:
        """A folder has another name, and then its old one again."""
        old, new = self.root / "pkg000", self.root / "renamed"
        old.rename(new) if old.exists() else new.rename(old)
        return self.submit()

    def copy(self) -> dict[str, float]:
        """A folder is there twice; that it is gone again is not timed."""
        shutil.copytree(self.root / "pkg000" / "mod00", self.root / "copied")
        found = self.submit()
        shutil.rmtree(self.root / "copied")
        self.submit()
        return found

    def branch(self) -> dict[str, float]:
        """The other branch; what was added goes first, and coming back is `back`."""
        git(self.root, "checkout", "-qf", "main")
        self.submit()
        git(self.root, "checkout", "-q", "other")
        return self.submit()

    def back(self) -> dict[str, float]:
        """The first branch again."""
        git(self.root, "checkout", "-qf", "main")
        return self.submit()


class Watched:
    """A `submit --watch` that runs."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        command = [sys.executable, "-m", "dgpunet_dask.cli.main", "submit", "embed-codebase", "--watch", "--json"]
        command += ["--set", f"path={bench.root}", "--set", f"index={INDEX}"]
        environment = {**os.environ, "DGPUNET_HOME": str(bench.client.home.root)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        self.next()

    def next(self) -> dict[str, Any]:
        """Return the status of the next job that has ended."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def round(self) -> dict[str, float]:
        """Write a file and wait until its job is told of."""
        started = time.perf_counter()
        self.bench.edit()
        status = self.next()
        return {"job": time.perf_counter() - started, "embedded": float(status["metrics"]["embedded"])}

    def close(self) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all arms, taking turns, and return the figures."""
    home, root = Home(folder / "home").ensure(), folder / "tree"
    files = make_tree(root, options.files, options.seed)
    chunks = first_index(home, root, folder / "first", options.seed)
    rounds: dict[str, list[dict[str, float]]] = {}
    with Client(home=home) as client:
        bench = Bench(client, root, files, options.seed)
        bench.submit()
        arms = (bench.nothing, bench.told, bench.changed, bench.rename, bench.rename, bench.copy, bench.branch, bench.back)
        for number in range(options.rounds + 1):  # the first of each is not counted: processes start, kernels are prepared, branches become known
            for arm in arms:
                note(rounds, arm.__name__, arm, number)
        watched = Watched(bench)
        try:
            for number in range(options.rounds + 1):
                note(rounds, "watch", watched.round, number)
        finally:
            watched.close()
    return {
        "what": "seconds from submission (watch: from the write) to the job's end and until searchable, on a warm cluster; chunks embedded",
        "files": options.files, "chunks": chunks, "rounds": options.rounds, "seed": options.seed,
        "arms": {name: figures(found) for name, found in rounds.items()}, "targets": targets(rounds, options.files),
        **where(),
    }  # fmt: skip


def note(rounds: dict[str, list[dict[str, float]]], name: str, arm: Callable[[], dict[str, float]], number: int) -> None:
    """Run one round of an arm; the first of each is not counted."""
    found = arm()
    print(f"round {number}, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()), file=sys.stderr, flush=True)
    if number:
        rounds.setdefault(name, []).append(found)


def figures(found: list[dict[str, float]]) -> dict[str, Any]:
    """Return median and spread of what was timed, and the most that was embedded."""
    times = {name: [one[name] for one in found] for name in found[0] if name != "embedded"}
    told: dict[str, Any] = {name: {"median": statistics.median(all_), "min": min(all_), "max": max(all_)} for name, all_ in times.items()}
    return {**told, "rounds": len(found), "embedded": max(one["embedded"] for one in found)}


def targets(rounds: dict[str, list[dict[str, float]]], files: int) -> dict[str, Any]:
    """Return what is to be reached for 50,000 files, and what was."""
    seen = {name: statistics.median(one.get("searchable", one["job"]) for one in rounds[name]) for name in ("told", "watch")}
    seen |= {f"{name}_embedded": max(one["embedded"] for one in rounds[name]) for name in ("rename", "copy")}
    seen["branch_embedded"] = max(one["embedded"] for name in ("branch", "back") for one in rounds[name])
    found = {name: {"target": most, "found": seen[name], "met": seen[name] <= most} for name, most in TARGETS.items()}
    return {"of_files": files, **found}


def table(result: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [f"{'':<10}{'job s':>8}{'min':>8}{'max':>8}{'searchable s':>14}{'embedded':>10}"]
    for name, arm in result["arms"].items():
        searchable = f"{arm['searchable']['median']:.2f}" if "searchable" in arm else "-"
        job = arm["job"]
        lines.append(f"{name:<10}{job['median']:>8.2f}{job['min']:>8.2f}{job['max']:>8.2f}{searchable:>14}{arm['embedded']:>10.0f}")
    return "\n".join(lines)


def cpu() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def run(parser: argparse.ArgumentParser, name: str, measured: Callable[[argparse.Namespace, Path], dict[str, Any]]) -> None:
    """Parse the rest of the command line, measure in a folder that goes afterwards, and tell and save the figures."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / name), help="- prints only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = measured(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    print(table(result), file=sys.stderr)
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(text + "\n")


def where() -> dict[str, Any]:
    """Return the machine and the versions that the figures belong to."""
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.platform(), "python": platform.python_version()}
    return {"machine": machine, "versions": {name: version(name) for name in PACKAGES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    run(parser, "reindex.json", measure)


if __name__ == "__main__":
    main()
