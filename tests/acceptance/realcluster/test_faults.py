"""Five unequal machines as one cluster: a job across them, and what becomes of it when a part of them fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.realcluster.site import FIVE, SLOW_HOST, WHY_NOT, Site, corpus, short_folder, site, timed
from tests.helpers import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(240),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"hosts in namespaces: {WHY_NOT}"),
]

NOTICED_S = 5.0
CUT_NOTICED_S = 15.0
JOINED_S = 60.0
#: Although five machines share the cores of one here, and all their workers start at once.
SERVING_S = 30.0


@pytest.fixture(scope="module")
def five(homes: Path) -> Iterator[Site]:
    began = time.monotonic()
    with site(short_folder(homes, "f"), FIVE, FIVE[1:], more=["late"], tapped=True) as made:
        made.measured("five hosts up", time.monotonic() - began)
        yield made


@pytest.fixture(autouse=True)
def nothing_held(five: Site) -> Iterator[None]:
    """One test that fails leaves no host held back for the next."""
    yield
    for name, node in five.nodes().items():
        if node["state"] in ("cordoned", "draining", "drained"):
            five.api(f"/v1/nodes/{name}/uncordon", "POST", {})


def test_five_machines_are_one_cluster(five):
    status, told = five.api("/v1/status")
    assert status == 200
    assert told["address"].startswith("tls://10.77.0.1:")
    workers = {w["name"]: w for w in told["workers"]}
    assert len(workers) == 10
    assert {w["state"] for w in workers.values()} == {"running"}
    cards = {name: w["vram_mib"] for name, w in workers.items() if "/" not in name}
    assert cards == {
        "rtx4090laptop-0": 16376, "rtx4080laptop-0": 12282, "rtx3090-0": 24576, "rtx4070laptop-0": 8188, "rtx5090-0": 32607,
    }  # fmt: skip
    assert {w["host"] for w in workers.values()} == set(FIVE)
    for name in FIVE:  # one real dask-cuda worker on each
        assert len([line for line in five.lab.left(name).values() if "worker_main" in line and "--cuda" in line]) == 1
    table = five.lab.ok("m18", "nodes").out
    assert all(name in table for name in FIVE)


def test_an_embed_job_runs_across_them_and_can_be_searched(five):
    texts = corpus(five.lab.folder / "texts", "alpha", 16, 40)
    ran = five.lab.ok("m18", "-v", "submit", "embed-codebase", "--set", f"path={texts}", "--set", "index=alpha", "--json", timeout_s=150)
    assert ran.json["state"] == "done"
    assert ran.json["units"]["failed"] == 0
    assert ran.json["metrics"]["embedded"] >= 16 * 40
    placed = {line.partition(" on ")[2].split()[0] for line in ran.err.splitlines() if line.startswith("placed embed")}
    cards = {device for device in placed if "/" not in device}
    assert len(cards) >= 3, ran.err
    loaded = {(row["device"], row["stage"]) for node in five.nodes().values() for row in node["stagehosts"]}
    assert cards <= {device for device, stage in loaded if stage == "embed"}
    hits = five.lab.ok("m18", "search", "alpha", "combine value 7 of alpha by rule 3", "-k", "3", "--json").json["hits"]
    assert hits[0]["path"].startswith("alpha_")


def test_a_worker_that_is_killed_is_noticed_and_its_work_done(five):
    job = five.begin("kill", 80, 0.4)
    until(lambda: five.running_on("kill", "rig"), 60, "a unit on rig")
    card = five.card("rig")
    os.kill(card["worker_pid"], signal.SIGKILL)
    noticed = timed(lambda: _changed(five, card), 30, "the end of the worker is noticed")
    assert five.measured("worker killed, noticed", noticed) <= NOTICED_S
    five.measured("worker killed, replaced", noticed + five.until_ready("rig"))
    five.check_whole(job, "kill", 80)


def test_the_process_below_a_worker_that_is_killed_is_noticed_too(five):
    job = five.begin("inner", 80, 0.4)
    until(lambda: five.running_on("inner", "tower"), 60, "a unit on tower")
    card = five.card("tower")
    os.kill(_child_of(card), signal.SIGKILL)
    noticed = timed(lambda: _changed(five, card), 30, "the end of the worker is noticed")
    assert five.measured("worker's child killed, noticed", noticed) <= NOTICED_S
    five.measured("worker's child killed, replaced", noticed + five.until_ready("tower"))
    five.check_whole(job, "inner", 80)


@pytest.mark.parametrize("part", ["worker", "its child"])
def test_a_worker_that_stands_still_is_replaced(five, part):
    tag = part.replace(" ", "-")
    job = five.begin(tag, 80, 0.4)
    until(lambda: five.running_on(tag, "xps"), 60, "a unit on xps")
    card = five.card("xps")
    os.kill(card["worker_pid"] if part == "worker" else _child_of(card), signal.SIGSTOP)

    def replaced() -> bool:
        now = five.card("xps")
        return now.get("worker_pid") not in (None, card["worker_pid"]) and now["state"] == "running"

    five.measured(f"SIGSTOP of {part}: replaced", timed(replaced, 60, "another worker"))
    five.check_whole(job, tag, 80)


def test_a_cable_that_is_pulled_loses_the_host_and_no_work_and_the_host_comes_back_by_itself(five):
    job = five.begin("cable", 120, 0.4)
    until(lambda: five.running_on("cable", "rig"), 60, "a unit on rig")
    five.lab.lan.cut("rig")
    noticed = timed(lambda: five.state("rig") == "lost", 60, "rig is lost")
    assert five.measured("cable pulled, noticed", noticed) <= CUT_NOTICED_S
    until(lambda: five.card("rig").get("state") != "running", 5, "its card is not to be had")
    job_after = five.check_whole(job, "cable", 120)
    assert job_after["units"]["attempts"] <= 120 + 4
    assert five.state("rig") == "lost"
    five.lab.lan.mend("rig")
    five.measured("cable mended, ready", five.until_ready("rig", timeout_s=90))


def test_a_drained_host_loses_nothing(five):
    job = five.begin("drain", 80, 0.4)
    until(lambda: five.running_on("drain", "tower"), 60, "a unit on tower")
    drained = five.lab.ok("m18", "drain", "tower", "--json", timeout_s=100)
    assert drained.json["state"] == "drained"
    assert not five.running_on("drain", "tower")
    until(lambda: not five.pids("tower", "worker_main"), 5, "the end of its workers")
    before = len([row for row in five.notes("drain") if row["host"] == "tower"])
    done = five.check_whole(job, "drain", 80)
    assert done["units"]["attempts"] == 80  # nothing was computed twice
    assert len([row for row in five.notes("drain") if row["host"] == "tower"]) == before
    five.lab.ok("m18", "uncordon", "tower")
    five.measured("uncordoned, ready", five.until_ready("tower"))


def test_work_that_outlasts_the_deadline_of_a_drain_is_done_elsewhere(five):
    job = five.begin("outlast", 5, 6.0)
    until(lambda: five.running_on("outlast", "rig"), 60, "a unit on rig")
    began = time.monotonic()
    five.lab.ok("m18", "drain", "rig", "--deadline", "1s", timeout_s=100)
    assert time.monotonic() - began < 6.0  # it did not wait for the unit
    five.check_whole(job, "outlast", 5)
    five.lab.ok("m18", "uncordon", "rig")
    five.until_ready("rig")


def test_a_cordoned_host_gets_nothing_new(five):
    five.lab.ok("m18", "cordon", "rig")
    assert five.state("rig") == "cordoned"
    five.check_whole(five.begin("cordon", 15, 0.2), "cordon", 15)
    assert "rig" not in {row["host"] for row in five.notes("cordon")}
    five.lab.ok("m18", "uncordon", "rig")
    five.until_ready("rig")


def test_a_sixth_machine_joins_in_the_middle_of_a_job_and_gets_work(five):
    job = five.begin("sixth", 1000, 0.4)
    until(lambda: len(five.notes("sixth", "ended")) > 10, 60, "the job runs")
    token = five.lab.token("m18", "late")
    began = time.monotonic()
    joined = five.lab.cli("late", "join", token, "--name", "late", timeout_s=120)
    assert joined.code == 0, joined
    five.measured("join of the sixth host", time.monotonic() - began)
    until(lambda: any(row["host"] == "late" for row in five.notes("sixth", "ended")), 90, "a unit on the sixth host")
    assert five.measured("first unit on the sixth host since `join`", time.monotonic() - began) < JOINED_S
    assert five.job(job)["state"] == "running"
    five.lab.ok("m18", "jobs", "cancel", job)
    assert five.ended(job)["state"] == "cancelled"
    until(lambda: not any(five.running_on("sixth", name) for name in (*FIVE, "late")), 10, "the end of all its units")


def test_a_head_that_is_killed_comes_back_and_loaded_models_serve_on(five):
    nodes = five.nodes()
    before = {(row["device"], row["stage"]): row["pid"] for node in nodes.values() for row in node["stagehosts"] if row["stage"] == "embed"}
    assert before, "the embed job has left its models loaded"
    agents = {name: five.pids(name, "node_agent") for name in FIVE}
    pid, texts = five.api("/v1/status")[1]["head_pid"], corpus(five.lab.folder / "texts", "beta", 8, 40)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: five.api("/v1/status")[1] not in (None, {}) and five.api("/v1/status")[1]["head_pid"] != pid, 60, "another head", every_s=0.1)
    five.measured("head killed, API answers", time.monotonic() - began)
    submitted = five.lab.ok("m18", "submit", "embed-codebase", "--set", f"path={texts}", "--set", "index=beta", "--detach", "--json")
    job = submitted.json["job_id"]
    until(lambda: (five.job(job).get("units") or {}).get("done", 0) > 0, 90, "the first unit", every_s=0.1)
    assert five.measured("head killed, first unit of a new job done", time.monotonic() - began) < SERVING_S
    assert five.ended(job)["state"] == "done"
    five.measured("head killed, all hosts ready", time.monotonic() - began + five.until_ready(*FIVE))
    after = {(row["device"], row["stage"]): row["pid"] for node in five.nodes().values() for row in node["stagehosts"]}
    assert {key: after.get(key) for key in before} == before
    assert {name: five.pids(name, "node_agent") for name in FIVE} == agents
    placed = {e["device"] for e in five.api(f"/v1/jobs/{job}/events")[1] if e["kind"] == "placement" and e["key"].startswith("embed")}
    assert placed & {device for device, _ in before}  # and so one of these processes has served it


def test_an_agent_that_is_killed_takes_its_processes_along_and_comes_back(five):
    running = five.lab.left("tower")
    supervisor = five.pids("tower", "daemons.supervisor")
    (agent,) = five.pids("tower", "node_agent")
    assert five.pids("tower", "stagehost"), "a stage is loaded there"
    os.kill(agent, signal.SIGKILL)
    until(lambda: set(five.lab.left("tower")) & set(running) <= {*supervisor}, 15, "the end of all that the agent ran")
    until(lambda: five.pids("tower", "node_agent") not in ([], [agent]), 20, "another agent")
    five.measured("agent killed, ready", five.until_ready("tower"))
    assert five.pids("tower", "daemons.supervisor") == supervisor


def test_a_supervisor_that_is_killed_leaves_nothing_and_the_host_starts_again_without_a_token(five):
    (supervisor,) = five.pids("legion", "daemons.supervisor")
    os.kill(supervisor, signal.SIGKILL)
    five.measured("supervisor killed, nothing runs", timed(lambda: not five.lab.left("legion"), 20, "nothing runs on legion"))
    noticed = timed(lambda: five.state("legion") in ("lost", "stopped"), 30, "legion is missed")
    assert noticed <= CUT_NOTICED_S
    again = five.lab.cli("legion", "join", timeout_s=120)
    assert again.code == 0, again
    five.until_ready("legion")


def test_doctor_knows_the_hosts_and_the_links_between_them(five):
    five.until_ready(*FIVE, "late")
    links = until(lambda: _links(five), 60, "links that were measured", every_s=0.5)
    five.measured(f"links measured of {6 * 5}: {len(links)}; after", five.age())
    slow = [row["bytes_per_s"] for (a, b), row in links.items() if SLOW_HOST in (a, b)]
    assert all(rate < 30e6 for rate in slow), links  # what the wire allows is 25 MB/s
    assert any(row["bytes_per_s"] > 100e6 for (a, b), row in links.items() if SLOW_HOST not in (a, b)), links
    doctor = five.lab.cli("m18", "doctor", "--json")
    assert doctor.code in {0, 3}, doctor
    findings = doctor.json["findings"]
    assert (doctor.code == 3) == (doctor.json["summary"]["fault"] > 0)
    assert all(f["cure"] for f in findings if f["level"] != "ok"), findings
    assert not [f for f in findings if "could not be looked at" in f["what"]]
    about = {f["subject"].partition("/")[0] for f in findings}
    assert {*FIVE, "late"} <= about
    faults = [f for f in findings if f["level"] == "fault"]
    print("doctor:", len(findings), "findings;", [(f["check"], f["subject"], f["what"]) for f in findings if f["level"] != "ok"])
    assert not [f for f in faults if f["cause"] in ("network", "workload")], faults
    words = five.lab.cli("m18", "doctor")
    assert words.code == doctor.code
    assert "Traceback" not in words.out + words.err


def test_all_that_the_hosts_said_was_under_tls_and_nothing_went_anywhere_else(five):
    heard = five.heard()
    assert heard.packets > 10_000
    assert heard.clear() == {}
    assert heard.strange == []
    ports = heard.ports()
    assert {8786, 8787, 8788, 8800, 8801} <= ports, ports
    assert ports <= {8786, 8787, 8788, *range(8800, 9000)}, ports


def test_down_leaves_nothing_on_any_host(five):
    for name in ("xps", "late"):
        five.lab.ok(name, "down")
        assert five.lab.left(name) == {}
        until(lambda: five.state(name) == "stopped", 5, f"{name} has said good-bye")  # noqa: B023  # called at once
    for name in ("tower", "legion", "rig", "m18"):
        five.lab.ok(name, "down")
    until(lambda: not five.lab.lan.pids(), 5, "the end of all processes")


def _links(five: Site) -> dict:
    """Return the measured links, once there are enough of them to say something."""
    told = five.api("/v1/doctor")[1] or {}
    links = {(row["src"], row["dst"]): row for row in told.get("links", ()) if row.get("bytes_per_s")}
    return links if len(links) >= 15 else {}


def _changed(five: Site, card: dict) -> bool:
    """Whether the cluster knows that a card's worker is gone."""
    now = five.device(card["name"])
    return bool(now) and (now["state"] != "running" or now["worker_pid"] != card["worker_pid"] or now["restarts"] != card["restarts"])


def _child_of(card: dict) -> int:
    """Return the process in which Dask's own worker runs: its nanny's child."""
    children = psutil.Process(card["worker_pid"]).children()
    (pid,) = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    return pid
