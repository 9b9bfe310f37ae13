"""Scheduler CPU per task: placed by demand against stock Dask, in the same process, arms taking turns.

A real `distributed.Scheduler` is driven through the calls that its comms would make: a packed graph enters, each worker's messages are
caught by a fake comm, and each started task is reported as finished, a few per turn of the event loop, until the client lets all go.
Nothing is packed or sent to workers and no task runs, so what is measured is the scheduler alone. Garbage is collected between the
runs and not within them.

    python bench/scheduler.py                     # both sizes, about a minute
    python bench/scheduler.py --workers 100 --repeats 3
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import logging
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed import Scheduler
from distributed.client import _MapExpr
from distributed.comm import CommClosedError
from distributed.protocol.serialize import Serialized, serialize, to_serialize
from distributed.scheduler import ClientState

from dgpunet_dask.model.fleet import Device, Host, features_of
from dgpunet_dask.placement.policy_file import parse_policy
from dgpunet_dask.plugins.facts import EXTRA, to_wire
from dgpunet_dask.plugins.scheduler import PlacementPlugin

CARDS = ((8, (8, 9), 0.8, "4070"), (12, (8, 9), 1.4, "4080"), (16, (8, 9), 1.6, "4090"), (24, (8, 6), 1.5, "3090"), (32, (12, 0), 3.0, "5090"))
DEMANDS = (
    {"stage": "embed", "vram": "2GiB", "features": ["bf16"]},
    {"stage": "pose", "vram": "10GiB"},
    {"stage": "chat", "vram": "20GiB", "compute_capability": ">=8.0"},
    {"stage": "image", "vram": "7GiB", "features": ["fp8"]},
)
#: Loaded in the scheduler: rules of every kind, of which each demand meets some.
POLICY = """\
version: 1
rules:
- {name: embedding, match: {stage: embed}, require: {vram: 2GiB, compute_capability: ">=8.0"}, share: {max_per_gpu: 2}}
- {name: poses, match: {stage: pose}, deny: [{role: chat-llm}], share: {max_per_gpu: 2}}
- {name: images, match: {stage: image, priority: batch}, prefer: [{by: speed, weight: 100}, {card: "*5090", weight: 10}]}
- {name: chats, match: {stage: chat}, allow: [{card: "NVIDIA*"}]}
- {name: guests, match: {user: "guest*"}, priority: idle}
reserve:
- {name: talk, device: g0004, vram: 12GiB, for: {stage: talk}}
hosts:
- {match: {host: "h000*"}, when: {power: mains}, otherwise: [interactive, batch]}
"""
TARGET = 1.3
METRICS = {
    "bandwidth": {"total": 1e8, "workers": {}, "types": {}}, "cpu": 0, "memory": 0, "time": 0, "executing": {}, "digests_total_since_heartbeat": {},
    "managed_bytes": 0, "spilled_bytes": {"memory": 0, "disk": 0}, "task_counts": {},
}  # fmt: skip
#: Periodic work that asks workers, which cannot answer here.
QUIET = {"distributed.scheduler.active-memory-manager.start": False}


class FakeComm:
    """A worker's connection that never says anything."""

    name = "fake"
    local_address = peer_address = "fake"

    def __init__(self) -> None:
        self.end = asyncio.Event()

    async def read(self, deserializers: Any = None) -> Any:
        await self.end.wait()
        raise CommClosedError

    async def write(self, msg: Any, serializers: Any = None, on_error: str = "") -> int:
        return 0

    def closed(self) -> bool:
        return self.end.is_set()

    def abort(self) -> None:
        self.end.set()

    async def close(self) -> None:
        self.abort()


class FakeStream:
    """Takes what the scheduler sends to one worker; tasks go to a queue that all workers share."""

    def __init__(self, address: str, started: list[tuple[str, dict[str, Any]]]) -> None:
        self.address, self.started = address, started

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            if message["op"] == "compute-task":
                self.started.append((self.address, message))

    def start(self, comm: Any) -> None:
        pass

    def abort(self) -> None:
        pass

    def closed(self) -> bool:
        return True

    async def close(self, **options: Any) -> None:
        pass


def task(number: int) -> int:
    return number


def facts_of(number: int) -> dict[str, Any]:
    """The facts of worker `number`: one card, of the five kinds in turn."""
    vram, capability, speed, model = CARDS[number % len(CARDS)]
    host = Host(name=f"h{number:04}", cpus=16, ram_mib=65536)
    device = Device(
        name=f"g{number:04}",
        host=host.name,
        vram_mib=vram << 10,
        reserve_mib=512,
        capability=capability,
        features=features_of(capability),
        speed=speed,
        model=f"NVIDIA GeForce RTX {model}",
    )
    return {EXTRA: {"host": to_wire(host), "devices": [to_wire(device)], "agent": None}}


async def add_workers(scheduler: Scheduler, count: int, started: list[Any], managed: bool) -> tuple[list[asyncio.Task[None]], list[FakeComm]]:
    connections = []
    comms = []
    for number in range(count):
        address = f"tcp://10.{number >> 8}.{number & 255}.1:8786"
        facts = facts_of(number) if managed else {}
        resources = {f"VRAM:{d['name']}": d["vram_mib"] - 512 for d in facts[EXTRA]["devices"]} if managed else {}
        comm = FakeComm()
        comms.append(comm)
        joining = scheduler.add_worker(
            comm, address=address, status="running", server_id=address, nthreads=1, name=address, resolve_address=False,
            now=time.time(), resources=resources, memory_limit=None, metrics=METRICS, services={}, local_directory="", versions={},
            nanny="", extra=facts, stimulus_id="join",
        )  # fmt: skip
        connections.append(asyncio.create_task(joining))
        await asyncio.sleep(0)
        if connections[-1].done():
            connections[-1].result()
        scheduler.stream_comms[address] = FakeStream(address, started)
    return connections, comms


