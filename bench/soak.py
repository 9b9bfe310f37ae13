"""Jobs on a small live cluster while processes of every role are killed, or stand still for a while, at random: for half an hour.

Each job must end done with the bytes of the undisturbed run. In the end every acknowledged job has ended, the ledger's history breaks no
rule, every worker runs, and no process is without an owner. The seed, which decides who fails when, is printed first.

    python bench/soak.py                              # 30 minutes
    python bench/soak.py --minutes 2 --seed 7 --output -
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.testing.history import check_history, wasted_attempts
from dgpunet_dask.testing.livecluster import ROOT, LiveCluster, live_cluster, wait_for

DURABLE = ROOT / "tests" / "acceptance" / "durable"
#: Whose process fails, and how often beside the others. The supervisor's end is the cluster's: it is started again by hand.
ROLES = {"head": 5, "worker": 5, "child": 5, "agent": 3, "scheduler": 3, "supervisor": 1}
WORKERS = 2
PAUSE_S = (0.5, 8.0)
STILL_S = (0.2, 3.0)
END_S = 180.0


class Jobs:
    """Submits one job after the other from several threads, and keeps what was wrong."""

    def __init__(self, cluster: LiveCluster, notes: Path, units: int, seconds: float) -> None:
        self.cluster, self.notes, self.units, self.seconds = cluster, notes, units, seconds
        self.wanted = b""
        self.over = threading.Event()
        self.done: list[str] = []
        self.took: list[float] = []
        self.attempts = 0
        self.faults: list[str] = []

    def calm(self) -> None:
        job = self._submit("calm")
        self.cluster.ended(job, END_S)
        self.wanted = self.cluster.result(job)

    def loop(self, name: str) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            try:
                self._one(f"{name}-{number}")
            except (DgpunetError, OSError) as error:
                self.faults.append(f"{name}-{number}: {type(error).__name__}: {error}")

    def _one(self, tag: str) -> None:
        began = time.monotonic()
        job = self._submit(tag)
        status = self.cluster.ended(job, END_S)
        self.done.append(job)
        self.took.append(time.monotonic() - began)
        self.attempts += status.units.attempts
        if status.state != "done":
            self.faults.append(f"{tag} ({job}) ended {status.state}: {status.error}")
        elif self.cluster.result(job) != self.wanted:
            self.faults.append(f"{tag} ({job}) has another result than the undisturbed run")

    def _submit(self, tag: str) -> str:
        asked = {"tag": tag, "count": self.units, "seconds": str(self.seconds), "notes": str(self.notes)}
        return self.cluster.submit(DURABLE / "steady", asked, key=tag).job_id


def fail(cluster: LiveCluster, role: str, chance: random.Random) -> str | None:
    """Let one process of `role` fail; return how, ``None`` where there is none just now."""
    found = cluster.roles()[role]
    if not found:
        return None
    victim, how = chance.choice(sorted(p.pid for p in found)), chance.choice(("kill", "kill", "stop"))
    with contextlib.suppress(ProcessLookupError):
        if how == "kill" or role == "supervisor":
            os.kill(victim, signal.SIGKILL)
        else:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(chance.uniform(*STILL_S))
            os.kill(victim, signal.SIGCONT)
    if role == "supervisor":
        wait_for("the end of all that was below", lambda: not any(cluster.roles().values()), 60.0)
        cluster.up()
        return "kill"
    return how


def computed_again(notes: Path) -> int:
    """Return the calls of the heavy stage beyond one for each unit."""
    calls = Counter((line["tag"], line["number"]) for line in map(json.loads, notes.read_text().splitlines()))
    return sum(count - 1 for count in calls.values())


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it and return what was found."""
    chance = random.Random(options.seed)
    happened: Counter[str] = Counter()
    with live_cluster(folder / "h", DURABLE / "two.yaml") as cluster:
        jobs = Jobs(cluster, folder / "notes", options.units, options.seconds)
        jobs.calm()
        threads = [threading.Thread(target=jobs.loop, args=(f"user{n}",)) for n in range(options.jobs)]
        for thread in threads:
            thread.start()
        began, until = time.monotonic(), time.monotonic() + 60 * options.minutes
        try:
            while time.monotonic() < until:
                time.sleep(chance.uniform(*PAUSE_S))
                role = chance.choices(list(ROLES), list(ROLES.values()))[0]
                how = fail(cluster, role, chance)
                if how is not None:
                    happened[f"{role} {how}"] += 1
                    print(f"{time.monotonic() - began:7.1f} s  {role} {how}; {len(jobs.done)} jobs ended, {len(jobs.faults)} faults", flush=True)
        finally:
            jobs.over.set()
            for thread in threads:
                thread.join(2 * END_S)
        return report(options, cluster, jobs, happened, time.monotonic() - began, any(thread.is_alive() for thread in threads))


def report(options: argparse.Namespace, cluster: LiveCluster, jobs: Jobs, happened: Counter[str], seconds: float, stuck: bool) -> dict[str, Any]:
    faults = [*jobs.faults, *(["a client never came back"] if stuck else [])]
    try:
        cluster.ready(WORKERS)
        wait_for("the end of what has no owner", lambda: not cluster.orphans(), 30.0)
    except TimeoutError as error:
        faults.append(f"{error}: {cluster.orphans()}")
    known = {job.job_id for job in cluster.asked(lambda api: api.jobs())}
    faults += [f"the acknowledged job {job} is not known any more" for job in jobs.done if job not in known]
    faults += [f"history: {fault}" for fault in check_history(cluster.home.root / "ledger.db", cluster.root)]
    return {
        "what": "jobs while processes are killed or stand still at random", "seed": options.seed, "minutes": round(seconds / 60, 1),
        "jobs": len(jobs.done), "units": len(jobs.done) * options.units, "attempts": jobs.attempts,
        "wasted_attempts": sum(wasted_attempts(cluster.home.root / "ledger.db").values()), "computed_again": computed_again(jobs.notes),
        "slowest_job_s": round(max(jobs.took, default=0.0), 1), "happened": dict(sorted(happened.items())), "faults": len(faults), "first": faults[:20],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--jobs", type=int, default=3, help="How many run at once.")
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.05, help="How long a unit takes.")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "soak.json"), help="- prints only")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = soak(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(text + "\n")
    return 0 if not result["faults"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
