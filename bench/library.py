"""The interpreter's whole standard library, without its tests, embedded by an embedded cluster that starts cold; then three searches.

Prints files, chunks, tokens per second over the whole job (start-up of the stages included), peak memory of all processes together
(proportional set size, sampled), and the best hits. One run: it takes minutes. Figures that compare are in bench/embed.py.

    python bench/library.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil
from embed import PACKAGES, _cpu, version

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.search import Query, open_searcher

LEFT_OUT = ("test", "tests", "idle_test", "__pycache__", "site-packages", "config-*", "*.so")
#: A question, and the files that hold its answer.
QUESTIONS = {
    "decode the header of an e-mail": {"email/header.py"},
    "wait for a coroutine with a timeout": {"asyncio/tasks.py", "asyncio/timeouts.py"},
    "split a shell command line into words": {"shlex.py"},
}


class PeakMemory:
    """Samples the memory of the processes of one home in a thread, until it is left."""

    def __init__(self, home: Path, every_s: float = 1.0) -> None:
        self._home, self._every_s = str(home), every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mib = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak_mib = max(self.peak_mib, sum(map(self._pss, psutil.process_iter())) >> 20)

    def _pss(self, process: psutil.Process) -> int:
        try:
            ours = process.environ().get("DGPUNET_HOME") == self._home
            return int(process.memory_full_info().pss) if ours else 0
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0


def run(folder: Path, source: Path) -> dict[str, Any]:
    """Copy the library, index it, ask."""
    tree, home = folder / "lib", Home(folder / "home")
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    os.environ["DGPUNET_HOME"] = str(home.root)  # this process counts too
    with PeakMemory(home.root) as memory, Client(home=home) as client:
        started = time.perf_counter()
        status = client.wait(client.submit("embed-codebase", {"path": [str(tree)], "index": "library"}).job_id)
        seconds = time.perf_counter() - started
        if status.state != "done":
            raise SystemExit(f"the job ended as {status.state}: {status.error}")
        started = time.perf_counter()
        again = client.wait(client.submit("embed-codebase", {"path": [str(tree)], "index": "library"}).job_id)
        again_s = time.perf_counter() - started
    return {
        "what": "the standard library without tests: cold embedded cluster, one run",
        "job": status.to_json(),
        "seconds": seconds,
        "peak_memory_mib": memory.peak_mib,
        "submitted_again": {"seconds": again_s, "metrics": dict(again.metrics)},
        "searches": [answer(home, question, right) for question, right in QUESTIONS.items()],
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
    }


def answer(home: Home, question: str, right: set[str]) -> dict[str, Any]:
    """Ask one question; say which files came first and whether a right one is among the first three."""
    started = time.perf_counter()
    [found] = open_searcher(home, "library").search([Query(question)], 3)
    hits = [f"{h['path']}:{h['start_line']}-{h['end_line']}" for h in found["hits"]]
    return {"query": question, "seconds": time.perf_counter() - started, "hits": hits, "right": any(h["path"] in right for h in found["hits"])}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "library.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        text = json.dumps(run(Path(folder), options.source), indent=1)
    print(text)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
