"""Makespan against a lower bound, and decisions per second, on 5, 20 and 100 unequal devices.

The fleet is `policies/fleets/home5.yaml`, once, four times and twenty times. A burst of 12 units a device, of four stages in three sizes
each, comes at once; a stage must be loaded (1 GiB/s) before its first unit on a card and is evicted where another needs the room. What a
unit takes in truth is log-normal about what its demand states (sigma 0.3); placement never sees it. Cards are shared by nobody, by units
of the two smaller stages (two a card), and by all, which is told but not held against the target: a large unit beside which nothing fits
still runs at half speed in simulation, and the bound does not know who fits beside whom. The arms:

    ours          `simulate()`: longest first, earliest finish, late binding; the decisions of the live scheduler
    first-free    order of arrival, the first free device that can hold it, whatever its speed
    equal split   the same number of units to each device that can hold them, each device's stages one after the other

The bound is `placement.bound` on the true times: no schedule, not even one that knows them, can be shorter.

    python bench/placement.py                        # all sizes, some minutes
    python bench/placement.py --times 1 4 --seeds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import scipy

from dgpunet_dask import __version__
from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import NO_POLICY, Match, Policy, Rule
from dgpunet_dask.placement.bound import lower_bound_s
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates, device_class
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.order import Standing
from dgpunet_dask.placement.place import never_table, place, place_request
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.placement.run import Arrival
from dgpunet_dask.placement.simulate import Line, Simulation, simulate

ROOT = Path(__file__).parents[1]
TARGET = 1.10
SIGMA = 0.3
#: Stage, VRAM and its resident part in GiB, seconds at speed 1, features.
STAGES: tuple[tuple[str, int, int, float, tuple[str, ...]], ...] = (
    ("embed", 2, 1, 20.0, ("bf16",)), ("pose", 6, 4, 30.0, ()), ("image", 7, 5, 40.0, ("fp8",)), ("chat", 14, 12, 60.0, ()),
)  # fmt: skip
SIZES = (0.5, 1.0, 2.0)
#: Who shares cards, two units a card, and whether the target holds.
SHARING: dict[str, tuple[tuple[str, ...], bool]] = {"nobody": ((), True), "small": (("embed", "pose"), True), "all": (("*",), False)}


def fleet_of(times: int) -> Fleet:
    path = ROOT / "policies" / "fleets" / "home5.yaml"
    one = parse_fleet(path.read_text(encoding="utf-8"), str(path))
    names = [""] if times == 1 else [f"-{n:02}" for n in range(times)]
    hosts = tuple(replace(h, name=h.name + n) for n in names for h in one.hosts)
    return Fleet(hosts, tuple(replace(d, name=d.name + n, host=d.host + n) for n in names for d in one.gpus()))


def estimates_of(fleet: Fleet) -> Estimates:
    found = NO_ESTIMATES
    for kind in sorted({device_class(d) for d in fleet.devices}):
        for stage, _, resident, _, _ in STAGES:
            found = found.with_load(stage, None, kind, float(resident))
    return found


def burst(units: int, rng: random.Random) -> list[Arrival]:
    """Return `units` arrivals, of each stage and size equally many, in random order."""
    kinds = list(itertools.product(STAGES, SIZES))
    found = []
    for number in range(units):
        (stage, vram, resident, work, features), size = kinds[number % len(kinds)]
        demand = Demand(stage=stage, vram=f"{vram}GiB", resident=f"{resident}GiB", features=features, work=work * size)
        found.append((demand, rng.lognormvariate(0.0, SIGMA)))
    rng.shuffle(found)
    return [Arrival(id=f"u{n:05}", demand=demand, noise=noise) for n, (demand, noise) in enumerate(found)]


class FirstFree(Simulation):
    """Order of arrival, and the first device by name that will do now; nobody gives way."""

    giving = False

    def key(self, line: Line) -> Standing:
        return Standing(0, False, 0.0, 0.0, line.units[0].number)

    def choose(self, line: Line, barred: set[str]) -> tuple[Decision, tuple[tuple[str, float], ...]]:
        free = [s.device for s in self.pool.place(line.demand, verdicts=True).ranking]
        if not free:
            return Decision("wait"), ()
        first = min(free)
        return Decision("placed", devices=(first,), evict=line.plan.evict(self.pool.slot(first))), ()


def equal_split_s(fleet: Fleet, policy: Policy, arrivals: Sequence[Arrival], estimates: Estimates) -> float:
    """Return the makespan where each kind's units are dealt out over the devices that can hold them, one by one."""
    work: dict[str, float] = defaultdict(float)
    loaded: set[tuple[str, str | None]] = set()
    deals: dict[frozenset[str], Any] = {}
    for arrival in arrivals:
        request = resolve(arrival.demand, policy, estimates)
        able = frozenset(name for name, verdicts in never_table(fleet, request).items() if not verdicts)
        name = next(deals.setdefault(able, itertools.cycle(sorted(able))))
        device = fleet.by_name[name]
        if (name, arrival.demand.stage) not in loaded:
            loaded.add((name, arrival.demand.stage))
            work[name] += request.load_s(device, ())
        work[name] += request.run_s(device) * arrival.noise
    return max(work.values())


