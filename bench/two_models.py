"""Two models that do not fit one card together, called in turn 1,000 times: loads, evictions and throughput.

Each model takes 20 GiB, of which 18 GiB stay loaded; a load takes 18 s, a call 2 s at speed 1. The calls come at once (a burst of a
thousand, alternately), or one by one, each after the last has ended. They run in simulation on one card of 24 GiB, and on the five
machines of `policies/fleets/home5.yaml`, where two cards can hold a model each. The arms:

    ours          longest first, earliest finish; who would send away a model that others wait for lets them go first, until it is aged
    first come    order of arrival, the first free device that can hold it

One by one on one card each call must load, whoever places it: there is nothing to bring together, and a call that waits for company
would only be later.

    python bench/two_models.py
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from placement import FirstFree, fleet_of, machine

from dgpunet_dask import __version__
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY
from dgpunet_dask.placement.estimate import NO_ESTIMATES, device_class
from dgpunet_dask.placement.run import Arrival, Run
from dgpunet_dask.placement.simulate import Simulation

MODELS = ("ant", "bee")
LOAD_S, WORK_S, PAUSE_S = 18.0, 2.0, 60.0
ONE = Fleet((Host(name="box", cpus=8),), (Device(name="card", host="box", model="24 GiB card", vram_mib=24 << 10, reserve_mib=512),))


def calls(count: int, pause_s: float) -> list[Arrival]:
    """Return `count` calls of the models in turn, one each `pause_s`."""
    demands = [Demand(stage=model, vram="20GiB", resident="18GiB", work=WORK_S) for model in MODELS]
    return [Arrival(id=f"call {n}", demand=demands[n % 2], at_s=n * pause_s) for n in range(count)]


def measure(fleet: Fleet, kind: type[Simulation], count: int, pause_s: float) -> dict[str, Any]:
    estimates = NO_ESTIMATES
    for card in sorted({device_class(d) for d in fleet.devices}):
        for model in MODELS:
            estimates = estimates.with_load(model, None, card, LOAD_S)
    run: Run = kind(fleet, NO_POLICY, estimates).run(calls(count, pause_s))
    assert len(run.done) == count, "every call has an end"
    latency = sorted(p.queued_s + p.end_s - p.start_s for p in run.placements)
    return {
        "loads": run.loads, "evictions": run.evictions, "makespan_s": run.makespan_s, "calls_per_s": count / run.makespan_s,
        "latency_p50_s": latency[len(latency) // 2], "counts": dict(run.counts), "longest_wait_s": run.waits["batch"].max_s,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "two_models.json")
    options = parser.parse_args()
    rows = [
        {"fleet": fleet_name, "calls come": pattern, "arm": arm, **measure(fleet, kind, options.calls, pause_s)}
        for fleet_name, fleet in (("one card", ONE), ("home5", fleet_of(1)))
        for pattern, pause_s in (("at once", 0.0), ("one by one", PAUSE_S))
        for arm, kind in (("ours", Simulation), ("first come", FirstFree))
    ]
    versions = {"python": platform.python_version(), "dgpunet-dask": __version__}
    result = {
        "what": "two models that do not fit one card together, in turn, in simulation", "calls": options.calls, "load_s": LOAD_S,
        "work_s": WORK_S, "machine": machine(), "versions": versions, "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']['cpu']}; {versions}; {options.calls} calls; load {LOAD_S:g} s, call {WORK_S:g} s at speed 1; virtual clock")
    print(f"{'fleet':>9} {'calls come':>11} {'arm':>11} {'loads':>6} {'evictions':>9} {'calls/s':>8} {'p50 latency':>12} {'longest wait':>13}")
    for row in rows:
        print(
            f"{row['fleet']:>9} {row['calls come']:>11} {row['arm']:>11} {row['loads']:>6} {row['evictions']:>9} "
            f"{row['calls_per_s']:>8.3f} {row['latency_p50_s']:>10.1f} s {row['longest_wait_s']:>11.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
