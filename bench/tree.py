"""A large real tree end to end: files, chunks, rate, peak memory and size; then what one changed file, a renamed folder and a branch switch cost.

The tree is copied and made a git repository with two branches. It is embedded once, by a warm cluster with an empty vector cache, with the model;
then each change is submitted again, some rounds of each after one that is not counted.

    python bench/tree.py linux-source-6.1/kernel linux-source-6.1/mm     # apt-get download linux-source-6.1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from durable_embed import warm_up
from library import PeakMemory
from reindex import INDEX, Bench, figures, git, note, run, where

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home

#: Files that the two branches have otherwise.
BRANCH_FILES = 20


class RealTree(Bench):
    """A tree of C files, whose first folder is the one that is renamed."""

    def submit(self, changed: list[Path] | None = None, query: str = "int") -> dict[str, float]:
        """Submit, wait, search; return the seconds and what was embedded."""
        return super().submit(changed, query)

    def edit(self) -> tuple[Path, str]:
        """Add a function of a new name to a file; return both."""
        self.names += 1
        name, path = f"added_{self.names}", self.random.choice([path for path in self.files if path.exists()])
        with path.open("a") as file:
            file.write(f"\n\nint {name}(int value)\n{{\n\treturn value * {self.names};\n}}\n")
        return path, name

    def rename(self) -> dict[str, float]:
        """A folder has another name, and then its old one again."""
        old, new = self.folder, self.folder.with_name("renamed")
        old.rename(new) if old.exists() else new.rename(old)
        return self.submit()

    @property
    def folder(self) -> Path:
        """The folder that is renamed."""
        return self.root / self.files[0].relative_to(self.root).parts[0]


def make_repository(sources: list[Path], root: Path) -> list[Path]:
    """Copy the folders, commit them, and make a second branch in which some files are others; return the C files."""
    for source in sources:
        shutil.copytree(source, root / source.name, symlinks=True)
    files = sorted(root.rglob("*.c"))
    git(root, "init")
    git(root, "add", "-f", ".")
    git(root, "commit", "-qm", "one")
    git(root, "checkout", "-qb", "other")
    for number, path in enumerate(files[:: max(1, len(files) // BRANCH_FILES)]):
        with path.open("a") as file:
            file.write(f"\n\nint other_{number}(void)\n{{\n\treturn {number};\n}}\n")
    git(root, "commit", "-qam", "two")
    git(root, "checkout", "-q", "main")
    return files


def first(client: Client, bench: Bench, root: Path) -> dict[str, Any]:
    """Embed the whole tree; return what it took and what came of it."""
    with PeakMemory(client.home.root) as memory:
        started = time.perf_counter()
        status = client.wait(client.submit("embed-codebase", {"path": [str(root)], "index": INDEX}).job_id)
        seconds = time.perf_counter() - started
    if status.state != "done":
        raise SystemExit(f"the job ended as {status.state}: {status.to_json()['error']}")
    bench.version = str(status.metrics["version"])
    chunks, tokens = int(status.metrics["chunks"]), int(status.metrics["tokens"])
    return {
        "seconds": seconds, "chunks_per_s": chunks / seconds, "tokens_per_s": tokens / seconds, "peak_mib": memory.peak_mib,
        "source_mib": _mib(root), "index_mib": _mib(client.home.indexes), "vector_cache_mib": _mib(client.home.vectors),
        "metrics": dict(status.metrics), "units": status.to_json()["units"],
    }  # fmt: skip


def _mib(folder: Path) -> float:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and ".git" not in path.parts]
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Embed the tree, change it, and return the figures."""
    home, root = Home(folder / "home").ensure(), folder / "tree"
    os.environ["DGPUNET_HOME"] = str(home.root)  # this process counts too
    files = make_repository(options.folders, root)
    rounds: dict[str, list[dict[str, float]]] = {}
    with Client(home=home) as client:
        client.wait(client.submit("embed-codebase", {"path": [str(warm_up(folder))], "index": "warm"}).job_id)
        shutil.rmtree(home.vectors, ignore_errors=True)
        bench = RealTree(client, root, files, options.seed)
        whole = first(client, bench, root)
        print(json.dumps(whole, indent=1), file=sys.stderr, flush=True)
        for number in range(options.rounds + 1):
            for arm in (bench.told, bench.changed, bench.rename, bench.rename, bench.branch, bench.back):
                note(rounds, arm.__name__, arm, number)
    return {
        "what": "a real tree embedded whole, then seconds from submission to the job's end and until searchable, and chunks embedded",
        "folders": [source.name for source in options.folders], "whole": whole, "rounds": options.rounds, "seed": options.seed,
        "arms": {name: figures(found) for name, found in rounds.items()},
        **where(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    run(parser, "tree.json", measure)


if __name__ == "__main__":
    main()
