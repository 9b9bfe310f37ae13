"""A job of 100,000 units of a millisecond: what a unit costs that survives any kill, beside `client.map` of the same Dask and Ray tasks.

The job runs on a warm cluster of this machine; `client.map` on the same scheduler and workers; Ray on as many CPUs, from an interpreter
of its own (`--ray`; without one its arm is left out, and the reason told). All arms sleep one millisecond a unit and give back a pair. Only
the job's results are durable: each unit is a file that is synced and a row of the ledger. What the ledger alone costs is measured on the
same disk, with as many units on their way. A smaller job before the measured one warms each arm.

    python bench/jobs_units.py --ray RAY_VENV/bin/python
    python bench/jobs_units.py --units 2000 --output -
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import psutil
from distributed import Client

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.jobs.ledger import Ledger, NewJob
from dgpunet_dask.stagehost.frames import read_frames, unpack
from dgpunet_dask.testing.livecluster import LiveCluster, live_cluster

HERE = Path(__file__).parent
END_S = 7200.0
IN_FLIGHT = 8
RAY_ARM = """
import json, os, sys, time
import ray
ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, configure_logging=False)
@ray.remote(num_cpus=1)
def nap(number):
    began = time.time(); time.sleep(0.001); return number, began
ray.get([nap.remote(n) for n in range(200)])
count = int(sys.argv[1]); asked = time.time()
rows = ray.get([nap.remote(n) for n in range(count)])
seconds = time.time() - asked
assert [n for n, _ in rows] == list(range(count))
print(json.dumps({"seconds": seconds, "first_start_s": min(b for _, b in rows) - asked, "version": ray.__version__}))
ray.shutdown()
"""


def nap(number: int) -> tuple[int, float]:
    began = time.time()
    time.sleep(0.001)
    return number, began


class Watch:
    """Follows the memory and the CPU time of a process."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.first_rss = self.most_rss = self._process.memory_info().rss
        self._cpu = self._cpu_s()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_s = self._cpu_s() - self._cpu

    def _run(self) -> None:
        while not self._over.wait(0.25):
            self.most_rss = max(self.most_rss, self._process.memory_info().rss)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


def job_arm(cluster: LiveCluster, units: int, tag: str) -> dict[str, Any]:
    """Run the job and return what it took: from its submission to its end."""
    asked, began = time.time(), time.monotonic()
    with Watch(cluster.pid("head")) as head:
        job = cluster.submit(HERE / "nap", {"count": units}, key=tag)
        acknowledged = time.monotonic() - began
        status = cluster.ended(job.job_id, END_S)
        seconds = time.monotonic() - began
    if status.state != "done" or status.units.done != units:
        raise SystemExit(f"the job ended {status.state} with {status.units}: {status.error}")
    results = sorted((cluster.home.jobs / job.job_id / "results").glob("*.frames"), key=lambda path: path.stat().st_mtime_ns)
    first = min(begun for path in results[:64] for _, begun in unpack(read_frames(path)))
    return {
        "seconds": seconds, "submit_s": acknowledged, "first_start_s": first - asked, "attempts": status.units.attempts,
        "head_rss_mib": round(head.most_rss / 2**20, 1), "head_rss_growth_mib": round((head.most_rss - head.first_rss) / 2**20, 1),
        "head_cpu_ms_per_unit": 1000 * head.cpu_s / units, "ledger_bytes_per_unit": (cluster.home.root / "ledger.db").stat().st_size / units,
    }  # fmt: skip


def dask_arm(cluster: LiveCluster, units: int) -> dict[str, Any]:
    """Map the same on the same workers."""
    with Client(cluster.api().status()["address"]) as client:
        asked = time.time()
        rows = client.gather(client.map(nap, range(units), pure=False))
        seconds = time.time() - asked
    if [number for number, _ in rows] != list(range(units)):
        raise SystemExit("client.map gave other numbers")
    return {"seconds": seconds, "first_start_s": min(begun for _, begun in rows) - asked}


def ray_arm(python: str | None, units: int) -> dict[str, Any]:
    """Run Ray's tasks in an interpreter of their own."""
    if python is None:
        return {"left_out": "no interpreter with Ray was given: --ray"}
    done = subprocess.run([python, "-c", RAY_ARM, str(units)], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"left_out": done.stderr[-2000:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ledger_arm(folder: Path, units: int) -> dict[str, Any]:
    """Return the seconds that offering, leasing and committing `units` units takes, `IN_FLIGHT` at once."""

    async def run() -> float:
        ledger = Ledger(folder / "alone.db", SystemClock())
        await ledger.open()
        await ledger.submit([NewJob(job_id="j", workload="nap", digest="0" * 64, params={}, owner=None, operates=True, shared=False, submitted_s=0.0)])
        await ledger.move("j", "running")
        turn = await ledger.begin_pass("j")
        numbers = iter(range(units))

        async def worker() -> None:
            for number in numbers:
                unit = f"{number:064x}"
                await ledger.offer("j", number, unit, turn)
                epoch = await ledger.lease("j", unit)
                await ledger.commit("j", unit, epoch, {"nap": unit}, counts={}, device=None, seconds=0.001)

        began = time.monotonic()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        seconds = time.monotonic() - began
        await ledger.close()
        return seconds

    seconds = asyncio.run(run())
    return {"seconds": seconds, "ms_per_unit": 1000 * seconds / units, "in_flight": IN_FLIGHT}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {}
    with live_cluster(folder / "h") as cluster:
        job_arm(cluster, 200, "warm")
        dask_arm(cluster, 200)
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "job": lambda: job_arm(cluster, options.units, "measured"),
            "client_map": lambda: dask_arm(cluster, options.units),
        }
        for name, step in steps.items():
            arms[name] = step()
            told(name, arms[name], options.units)
    arms["ray"] = ray_arm(options.ray, options.units)
    told("ray", arms["ray"], options.units)
    arms["ledger_alone"] = ledger_arm(folder, options.units)
    told("ledger_alone", arms["ledger_alone"], options.units)
    return {
        "what": "units of one millisecond: a durable job beside client.map on the same workers and Ray tasks", "units": options.units, "arms": arms,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("dask", "distributed")},
    }  # fmt: skip


def told(name: str, arm: dict[str, Any], units: int) -> None:
    if "left_out" in arm:
        print(f"{name:13} left out: {arm['left_out']}", flush=True)
        return
    arm["units_per_s"] = units / arm["seconds"]
    rest = "  ".join(f"{key} {value:.3g}" for key, value in arm.items() if isinstance(value, int | float))
    print(f"{name:13} {rest}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--ray", metavar="PYTHON", help="An interpreter with Ray installed.")
    parser.add_argument("--output", default=str(HERE / "results" / "jobs_units.json"), help="- prints only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = measure(options, Path(folder))
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")
    else:
        print(json.dumps(result, indent=1), file=sys.stdout)


if __name__ == "__main__":
    main()