class Arm:
    """A scheduler with its workers, and one way to submit tasks to it."""

    def __init__(self, *, managed: bool, workers: int) -> None:
        self.managed, self.workers = managed, workers
        self.started: list[tuple[str, dict[str, Any]]] = []
        self.serial = itertools.count()

    async def open(self) -> None:
        self.scheduler = Scheduler(dashboard=False, host="127.0.0.1", port=0, validate=False)
        if self.managed:
            plugin = PlacementPlugin()
            self.scheduler.add_plugin(plugin)
        await self.scheduler
        if self.managed:
            plugin.pump.set_policy(parse_policy(POLICY, "bench.yaml"))
        self.scheduler.clients["bench"] = ClientState("bench")
        self.connections, self.comms = await add_workers(self.scheduler, self.workers, self.started, self.managed)
        for _ in range(10):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.scheduler.close()
        for comm in self.comms:
            comm.abort()
        await asyncio.gather(*self.connections)

    async def submit(self, count: int, annotations: dict[str, Any] | None) -> list[str]:
        """Let a graph of `count` trivial tasks enter, packed as `Client.map` packs it."""
        expression = _MapExpr(task, [range(count)], key=f"task{next(self.serial)}", pure=False, annotations={}, kwargs={})
        keys = list(expression.keys)
        packed = Serialized(*serialize(to_serialize(expression), on_error="raise"))
        begun = time.process_time()
        await self.scheduler.update_graph(
            client="bench", expr_ser=packed, keys=set(keys), span_metadata={"collections": []}, internal_priority=None,
            submitting_task=None, annotations=annotations, stimulus_id="submit",
        )  # fmt: skip
        self.cpu_s += time.process_time() - begun
        return keys

    async def run(self, tasks: int, per_turn: int, rng: random.Random) -> float:
        """Return the CPU seconds of one whole life of `tasks` tasks: graph, placing, finishing, letting go."""
        self.cpu_s = 0.0
        each = tasks // len(DEMANDS)
        demands = rng.sample(DEMANDS, len(DEMANDS))
        keys: list[str] = []
        for demand in demands:
            keys += await self.submit(each, {"demand": dict(demand)} if self.managed else None)
        begun = time.process_time()
        done = 0
        while done < len(keys):
            await asyncio.sleep(0)
            batch, self.started[:per_turn] = self.started[:per_turn], []
            for address, message in batch:
                self.finish(address, message)
            done += len(batch)
        self.scheduler.client_releases_keys(keys=keys, client="bench", stimulus_id="release")
        await asyncio.sleep(0)
        self.cpu_s += time.process_time() - begun
        assert not self.scheduler.tasks, "every task is over and forgotten"
        return self.cpu_s

    def finish(self, address: str, message: dict[str, Any]) -> None:
        now = time.time()
        self.scheduler.handle_task_finished(
            key=message["key"], worker=address, stimulus_id=f"done-{now}", run_id=message["run_id"], status="OK", nbytes=28,
            type=b"int", typename="int", metadata={}, thread=1, startstops=[{"action": "compute", "start": now, "stop": now}],
        )  # fmt: skip


async def measure(workers: int, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    arms = {"stock": Arm(managed=False, workers=workers), "placed": Arm(managed=True, workers=workers)}
    for arm in arms.values():
        await arm.open()
    us: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(options.repeats + 1):  # the first warms up and is not counted
        for name in rng.sample(sorted(arms), len(arms)):
            gc.collect()
            gc.disable()
            seconds = await arms[name].run(options.tasks, options.per_turn, rng)
            gc.enable()
            if repeat:
                us[name].append(seconds / options.tasks * 1e6)
    for arm in arms.values():
        await arm.close()
    ratios = [p / s for p, s in zip(us["placed"], us["stock"], strict=True)]
    return {
        "workers": workers, "us_per_task": us, "ratios": ratios,
        "stock_us": statistics.median(us["stock"]), "placed_us": statistics.median(us["placed"]), "ratio": statistics.median(ratios),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or [platform.processor()]
    return {"cpu": models[0], "cores": os.cpu_count(), "system": platform.platform()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--tasks", type=int, default=16000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--per-turn", type=int, default=8, help="tasks that finish in one turn of the event loop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scheduler.json")
    options = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("tornado").setLevel(logging.ERROR)
    dask.config.set({"distributed.admin.tick.limit": "1h", "distributed.scheduler.worker-ttl": None, **QUIET})
    rows = [asyncio.run(measure(workers, options)) for workers in options.workers]
    versions = {"python": platform.python_version(), "dask": dask.__version__, "distributed": distributed.__version__}
    result = {
        "what": "scheduler CPU per task, placed by demand against stock", "target_ratio": TARGET, "seed": options.seed,
        "tasks": options.tasks, "repeats": options.repeats, "per_turn": options.per_turn, "machine": machine(),
        "versions": versions, "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {versions}; seed {options.seed}, {options.tasks} tasks")
    print(f"{'workers':>8} {'stock us':>18} {'placed us':>18} {'ratio (spread)':>22}")
    for row in rows:
        spread = {k: f"{min(v):.0f}-{max(v):.0f}" for k, v in row["us_per_task"].items()}
        print(
            f"{row['workers']:>8} {row['stock_us']:>8.1f} {spread['stock']:>9} {row['placed_us']:>8.1f} {spread['placed']:>9} "
            f"{row['ratio']:>8.2f} ({min(row['ratios']):.2f}-{max(row['ratios']):.2f})"
        )
    return 0 if all(row["ratio"] <= TARGET for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
