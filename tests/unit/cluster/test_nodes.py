"""States of hosts, names of cards, and what is kept of both."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.cluster.nodes import (
    LOST_S,
    Node,
    Roll,
    Seen,
    drained,
    held_devices,
    name_cards,
    node_row,
    renamed,
    roll_from,
    state_of,
)  # fmt: skip
from dgpunet_dask.errors import NewerFormat

HOLDS = st.sampled_from([None, "cordoned", "draining", "drained"])
UUIDS = st.integers(0, 9).map(lambda n: f"GPU-{n}")
WISHES = st.sampled_from(["rtx3090-0", "rtx3090-1", "rtx5090-0", "gpu-0", "odd", "a-1-2"])
CARDS = st.dictionaries(UUIDS, WISHES, max_size=6).map(lambda cards: list(cards.items()))


@pytest.mark.parametrize(
    ("hold", "silent_s", "left", "refused", "state"),
    [
        (None, 0.0, False, None, "ready"), (None, LOST_S, False, None, "ready"), (None, LOST_S + 0.1, False, None, "lost"),
        ("cordoned", 0.0, False, None, "cordoned"), ("draining", 0.0, False, None, "draining"), ("drained", 0.0, False, None, "drained"),
        ("cordoned", LOST_S + 0.1, False, None, "lost"), (None, 0.0, False, "too old", "refused"), ("drained", 0.0, False, "too old", "refused"),
        (None, LOST_S + 0.1, False, "too old", "lost"), (None, 0.0, True, None, "stopped"), ("draining", 99.0, True, "too old", "stopped"),
    ],
)  # fmt: skip
def test_every_host_is_in_one_state_and_the_worst_counts(hold, silent_s, left, refused, state):
    seen = Seen(at_s=50.0, left=left, refused=refused)
    assert state_of(Node(host="a", address="1", hold=hold), seen, 50.0 + silent_s) == state


@pytest.mark.parametrize(
    ("seen", "hold", "shown"),
    [
        (None, None, "joining"), (Seen(at_s=0.0), "drained", "drained"), (Seen(at_s=0.0, left=True), None, "stopped"),
        (Seen(at_s=0.0, refused="too old"), None, "refused"), (Seen(at_s=0.0), None, "lost"), (Seen(at_s=-99.0), "drained", "lost"),
        (Seen(at_s=0.0), "cordoned", "lost"),
    ],
)  # fmt: skip
def test_a_device_without_a_worker_is_lost_only_where_one_should_run(seen, hold, shown):
    devices = [{"name": "gpu-0", "state": "lost"}, {"name": "a/cpu", "state": "running"}]
    row = node_row(Node(host="a", address="1", hold=hold), seen, 0.0, devices)
    assert [device["state"] for device in row["devices"]] == [shown, "running"]


@pytest.mark.parametrize(("hold", "state"), [(None, "joining"), ("cordoned", "cordoned"), ("draining", "draining"), ("drained", "drained")])
def test_a_host_that_was_never_heard_is_joining_unless_it_is_held(hold, state):
    assert state_of(Node(host="a", address="1", hold=hold), None, 0.0) == state


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), CARDS), max_size=12))
def test_names_are_unique_in_the_fleet_and_stay_with_the_card(steps):
    """Whatever cards come, go and come back, on whatever hosts: no two have one name, and each has its own for ever."""
    roll, ever = Roll(), {}
    for host, cards in steps:
        node = renamed(roll.nodes.get(host) or Node(host=host, address="1"), roll.nodes.values(), cards)
        roll = roll_from(roll.put(node).to_json())
        assert list(roll.nodes[host].cards) == [uuid for uuid, _ in cards]
        names = [name for one in roll.nodes.values() for name in one.cards.values()]
        assert len(names) == len(set(names))
        for uuid, name in roll.nodes[host].cards.items():
            assert ever.setdefault((host, uuid), name) == name


def test_only_the_last_cards_keep_their_names():
    node = Node(host="a", address="1")
    for number in range(40):
        node = renamed(node, [node], [(f"GPU-{number}", "gpu-0")])
    assert list(node.gone) == [f"GPU-{number}" for number in range(23, 39)]


def test_the_first_free_number_is_taken():
    assert name_cards({}, ["gpu-0", "gpu-2"], [("A", "gpu-0"), ("B", "gpu-0"), ("C", "odd")]) == {"A": "gpu-1", "B": "gpu-3", "C": "odd-0"}
    assert name_cards({"A": "gpu-7"}, [], [("A", "gpu-0"), ("B", "gpu-7")]) == {"A": "gpu-7", "B": "gpu-0"}


def test_held_hosts_hold_their_cards_and_their_cpu():
    nodes = [Node(host=h, address="1", cards={f"G{h}": f"gpu-{h}"}, hold=hold) for h, hold in zip("abcd", (None, "cordoned", "draining", "drained"), strict=True)]
    assert held_devices(nodes) == {
        "gpu-b": "cordoned", "b/cpu": "cordoned", "gpu-c": "draining", "c/cpu": "draining", "gpu-d": "draining", "d/cpu": "draining",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("hold", "busy", "until", "leave"),
    [
        ("draining", False, None, True), ("draining", False, 99.0, True), ("draining", True, None, False), ("draining", True, 5.1, False),
        ("draining", True, 5.0, True), ("cordoned", False, 1.0, False), ("drained", False, 1.0, False), (None, False, 1.0, False),
    ],
)  # fmt: skip
def test_workers_leave_a_draining_host_that_is_idle_or_late(hold, busy, until, leave):
    assert drained(Node(host="a", address="1", hold=hold, hold_until=until), busy, 5.0) is leave


NODES = st.builds(
    Node, host=st.text(min_size=1, max_size=8), address=st.text(max_size=8), roles=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    joined_at=st.floats(0, 2e9), cards=st.dictionaries(UUIDS, WISHES, max_size=3), gone=st.dictionaries(UUIDS, WISHES, max_size=3),
    forced=st.booleans(), peer_port=st.integers(0, 65535), hold=HOLDS, hold_until=st.none() | st.floats(0, 2e9), hold_why=st.none() | st.text(max_size=9),
)  # fmt: skip


@given(nodes=st.lists(NODES, max_size=4), epoch=st.integers(0, 1 << 40))
def test_what_is_written_is_read_back(nodes, epoch):
    roll = Roll({node.host: node for node in nodes}, epoch)
    assert roll_from(roll.to_json()) == roll


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda i: st.lists(i, max_size=3) | st.dictionaries(st.sampled_from(
    ["version", "epoch", "nodes", "host", "roles", "cards"]), i, max_size=6), max_leaves=12))  # fmt: skip
def test_a_damaged_file_is_a_value_error_and_a_newer_one_says_so(raw):
    try:
        assert isinstance(roll_from(json.dumps(raw)), Roll)
    except NewerFormat:
        assert raw["version"] > 1
    except ValueError:
        pass


def test_files_of_before_cards_were_remembered_are_read():
    old = {"host": "a", "address": "1", "roles": [], "joined_at": 0.0, "cards": {"G": "gpu-0"}, "peer_port": 1, "hold": None, "hold_until": None, "hold_why": None}
    assert roll_from(json.dumps({"version": 1, "epoch": 3, "nodes": [old]})).nodes["a"].gone == {}


def test_a_row_shows_its_workers_beside_their_devices():
    seen = Seen(at_s=1.0, workers=[{"device": "gpu-0", "pid": 7, "state": "running", "restarts": 2}], stagehosts=[{"stage": "embed"}])
    node = Node(host="a", address="1", hold="cordoned", hold_why="Xid 79")
    row = node_row(node, seen, 3.25, [{"name": "gpu-0", "state": "running"}, {"name": "a/cpu", "state": "lost"}])
    assert [(d["worker_pid"], d["restarts"]) for d in row["devices"]] == [(7, 2), (None, None)]
    assert (row["state"], row["why"], row["seen_s_ago"], row["software"]) == ("cordoned", "Xid 79", 2.2, None)
    assert node_row(node, replace(seen, refused="too old"), 3.0, [])["why"] == "too old"
    assert node_row(node, None, 3.0, [])["seen_s_ago"] is None


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_host_taken_out_is_out(host):
    roll = Roll({"a": Node(host="a", address="1"), "b": Node(host="b", address="2")}, 4)
    assert set(roll.without(host).nodes) == {"a", "b"} - {host}
    assert roll.without(host).epoch == 4
