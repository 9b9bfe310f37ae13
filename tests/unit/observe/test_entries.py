"""What agents tell their head anyway is enough for most checks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.cluster.fleets import fleet_to_json
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.observe.cluster import check_cluster
from dgpunet_dask.observe.entries import facts_of_entry
from dgpunet_dask.observe.facts import Facts
from tests.unit.observe.facts import FACTS, facts
from tests.unit.observe.test_local import anything, wrong


def told(host, **changed):
    """The facts of a heartbeat."""
    card = {"name": f"{host}-0", "host": host, "model": "RTX 3090", "vram_mib": 24576, "capability": (8, 6), "driver": (580, 95), "uuid": f"GPU-{host}"}
    card |= {"runtime_arches": ("sm_86",)} | changed
    fleet = Fleet((Host(name=host, power="mains"),), (Device(**card), Device(name=f"{host}/cpu", host=host, kind="cpu")))
    interface = {"name": "eth0", "kind": "ethernet", "address": "10.0.0.1", "mtu": 1500, "speed_mbit_s": 10000, "duplex": "full", "why": "x"}
    return {"fleet": fleet_to_json(fleet), "cards": [[f"GPU-{host}", "x"]], "software": FACTS["software"], "interface": interface}


def entry(host, **changed):
    workers = [{"device": f"{host}-0", "state": "running"}, {"device": f"{host}/cpu", "state": "running"}]
    return {"facts": told(host, **changed), "seen_s_ago": 0.5, "state": "ready", "workers": workers, "health": {"cards": {}}, "unreachable": None}


def document():
    links = [{"src": a, "dst": b, "rates": [1e9, 1.1e9, 0.2e9], "rtt_s": 1e-4, "at": 5.0, "baseline": 1.1e9} for a, b in ("ab", "ba")]
    return {"head": {"host": "a"}, "hosts": {"a": entry("a"), "b": entry("b")}, "links": links, "listeners": [], "reports": []}


def marks(found):
    return [(finding.check, finding.level, finding.subject) for finding in wrong(found)]


def test_a_cluster_that_is_well():
    found = check_cluster(document())
    assert marks(found) == []
    assert {"torch_arch", "driver_version", "interface", "power", "worker", "link_rate", "software", "mtu"} <= {finding.check for finding in found}


def test_a_card_that_torch_has_no_code_for():
    doc = document()
    doc["hosts"]["b"] = entry("b", capability=(12, 0))
    assert marks(check_cluster(doc)) == [("torch_arch", "fault", "b/b-0")]


def test_health_and_reports_count():
    doc = document()
    doc["hosts"]["b"]["health"] = {"cards": {"GPU-b": {"throttle": ["hw_thermal_slowdown"]}}}
    doc["reports"] = [{"host": "a", "kind": "xid", "uuid": "GPU-a", "xid": 79, "at": 1.0, "severity": "critical", "meaning": "fell off"}]
    assert set(marks(check_cluster(doc))) == {("xid", "fault", "a/a-0"), ("throttle", "warn", "b/b-0")}


def test_cards_keep_their_names_in_the_cluster_and_errors_are_told_once():
    doc = document()
    event = {"uuid": "GPU-b", "xid": 79, "at": 1.0}
    doc["hosts"]["b"]["doctor"] = facts("b", **{"cards.0.uuid": "GPU-b", "xid": [event], "canary": [{"uuid": "GPU-b", "device": "x", "ok": False}]})
    doc["reports"] = [{"host": "b", "kind": "card_fault", **event, "at": 2.0}]
    assert sorted(marks(check_cluster(doc))) == [("canary", "fault", "b/b-0"), ("xid", "fault", "b/b-0")]


def test_what_an_agent_tells_of_its_cards():
    doc = document()
    row = {"present": False, "name": "b-1", "problem": "GPU is lost", "throttle": None}
    doc["hosts"]["b"]["health"] = {"cards": {"GPU-gone": row}, "canary": [{"device": "b-0", "uuid": "GPU-b", "ok": False, "mismatches": 3}]}
    doc["reports"] = [
        {"host": "a", "kind": "card_fault", "uuid": "GPU-a", "xid": 31, "at": 1.0, "severity": "job", "meaning": "m"},
        {"host": "a", "kind": "card_fault", "uuid": "GPU-a", "xid": None, "at": 1.0, "what": "a-0: the card fell off the bus"},
        {"host": "b", "kind": "link", "src": "b", "dst": "a"},
    ]
    assert set(marks(check_cluster(doc))) == {("xid", "warn", "a/a-0"), ("card_lost", "fault", "b/b-1"), ("canary", "fault", "b/b-0")}


def test_a_host_that_the_head_cannot_reach():
    doc = document()
    doc["hosts"]["b"]["unreachable"] = "port 8788 does not answer"
    found = check_cluster(doc)
    assert marks(found) == [("port_reach", "fault", "a -> b")]
    assert "firewall" in wrong(found)[0].cure


def test_a_clock_that_the_head_has_compared():
    doc = document()
    doc["hosts"]["b"]["clock_offset_s"] = 40.0
    assert marks(check_cluster(doc)) == [("clock", "fault", "b")]


def test_a_worker_that_waits_and_a_link_below_its_baseline():
    doc = document()
    doc["hosts"]["b"]["workers"][0]["state"] = "waiting"
    doc["links"][0]["rates"] = [0.5e9]
    assert set(marks(check_cluster(doc))) == {("worker", "fault", "b"), ("link_rate", "warn", "a -> b")}


def test_all_that_a_host_gathers_counts_before_what_its_heartbeat_says():
    doc = document()
    doc["hosts"]["b"]["doctor"] = facts("b", **{"cards.0.present": False, "power.source": "battery"})
    assert set(marks(check_cluster(doc))) == {("card_lost", "fault", "b/rtx3090-0"), ("power", "warn", "b")}


@given(st.dictionaries(st.sampled_from(["facts", "health", "doctor"]), anything), st.dictionaries(st.sampled_from(["fleet", "interface", "software"]), anything))
def test_entries_of_any_shape(changed, inner):
    raw = entry("a") | changed
    if isinstance(raw["facts"], dict):
        raw["facts"] |= inner
    assert isinstance(facts_of_entry(Facts(raw, "a")), dict)
    check_cluster({"hosts": {"a": raw}})
