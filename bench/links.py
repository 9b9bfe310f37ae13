"""What a link carries between two hosts: 8 MiB frames over Dask's comms, under mutual TLS and without, beside iperf3.

Two hosts in network namespaces, joined by veths whose rates tbf sets. The receiver asks for a frame and gets it, one at a time, as
a Dask worker asks a peer for data. The frames are random, so that nothing can be squeezed. They travel as three things:

* ``parcel``: a unit on its way, its buffers out of band, as our stages' inputs and results do;
* ``array``: a numpy array under `to_serialize`;
* ``bytes``: plain bytes inside a message, which msgpack copies.

Each end keeps to its half of the cores, iperf3's too, as hosts do. All arms of a round run one after another, so that a busy machine
slows all of them. Needs Linux, root, iproute2, iperf3 and two cores.

    python bench/links.py [--rates 1gbit,2.5gbit,5gbit,10gbit,none] [--rounds 5] [--seconds 1.5] [--out bench/results/links.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import distributed
import numpy as np
import tornado
from distributed.comm import connect, listen
from distributed.protocol import to_serialize

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.jobs.task import Parcel
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.identity import install, make_request
from dgpunet_dask.testing.netns import Lan, NetHost, permitted

ROOT = Path(__file__).resolve().parent.parent
FRAME = 8 << 20
PORT = 8800
SHAPES = ("parcel", "array", "bytes")
PROTOCOLS = ("tls", "tcp")
TARGET = 0.70
FRAMES_LEAST = 5


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rates", default="1gbit,2.5gbit,5gbit,10gbit,none")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--seconds", type=float, default=1.5, help="how long each arm of a round takes at least")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "links.json")
    words.add_argument("--serve", nargs=3, metavar=("ADDRESS", "FOLDER", "SEED"), help=argparse.SUPPRESS)
    words.add_argument("--fetch", nargs=4, metavar=("ADDRESS", "FOLDER", "SHAPE", "SECONDS"), help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve[0], Path(given.serve[1]), int(given.serve[2])))
        return 0
    if given.fetch:
        address, folder, shape, seconds = given.fetch
        print(json.dumps(asyncio.run(fetch(address, Path(folder), shape, float(seconds)))))
        return 0
    if (why := permitted() or (None if shutil.which("iperf3") else "no iperf3")) is not None:
        print(f"cannot run here: {why}", file=sys.stderr)
        return 2
    result = measure(given)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return int(not all(result["reached"].values()))


# The two ends, each a process in its own namespace.


async def serve(address: str, folder: Path, seed: int) -> None:
    """Give frames to who asks, for ever."""
    frame = Random(seed).randbytes(FRAME)
    shapes: dict[str, Callable[[], Any]] = {
        "parcel": lambda: to_serialize(Parcel([memoryview(frame)], 1)),
        "array": lambda: to_serialize(array),
        "bytes": lambda: frame,
    }
    array = np.frombuffer(frame, dtype=np.uint8)

    async def answer(comm: Any) -> None:
        try:
            while (asked := await comm.read())["shape"] != "end":
                await comm.write({"data": shapes[asked["shape"]](), "cpu_s": time.process_time()})
        finally:
            await comm.close()

    security = ClusterSecurity(folder).get_listen_args("worker") if address.startswith("tls") else {}
    async with listen(address, answer, **security):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def fetch(address: str, folder: Path, shape: str, seconds: float) -> dict[str, Any]:
    """Ask for frames for a while; return bytes, seconds, and the processor seconds of both ends for them."""
    security = ClusterSecurity(folder).get_connection_args("worker") if address.startswith("tls") else {}
    comm = await connect(address, **security)
    for _ in range(2):  # the congestion window opens, memory is touched
        given = await one(comm, shape)
    frames, start, cpu, others = 0, time.perf_counter(), time.process_time(), given
    while frames < FRAMES_LEAST or time.perf_counter() - start < seconds:
        given = await one(comm, shape)
        frames += 1
    taken, worked = time.perf_counter() - start, time.process_time() - cpu
    cipher = comm.extra_info.get("cipher")
    await comm.write({"shape": "end"})
    await comm.close()
    # what the giver tells lies before its last frame was written, as what it is compared with does
    return {"bytes": frames * FRAME, "seconds": taken, "taker_cpu_s": worked, "giver_cpu_s": given - others, "cipher": cipher}


async def one(comm: Any, shape: str) -> float:
    """Get a frame; return the processor seconds that the giver had used before it sent it."""
    await comm.write({"shape": shape})
    told = await comm.read()
    data = told["data"]
    size = memoryview(data.frames[0]).nbytes if shape == "parcel" else memoryview(data).nbytes
    assert size == FRAME, size
    return float(told["cpu_s"])


# The link between them, and who runs what when.


def measure(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as text, Lan("giver", "taker") as lan:
        folder = Path(text)
        giver, taker = lan.hosts.values()
        enrol(folder, [giver, taker])
        addresses = {protocol: f"{protocol}://{giver.address}:{PORT + k}" for k, protocol in enumerate(PROTOCOLS)}
        for address in addresses.values():
            start(giver, [*own(), "--serve", address, str(folder / giver.name), str(given.seed)], "ready")
        start(giver, ["iperf3", "-s", "--forceflush"], "listening")
        rows = [row for rate in given.rates.split(",") for row in at(lan, rate, addresses, folder, given)]
    judged = [row for row in rows if (row["protocol"], row["shape"]) == ("tls", "parcel") and row["rate"] != "none"]
    return {
        "what": "goodput of 8 MiB frames between two hosts, asked for one at a time, and its share of iperf3's on the same link",
        "target": f"tls, parcel, on each limited link: >= {TARGET} of iperf3",
        "reached": {row["rate"]: row["of_iperf3"] >= TARGET for row in judged},
        "rounds": given.rounds,
        "seconds_each": given.seconds,
        "seed": given.seed,
        "machine": machine(),
        "rows": rows,
    }


def enrol(folder: Path, hosts: list[NetHost]) -> None:
    """Give each host a certificate of one throw-away authority."""
    now = time.time()
    authority = Authority.create(folder / "authority", "bench", now)
    for host in hosts:
        asked = make_request(folder / host.name, host.name)
        issued = authority.issue(asked, host=host.name, addresses=[host.address], role="node", now=now)
        install(folder / host.name, issued.certificate_pem, authority.certificate_pem, authority.crl_pem(now))


def at(lan: Lan, rate: str, addresses: dict[str, str], folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    for name in lan.hosts:
        lan.rate_limit(name, None if rate == "none" else rate)
    arms = [("iperf3", "stream"), *((protocol, shape) for protocol in PROTOCOLS for shape in SHAPES)]
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(given.rounds):
        for arm in arms:
            seen[arm].append(timed(lan, arm, addresses, folder, given))
            print(rate, *arm, f"{seen[arm][-1]['mbit_per_s']:.0f} Mbit/s", file=sys.stderr)
    base = statistics.median(run["mbit_per_s"] for run in seen["iperf3", "stream"])
    return [row(rate, arm, runs, base) for arm, runs in seen.items()]


def row(rate: str, arm: tuple[str, str], runs: list[dict[str, Any]], base: float) -> dict[str, Any]:
    rates = [run["mbit_per_s"] for run in runs]
    cpu = {end: [run[end] for run in runs if run[end] is not None] for end in ("giver_cpu_s_per_gib", "taker_cpu_s_per_gib")}
    return {
        "rate": rate,
        "protocol": arm[0],
        "shape": arm[1],
        "mbit_per_s": round(statistics.median(rates), 1),
        "spread": [round(min(rates), 1), round(max(rates), 1)],
        "of_iperf3": round(statistics.median(rates) / base, 3),
        **{end: round(statistics.median(found), 3) if found else None for end, found in cpu.items()},
        "cipher": runs[0]["cipher"],
        "loadavg_before": [run["load"] for run in runs],
    }


def timed(lan: Lan, arm: tuple[str, str], addresses: dict[str, str], folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    protocol, shape = arm
    giver, taker = lan.hosts.values()
    load = os.getloadavg()[0]
    if protocol == "iperf3":
        command = ["iperf3", "-c", giver.address, "-R", "-t", str(max(1, round(given.seconds))), "-O", "1", "-J"]
        told = json.loads(taker.run(on_its_cores(taker, command), check=True, timeout_s=60).stdout)["end"]["sum_received"]
        unknown = {"giver_cpu_s_per_gib": None, "taker_cpu_s_per_gib": None, "cipher": None}
        return {"mbit_per_s": told["bits_per_second"] / 1e6, **unknown, "load": load}
    command = [*own(), "--fetch", addresses[protocol], str(folder / taker.name), shape, str(given.seconds)]
    told = json.loads(taker.run(on_its_cores(taker, command), check=True, timeout_s=120).stdout)
    return {
        "mbit_per_s": told["bytes"] * 8 / 1e6 / told["seconds"],
        **{f"{end}_per_gib": told[end] / (told["bytes"] / 2**30) for end in ("giver_cpu_s", "taker_cpu_s")},
        "cipher": told["cipher"] and told["cipher"][0],
        "load": load,
    }


def own() -> list[str]:
    return [sys.executable, str(Path(__file__).resolve())]


def on_its_cores(host: NetHost, command: list[str]) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    chosen = cores[half:] if host.name == "taker" else cores[:half]
    return ["taskset", "-c", ",".join(map(str, chosen)), *command]


def start(host: NetHost, command: list[str], sign: str) -> None:
    process = host.popen(on_its_cores(host, command), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while sign not in (line := process.stdout.readline()):
        assert line, f"{command} ended"


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    iperf3 = subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return {
        "cpu": model[0] if model else None,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "congestion_control": congestion.read_text().strip() if congestion.exists() else None,
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "distributed": distributed.__version__,
        "tornado": tornado.version,
        "iperf3": iperf3,
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'rate':>8} {'':>6} {'':>7} {'Mbit/s':>9} {'spread':>17} {'of iperf3':>10} {'CPU s/GiB: giver':>17} {'taker':>6}"]
    for one_row in result["rows"]:
        low, high = one_row["spread"]
        known = (one_row[f"{end}_cpu_s_per_gib"] for end in ("giver", "taker"))
        giver, taker = ("" if cpu_s is None else f"{cpu_s:.2f}" for cpu_s in known)
        lines.append(
            f"{one_row['rate']:>8} {one_row['protocol']:>6} {one_row['shape']:>7} {one_row['mbit_per_s']:>9.0f} "
            f"{low:>8.0f}-{high:<8.0f} {one_row['of_iperf3']:>10.2f} {giver:>17} {taker:>6}"
        )
    verdicts = ", ".join(f"{rate} {'reached' if reached else 'missed'}" for rate, reached in result["reached"].items())
    return "\n".join([*lines, f"{result['target']}: {verdicts}"])


if __name__ == "__main__":
    sys.exit(main())