def makespans(times: int, sharing: str, options: argparse.Namespace) -> dict[str, Any]:
    stages, counts = SHARING[sharing]
    fleet, policy = fleet_of(times), Policy(tuple(Rule(name=s, match=Match(stage=s), max_per_gpu=2) for s in stages))
    estimates = estimates_of(fleet)
    ratios: dict[str, list[float]] = {"ours": [], "first-free": [], "equal split": []}
    seconds, loads = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        arrivals = burst(options.units * len(fleet.devices), random.Random(seed))
        bound = lower_bound_s(fleet, policy, arrivals, estimates=estimates)
        begun = time.perf_counter()
        run = simulate(fleet, policy, arrivals, estimates=estimates)
        seconds.append(time.perf_counter() - begun)
        loads.append(run.loads)
        assert len(run.done) == len(arrivals), "every unit has an end"
        ratios["ours"].append(run.makespan_s / bound)
        ratios["first-free"].append(FirstFree(fleet, policy, estimates).run(arrivals).makespan_s / bound)
        ratios["equal split"].append(equal_split_s(fleet, policy, arrivals, estimates) / bound)
    return {
        "devices": len(fleet.devices), "sharing": sharing, "held_against_target": counts, "units": options.units * len(fleet.devices), "ratios": ratios,
        "median": {arm: statistics.median(found) for arm, found in ratios.items()},
        "simulated_in_s": statistics.median(seconds), "loads": loads,
    }  # fmt: skip


def rate(act: Callable[[], object], seconds: float) -> float:
    """Return how often a second `act` can be called."""
    act()
    count, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        act()
        count += 1
    return count / passed


def decisions(times: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return decisions a second on a fleet of which every other device is busy."""
    fleet, estimates = fleet_of(times), estimates_of(fleet_of(times))
    demands = [a.demand for a in burst(12, random.Random(options.seed))]
    pool = Pool(NO_POLICY, estimates)
    for device in fleet.devices:
        pool.add_device(device, fleet.host_by_name[device.host])
    for device in fleet.devices[::2]:
        pool.charge(pool.activation(device.name, demands[0], f"unit on {device.name}"))
    busy = pool.fleet()
    turn = itertools.cycle(demands)
    requests = itertools.cycle([resolve(d, NO_POLICY, estimates) for d in demands])

    def cycle() -> None:
        """One unit as the live pump handles it: choose, charge, and release at its end."""
        plan = pool.plan(next(turn))
        slot = pool.choose(plan).slot
        if slot is not None:
            pool.charge(plan.charge(slot, "x"))
            pool.release("x")

    return {
        "devices": len(fleet.devices),
        "place": rate(lambda: place(busy, next(turn), NO_POLICY, estimates), options.rate_s),
        "place_request": rate(lambda: place_request(busy, next(requests)), options.rate_s),
        "pool choose, charge, release": rate(cycle, options.rate_s),
    }


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or [platform.processor()]
    return {"cpu": models[0], "cores": os.cpu_count(), "system": platform.platform()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 20], help="how often the fleet of five is there")
    parser.add_argument("--sharing", nargs="+", choices=SHARING, default=list(SHARING), help="who shares cards")
    parser.add_argument("--units", type=int, default=12, help="per device")
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--rate-s", type=float, default=2.0, help="seconds to count decisions for")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "placement.json")
    options = parser.parse_args()
    rows = [makespans(times, sharing, options) for times in options.times for sharing in options.sharing]
    rates = [decisions(times, options) for times in options.times]
    versions = {"python": platform.python_version(), "scipy": scipy.__version__, "dgpunet-dask": __version__}
    result = {
        "what": "makespan / lower bound, and decisions per second", "target_ratio": TARGET, "sigma": SIGMA, "seed": options.seed,
        "seeds": options.seeds, "units_per_device": options.units, "machine": machine(), "versions": versions, "rows": rows,
        "decisions_per_s": rates,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    report(result)
    return 0 if all(row["median"]["ours"] <= TARGET for row in rows if row["held_against_target"]) else 1


def report(result: dict[str, Any]) -> None:
    cpu = result["machine"]
    print(f"{cpu['cpu']}, {cpu['cores']} cores; {result['versions']}; seeds {result['seed']} and on, {result['seeds']} of them")
    print(f"makespan / lower bound, median (range); {result['units_per_device']} units a device, estimate error sigma {SIGMA}")
    print(f"{'devices':>8} {'sharing':>8} {'ours':>22} {'first-free':>22} {'equal split':>22} {'simulated in':>13}")
    for row in result["rows"]:
        cells = [f"{row['median'][arm]:.3f} ({min(found):.3f}-{max(found):.3f})" for arm, found in row["ratios"].items()]
        print(f"{row['devices']:>8} {row['sharing']:>8} " + " ".join(f"{c:>22}" for c in cells) + f" {row['simulated_in_s']:>11.2f} s")
    print("decisions per second, every other device busy")
    for row in result["decisions_per_s"]:
        print(f"{row['devices']:>8} " + ", ".join(f"{name} {value:,.0f}" for name, value in row.items() if name != "devices"))


if __name__ == "__main__":
    raise SystemExit(main())
