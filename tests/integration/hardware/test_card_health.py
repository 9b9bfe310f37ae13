"""What befalls a card, through the real bindings into the reports of an agent: errors, heat, loss and return."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.testing.fake_nvml import FakeCard, FakeUse, build, compiler, environment, write_uses
from tests.helpers import until

pytestmark = pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")

OLD, NEW = "GPU-00000000-0000-0000-0000-000000003090", "GPU-00000000-0000-0000-0000-000000005090"
CARDS = [FakeCard("NVIDIA GeForce RTX 5090", NEW, 32607, 0, (12, 0)), FakeCard("NVIDIA GeForce RTX 3090", OLD, 24576, 0, (8, 6))]
HOT = 0x40
#: An agent's watch, hasty: each look stands for ten seconds, as if the clock ran so.
WATCH = """
import asyncio, json, sys
from pathlib import Path
from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.card_canary import CardCanary
from dgpunet_dask.daemons.node_health import NodeHealth
from dgpunet_dask.daemons.spool import Spool
from dgpunet_dask.hardware.probe import local_fleet

class Fast(SystemClock):
    monotonic = staticmethod(lambda: SystemClock.monotonic() * 100)

async def main(folder):
    clock = Fast()
    health = NodeHealth(Spool(folder / "reports.json"), clock, period_s=10, xids_s=0.05, canary=CardCanary(clock, idle_s=1e9))
    fleet = local_fleet(arches=lambda: None)
    watching = asyncio.create_task(health.run(lambda: fleet, list))
    while not watching.done():
        draft = folder / "row.draft"
        draft.write_text(json.dumps(health.row()))
        draft.replace(folder / "row.json")
        await asyncio.sleep(0.05)
    await watching

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def watched(library, tmp_path):
    """An agent's watch that runs; the functions give its row of a card and its reports."""
    state = tmp_path / "nvml"
    write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 0)])
    env = child_env(environment(library, CARDS, state))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", WATCH, str(tmp_path)], env=env, stdout=log, stderr=log)

    def row(uuid):
        file = tmp_path / "row.json"
        return json.loads(file.read_text())["cards"].get(uuid, {}) if file.exists() else {}

    def reports():
        file = tmp_path / "reports.json"
        return json.loads(file.read_text())["reports"] if file.exists() else []

    try:
        until(lambda: row(OLD).get("name") == "rtx3090-0" and row(NEW).get("name") == "rtx5090-0", what="both cards are watched")
        yield state, row, reports
    finally:
        process.kill()
        process.wait()
        print((tmp_path / "log").read_text()[-3000:])


def test_errors_heat_loss_and_return(watched):
    state, row, reports = watched
    assert reports() == []
    assert row(OLD)["present"] is True
    write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 7, xids=(31, 63))])
    (job,) = until(reports, what="the error of a job")
    assert (job["kind"], job["uuid"], job["device"], job["xid"]) == ("card_fault", OLD, "rtx3090-0", 31)
    assert (job["cause"], job["cordon"], job["severity"]) == ("workload", False, "job")
    until(lambda: [(x["xid"], x["count"]) for x in row(OLD)["xids"]] == [(31, 1), (63, 1)], what="both are counted")

    write_uses(state, [FakeUse(NEW, 0, throttle=HOT, temperature_c=96), FakeUse(OLD, 7, xids=(31, 63))])
    heat = until(lambda: reports()[1:], what="the heat")[0]
    assert (heat["uuid"], heat["cause"], heat["cordon"], heat["temperature_c"]) == (NEW, "hardware", False, 96)
    assert row(NEW)["throttle"] == ["hw_thermal"]

    write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 7, lost=True, xids=(31, 63, 79))])
    fallen = until(lambda: reports()[2:] if len(reports()) >= 4 else None, what="the error of the card, and its loss")
    assert {(r["xid"], r["uuid"], r["cordon"]) for r in fallen} == {(79, OLD, True), (None, OLD, True)}
    assert all(r["what"].startswith("rtx3090-0: ") for r in fallen)
    until(lambda: row(OLD)["present"] is False, what="the row says that it is lost")
    assert row(NEW)["present"] is True

    write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 7, xids=(31, 63, 79))])
    (back,) = until(lambda: reports()[4:], what="its return")
    assert (back["kind"], back["uuid"]) == ("card_back", OLD)
    write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 7, xids=(31, 63, 79, 48))])
    (again,) = until(lambda: reports()[5:], what="errors are heard in the new session, too")
    assert (again["xid"], again["cordon"]) == (48, True)
