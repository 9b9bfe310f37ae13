"""What is wrong between machines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.observe.cluster import check_cluster
from tests.unit.observe.facts import FACTS, facts
from tests.unit.observe.test_local import anything, wrong


def document(**hosts):
    """Two hosts that are well, and all that a head tells of them."""
    known = {"a": facts("a"), "b": facts("b")} | hosts
    pairs = [(src, dst) for src in known for dst in known if src != dst]
    return {
        "head": {"host": "a"},
        "hosts": {name: {"facts": found, "seen_s_ago": 1.0, "state": "ready"} for name, found in known.items()},
        "links": [{"src": src, "dst": dst, "bytes_per_s": 1e9, "rtt_s": 2e-4, "at": 1.0} for src, dst in pairs],
        "baseline": [{"src": src, "dst": dst, "bytes_per_s": 1.1e9} for src, dst in pairs],
        "reach": [{"src": src, "dst": dst, "port": 8788, "what": "agent", "ok": True, "why": None} for src, dst in pairs],
        "listeners": [{"host": "a", "address": "10.0.0.1", "port": 8787, "what": "API", "protection": "tls+key"}],
        "workers": [
            {"name": f"{host}-{device}", "host": host, "device": f"{host}/{device}", "state": "running"} for host in known for device in ("cpu", "gpu")
        ],
    }


def told(found):
    return [(finding.check, finding.level, finding.subject) for finding in wrong(found)]


def test_two_machines_that_are_well():
    found = check_cluster(document())
    assert told(found) == []
    assert {"host", "software", "mtu", "port_reach", "listener", "link_rate", "round_trip", "worker"} <= {finding.check for finding in found}
    json.dumps([finding.to_json() for finding in found])


@pytest.mark.parametrize(
    ("key", "changed", "level"),
    [
        ("distributed", "2026.6.0", "fault"),
        ("dask", "2026.7.0", "fault"),
        ("python", "3.12.1", "fault"),
        ("dgpunet_dask", "0.5.0", "fault"),
        ("python", "3.11.4", "warn"),
        ("torch", "2.8.0", "warn"),
        ("numpy", "2.2.0", "warn"),
    ],
)
def test_versions_are_refused_or_warned_of(key, changed, level):
    found = check_cluster(document(b=facts("b", **{f"software.{key}": changed})))
    assert told(found) == [("software", level, "b")]
    assert changed in wrong(found)[0].what
    assert wrong(found)[0].cause == "versions"


def test_an_mtu_that_differs_is_told_of_the_host_that_is_alone():
    jumbo = {"network.interfaces.1.mtu": 9000, "network.path_mtu": 9000}
    found = check_cluster(document(c=facts("c", **jumbo)))
    assert told(found) == [("mtu", "warn", "c")]


@pytest.mark.parametrize(("why", "cure"), [("timeout", "firewall"), ("refused", "nothing listens"), ("no_route", "cable")])
def test_a_port_that_is_not_reached_names_its_cure(why, cure):
    doc = document()
    doc["reach"][1] |= {"ok": False, "why": why}
    found = wrong(check_cluster(doc))
    assert [(finding.check, finding.level, finding.subject) for finding in found] == [("port_reach", "fault", "b -> a")]
    assert cure in found[0].cure


def test_a_slow_link_is_told_against_its_baseline_and_its_other_direction():
    doc = document()
    doc["links"][0]["bytes_per_s"] = 0.7e9
    assert told(check_cluster(doc)) == [("link_rate", "warn", "a -> b")]
    doc["baseline"] = []
    assert told(check_cluster(doc)) == []
    doc["links"][0]["bytes_per_s"] = 0.4e9
    assert told(check_cluster(doc)) == [("link_rate", "warn", "a -> b")]


def test_a_long_round_trip_is_told():
    doc = document()
    doc["links"][1]["rtt_s"] = 0.02
    assert told(check_cluster(doc)) == [("round_trip", "warn", "b -> a")]


def test_links_that_nobody_has_measured_are_named():
    found = check_cluster(document() | {"links": [], "baseline": []})
    assert told(found) == []
    assert [list(finding.evidence["missing"]) for finding in found if finding.check == "link_rate"] == [["a -> b", "b -> a"]]


@pytest.mark.parametrize("entry", [{"state": "lost"}, {"seen_s_ago": 30.0}])
def test_a_host_that_is_silent(entry):
    doc = document()
    doc["hosts"]["b"] |= entry
    assert told(check_cluster(doc)) == [("host", "fault", "b")]


def test_a_host_that_was_stopped_in_good_order_is_no_fault():
    doc = document()
    doc["hosts"]["b"] |= {"state": "stopped", "seen_s_ago": 9e4}
    assert told(check_cluster(doc)) == [("host", "warn", "b")]


def test_a_worker_that_is_missing_or_lost():
    doc = document()
    gone = doc["workers"].pop()
    assert told(check_cluster(doc)) == [("worker", "fault", "b")]
    doc["workers"].append(gone | {"state": "lost"})
    assert told(check_cluster(doc)) == [("worker", "fault", "b")]


def test_workers_of_simulated_hosts_count_too():
    doc = document()
    doc["workers"].append({"name": "x", "host": "sim", "device": "4090l", "state": "lost"})
    assert told(check_cluster(doc)) == [("worker", "fault", "sim")]


@pytest.mark.parametrize(("address", "protection", "faulty"), [("0.0.0.0", "none", True), ("::", None, True), ("127.0.0.1", "none", False)])
def test_a_bare_listener_is_a_fault(address, protection, faulty):
    doc = document()
    doc["listeners"].append({"host": "b", "address": address, "port": 80, "what": "x", "protection": protection})
    assert told(check_cluster(doc)) == ([("listener", "fault", "b")] if faulty else [])


def test_one_host_alone_is_its_own_findings_and_its_links():
    found = check_cluster(document(), "b")
    assert {"b", "b/rtx3090-0", "b -> a", "a -> b"} == {finding.subject for finding in found}


@given(st.dictionaries(st.sampled_from(["head", "hosts", "links", "baseline", "reach", "listeners", "workers"]), anything))
def test_documents_of_any_shape_end_in_findings(changed):
    found = check_cluster(document() | changed)
    assert all(finding.subject for finding in found)


def test_what_another_release_leaves_out_is_not_missed():
    doc = {"hosts": {"a": {"facts": {key: FACTS[key] for key in ("cards", "software")}}, "b": {}}}
    assert told(check_cluster(doc)) == []
