"""`policy test` as people call it: seconds from the shell's start to its end, for 200 cases on the shipped fleet and policy.

Half of the cases ask about one unit among others that run, a tenth about a burst. What each wants is what the engine says, so that
all pass. The properties run as well, as they do by default.

    python bench/policy_cases.py [--cases 200] [--repeats 5] [--out bench/results/policy_cases.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("3090", "4070l", "4080l", "4090l", "5090")
STAGES = ("embed", "chat", "rerank", "media-frames", "nightly-index", "finetune", "llm")
MODELS = (None, "bge-fp8", "llama-70b-q4")
LIMIT_S = 5.0


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--cases", type=int, default=200)
    words.add_argument("--repeats", type=int, default=5)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "policy_cases.json")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cases.yaml"
        file.write_text(json.dumps(cases(given.cases, Random(given.seed))), encoding="utf-8")
        settle(file)
        seconds = [timed(file) for _ in range(given.repeats)]
    result = {
        "what": "policy test, from the start of Python to its end",
        "cases": given.cases,
        "seconds": [round(s, 3) for s in seconds],
        "median_s": round(statistics.median(seconds), 3),
        "limit_s": LIMIT_S,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return int(result["median_s"] >= LIMIT_S)


def cases(count: int, chance: Random) -> dict[str, Any]:
    policies = ROOT / "policies"
    found = [case(i, chance) for i in range(count)]
    return {
        "version": 1,
        "fleet": str(policies / "fleets" / "home5.yaml"),
        "policies": [str(policies / "home5.yaml")],
        "cases": found,
    }


def case(i: int, chance: Random) -> dict[str, Any]:
    demand = {"stage": chance.choice(STAGES), "vram": chance.choice(["1GiB", "4GiB", "10GiB", "20GiB"])}
    model = chance.choice(MODELS)
    if model is not None:
        demand["model"] = model
    if i % 10 == 0:
        return {
            "name": f"burst {i}",
            "submit_all": {"count": 20, "demand": demand | {"work": "10s"}},
            "want": {"placed": {"5090": ">=0"}},
        }
    running = [
        {"demand": {"stage": chance.choice(STAGES[:3]), "vram": "2GiB", "work": "30s"}, "on": name}
        for name in chance.sample(DEVICES, chance.randint(0, 3) if i % 2 else 0)
    ]
    return {"name": f"case {i}", "running": running, "submit": demand, "want": "wait"}


def settle(file: Path) -> None:
    """Let each case want what comes of it."""
    data = json.loads(file.read_text(encoding="utf-8"))
    told = json.loads(run(file, "--json", "--no-properties").stdout)
    for one, seen in zip(data["cases"], told["cases"], strict=True):
        if "outcome" in seen:
            one["want"] = {"on": seen["on"]} if seen["on"] else seen["outcome"]
    file.write_text(json.dumps(data), encoding="utf-8")


def timed(file: Path) -> float:
    start = time.perf_counter()
    done = run(file)
    taken = time.perf_counter() - start
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return taken


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "dgpunet_dask.cli.main", "policy", "test", str(file), *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
