"""Placement on a live fleet of real worker processes, as simulated devices whose work is waiting."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client, Future, as_completed

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.shipped import shipped
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.trace import FleetRecord, SubmitRecord, to_line
from dgpunet_dask.testing.timed import Stay, take_time
from tests.acceptance.conftest import Cli

pytestmark = pytest.mark.long

HOME5 = shipped("policies") / "fleets" / "home5.yaml"
POLICY = """
version: 1
rules:
- {name: stream, match: {stage: small}, share: {max_per_gpu: 4}}
- {name: chat, match: {stage: chat}, priority: interactive}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, Client]]:
    """A running simulated fleet under `POLICY`, and a plain Dask client of its scheduler."""
    made = Cli(tmp_path_factory.mktemp("h"))
    policy = tmp_path_factory.mktemp("p") / "policy.yaml"
    policy.write_text(POLICY)
    up = made("up", "--simulate", HOME5, "--policy", policy, timeout_s=180)
    assert up.code == 0, up.err
    try:
        head = json.loads(Home(made.home).head_file.read_text())
        with Client(head["scheduler"]) as client:
            yield made, client
    finally:
        assert made("down", timeout_s=60).code == 0


def submit(client: Client, count: int, work_s: float, **demand: object) -> list[Future]:
    with dask.annotate(demand={"work": work_s, **demand}):
        tag = f"{demand.get('stage')}-{time.monotonic_ns()}"
        keys = [f"{tag}-{i}" for i in range(count)]
        return client.map(take_time, [work_s] * count, range(count), key=keys, pure=False)


def test_a_burst_goes_where_the_replay_says(live: tuple[Cli, Client], tmp_path: Path) -> None:
    cli, client = live
    demand = Demand(stage="embed", vram="4GiB", work=3.0)
    fleet = parse_fleet(HOME5.read_text(), str(HOME5))
    trace = tmp_path / "burst.jsonl"
    records = [FleetRecord.of(0.0, fleet), *(SubmitRecord(0.0, f"u{i}", demand) for i in range(60))]
    trace.write_text("".join(f"{to_line(record)}\n" for record in records))
    replay = cli("policy", "replay", trace, "--json")
    assert replay.code == 0, replay.err

    stays: list[Stay] = client.gather(submit(client, 60, 3.0, stage="embed", vram="4GiB"))
    seen = Counter(stay.device for stay in stays)

    predicted = replay.json["counts"]
    assert sum(seen.values()) == 60
    far = {name: (seen[name], predicted.get(name, 0)) for name in {*seen, *predicted} if abs(seen[name] - predicted.get(name, 0)) > 1}
    assert not far


def test_interactive_work_starts_within_one_unit_on_a_full_fleet(live: tuple[Cli, Client]) -> None:
    _, client = live
    bulk = submit(client, 60, 4.0, stage="bulk", vram="4GiB")
    next(iter(as_completed(bulk)))  # every card is taken by now, and most of the bulk waits
    asked_s = time.time()
    chat: Stay = submit(client, 1, 0.5, stage="chat", vram="2GiB")[0].result()
    assert chat.start_s - asked_s <= 4.0 / 0.8  # the longest that any unit of the bulk takes
    ahead = sum(f.status != "finished" for f in bulk)
    assert ahead > 5
    client.cancel(bulk)


def test_a_large_demand_is_not_starved_by_a_stream_of_small_ones(live: tuple[Cli, Client]) -> None:
    _, client = live
    stream = as_completed(submit(client, 16, 0.8, stage="small", vram="4GiB", compute_capability=">=12.0"))
    next(stream)
    large = submit(client, 1, 1.0, stage="large", vram="30GiB")[0]
    deadline_s = time.monotonic() + 120
    for done, _ in enumerate(stream):
        if large.done():
            break
        assert time.monotonic() < deadline_s, f"{done} small units went before the large one"
        stream.update(submit(client, 1, 0.8, stage="small", vram="4GiB", compute_capability=">=12.0"))
    assert large.result().device == "5090"
    client.cancel(list(stream.futures))
