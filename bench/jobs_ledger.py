"""What the ledger costs: a unit that is offered, leased and committed, with 1, 8 and 64 of them in flight.

Beside it: the same statements with one transaction for each commit, as without group commit; and the disk's own fsync. Each is measured
several times in turn, and the median counts.

    python bench/jobs_ledger.py                 # a minute or two
    python bench/jobs_ledger.py --units 2000 --repeats 1 --folder DIR
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.jobs import ledger as module
from dgpunet_dask.jobs.ledger import Ledger, NewJob

#: Units in flight.
WIDTHS = (1, 8, 64)
DIGEST = "ab" * 32


class Counted:
    """Counts the transactions and how many operations each answered."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        self.events[name] += 1


async def unit(ledger: Ledger, number: int, pass_: int) -> None:
    row = await ledger.offer("j", number, f"{number:032x}", pass_)
    epoch = await ledger.lease("j", row.unit_id)
    await ledger.placed("j", row.unit_id, epoch, "h/gpu0", "h")
    done = await ledger.commit("j", row.unit_id, epoch, {"embed": DIGEST}, counts={"tokens": 512, "chunks": 8}, device="h/gpu0", seconds=0.01)
    assert done


async def take(ledger: Ledger, units: int, width: int, pass_: int) -> None:
    numbers = iter(range(units))

    async def worker() -> None:
        for number in numbers:
            await unit(ledger, number, pass_)

    await asyncio.gather(*(worker() for _ in range(width)))


async def measured(folder: Path, units: int, width: int) -> dict[str, float]:
    counted = Counted()
    ledger = Ledger(folder / "ledger.db", SystemClock(), failpoint=counted)
    await ledger.open()
    await ledger.submit([NewJob(job_id="j", workload="w", digest=DIGEST)])
    await ledger.move("j", "running")
    pass_ = await ledger.begin_pass("j")
    before, cpu, began = counted.events["ledger.committed"], time.process_time(), time.perf_counter()
    await take(ledger, units, width, pass_)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    batches = counted.events["ledger.committed"] - before
    assert (await ledger.counts("j")).done == units
    await ledger.end_pass("j", pass_, units)
    await ledger.close()
    size = (folder / "ledger.db").stat().st_size
    return {
        "us_per_unit": seconds / units * 1e6, "cpu_us_per_unit": cpu_s / units * 1e6, "transactions": batches, "units_per_transaction": units / batches,
        "bytes_per_unit": size / units,
    }  # fmt: skip


def fsync_us(folder: Path, times: int = 300) -> float:
    """Return what appending 4 KiB durably costs here."""
    fd = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT)
    try:
        began = time.perf_counter()
        for _ in range(times):
            os.write(fd, bytes(4096))
            os.fdatasync(fd)
        return (time.perf_counter() - began) / times * 1e6
    finally:
        os.close(fd)


def once(where: Path, units: int, width: int, batch: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=where))
    module.BATCH = batch
    try:
        found = asyncio.run(measured(folder, units, width))
        return {**found, "fsync_us": fsync_us(folder)}
    finally:
        shutil.rmtree(folder)


def reopened(where: Path, units: int) -> dict[str, float]:
    """Return how long a head takes to open, count and forget a job of so many units."""

    async def main(folder: Path) -> dict[str, float]:
        ledger = Ledger(folder / "ledger.db", SystemClock())
        await ledger.open()
        await ledger.submit([NewJob(job_id="j", workload="w", digest=DIGEST)])
        await ledger.move("j", "running")
        await take(ledger, units, 64, await ledger.begin_pass("j"))
        await ledger.close()
        marks = [time.perf_counter()]
        await ledger.open()
        marks.append(time.perf_counter())
        await ledger.counts("j")
        marks.append(time.perf_counter())
        pass_ = await ledger.begin_pass("j")
        await asyncio.gather(*(ledger.offer("j", n, f"{n:032x}", pass_) for n in range(units)))
        marks.append(time.perf_counter())
        await ledger.backup(folder / "copy.db")
        marks.append(time.perf_counter())
        await ledger.end_pass("j", pass_, units)
        await ledger.move("j", "done")
        marks.append(time.perf_counter())
        await ledger.forget("j")
        marks.append(time.perf_counter())
        await ledger.close()
        names = ("open_s", "counts_s", "offered_again_s", "backup_s", "end_s", "forget_s")
        return {name: round(b - a, 4) for name, a, b in zip(names, marks, marks[1:], strict=False)}

    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=where))
    try:
        return asyncio.run(main(folder))
    finally:
        shutil.rmtree(folder)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}


def run(units: int, repeats: int, where: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    cases = [(width, batch) for width in WIDTHS for batch in (module.BATCH, 1)]
    found: dict[tuple[int, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for width, batch in cases:
            found[width, batch].append(once(where, units // (8 if width == 1 or batch == 1 else 1), width, batch))
    for (width, batch), runs in found.items():
        rows.append({"in_flight": width, "group_commit": batch > 1, **medians(runs), "runs_us_per_unit": [round(r["us_per_unit"], 1) for r in runs]})
    again = {"units": units, **reopened(where, units)}
    return {
        "what": "a unit offered, leased, placed and committed in the ledger; microseconds, median of the runs", "units": units, "repeats": repeats,
        "cpus": os.cpu_count(), "rows": rows, "with_many_units": again,
        "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the ledgers are made; its disk is measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jobs_ledger.json")
    options = parser.parse_args()
    result = run(options.units, options.repeats, options.folder or Path(tempfile.gettempdir()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'in flight':>9} {'group commit':>12} {'us/unit':>8} {'cpu us':>7} {'units/transaction':>17} {'fsync us':>8}")
    for row in result["rows"]:
        print(
            f"{row['in_flight']:>9} {row['group_commit']!s:>12} {row['us_per_unit']:>8} {row['cpu_us_per_unit']:>7} {row['units_per_transaction']:>17}"
            f" {row['fsync_us']:>8}"
        )
    print(f"with {result['with_many_units']['units']} units: {result['with_many_units']}; {result['rss_mib']} MiB")


if __name__ == "__main__":
    main()
