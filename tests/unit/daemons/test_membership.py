"""The head's side of a cluster against a scheduler that only answers, with time moved by hand."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.cluster.nodes import LOST_S
from dgpunet_dask.daemons.membership import REACH_AGAIN_S, SWEEP_S
from dgpunet_dask.errors import BadValue, CertificateRefused, DgpunetError, NewerFormat, NoSuchNode
from tests.unit.daemons.members import HEAD, Members, body, facts

REPORTS = [{"n": n, "kind": "note", "what": f"w{n}"} for n in (1, 2, 3)]


@pytest.fixture
async def members(home):
    return Members(home)


async def settle():
    """Let tasks that were made go on until they wait for something."""
    for _ in range(20):
        await asyncio.sleep(0)


# Heartbeats


async def test_the_first_heartbeat_names_the_cards_and_lets_workers_run(members):
    answer = await members.beat()
    assert answer["names"] == {"GPU-1": "rtx3090-0"}
    assert (answer["run_workers"], answer["need_facts"], answer["lost"], answer["epoch"]) == (True, False, False, 1)
    row = await members.row()
    assert (row["state"], row["address"], row["roles"], row["seen_s_ago"]) == ("ready", "10.0.0.2", ["batch"], 0.0)
    assert [(d["name"], d["state"], d["worker_pid"]) for d in row["devices"]] == [("node-a/cpu", "lost", None), ("rtx3090-0", "lost", 41)]


async def test_facts_are_asked_for_until_they_come_and_nothing_changes_before(members):
    first = await members.beat(facts=None)
    again = await members.beat(facts=None)
    assert [(a["need_facts"], a["run_workers"]) for a in (first, again)] == [(True, None)] * 2
    assert (await members.now.me("node-a"))["facts_known"] is False
    assert (await members.beat())["run_workers"] is True
    kept = await members.beat(facts=None)
    assert (kept["need_facts"], kept["names"]) == (False, {"GPU-1": "rtx3090-0"})
    assert (await members.beat(facts=None, facts_digest="d2"))["need_facts"] is True


async def test_a_report_counts_once_although_its_acknowledgement_is_lost(members):
    assert (await members.beat(reports=REPORTS[:2]))["acked"] == 2
    assert (await members.beat(reports=REPORTS))["acked"] == 3
    assert (await members.beat(reports=REPORTS))["acked"] == 3
    assert [(r["n"], r["host"]) for r in members.now.reports] == [(1, "node-a"), (2, "node-a"), (3, "node-a")]


async def test_reports_count_once_although_the_agent_starts_again(members):
    await members.beat(reports=REPORTS, spool="s1")
    assert (await members.beat(boot="b2", reports=REPORTS, spool="s1"))["acked"] == 3
    assert len(members.now.reports) == 3
    assert (await members.beat(boot="b3", reports=REPORTS[:1], spool="s2"))["acked"] == 1  # its file was lost
    assert len(members.now.reports) == 4


async def test_another_boot_is_reached_again(members):
    await members.beat()
    await members.beat()
    await settle()
    assert members.scheduler.tried == {"node-a": 1}
    await members.beat(boot="b2")
    await settle()
    assert members.scheduler.tried == {"node-a": 2}


async def test_a_host_that_is_not_reached_is_tried_again_now_and_then(members):
    members.scheduler.unreachable = "a firewall"
    await members.beat()
    await settle()
    await members.beat()
    assert (await members.row())["unreachable"] == "a firewall"
    members.scheduler.unreachable = None
    members.passed(REACH_AGAIN_S)
    for _ in range(3):
        await members.beat()
        await settle()
    assert (await members.row())["unreachable"] is None
    assert members.scheduler.tried == {"node-a": 2}


async def test_what_is_kept_of_a_host_that_boots_for_ever_is_bounded(members):
    for number in range(50):
        await members.beat(boot=f"boot-{number}", reports=REPORTS)
    await settle()
    assert len(members.now._acked) == 1
    assert len(members.now._reaching) == 1


async def test_a_report_is_its_senders_whatever_it_says(members):
    await members.beat("node-b", address="10.0.0.3")
    await members.beat(reports=[{"n": 1, "kind": "note", "host": "node-b", "src": "node-b"}])
    assert [report["host"] for report in members.now.reports] == ["node-a"]


async def test_links_are_taken_from_their_sender_to_known_hosts_alone(members):
    await members.beat("node-b", address="10.0.0.3")
    told = [{"n": n, "kind": "link", "src": "node-b", "dst": dst, "bytes_per_s": 1e9, "rtt_s": 1e-4} for n, dst in enumerate(("node-b", "x" * 9, "y"), 1)]
    await members.beat(reports=told)
    assert [(row["src"], row["dst"]) for row in members.now.links.to_json()["links"]] == [("node-a", "node-b")]


async def test_a_fault_of_a_card_holds_its_host_back_once(members):
    fault = {"n": 1, "kind": "card_fault", "what": "Xid 79", "cordon": True}
    assert (await members.beat(reports=[fault]))["why"] == "Xid 79"
    assert (await members.row())["state"] == "cordoned"
    await members.now.node_action("node-a", "uncordon", {})
    await members.beat(reports=[fault])
    assert (await members.row())["state"] == "ready"


async def test_what_stands_in_the_way_of_a_host_is_shown_with_it(members):
    members.scheduler.unreachable = "the port is filtered"
    await members.beat()
    await settle()
    assert (await members.row())["unreachable"] == "the port is filtered"
    await members.beat()
    assert (await members.row())["unreachable"] == "the port is filtered"


async def test_software_that_cannot_work_is_refused_with_the_reason(members):
    other = {"python": "2.7.1", "distributed": "1.0.0", "dgpunet_dask": "0.0.1"}
    answer = await members.beat(facts=facts(("GPU-1", "a-0"), software=other))
    assert answer["run_workers"] is False
    assert answer["why"]
    row = await members.row()
    assert (row["state"], row["why"]) == ("refused", answer["why"])
    await members.beat()
    assert (await members.row())["state"] == "ready"


# Lost, and back


async def test_silence_loses_a_host_once_and_its_return_restarts_its_workers(members):
    await members.beat()
    members.passed(LOST_S)
    await members.now.look()
    assert not members.scheduler.asked_for("dgpunet_lose")
    members.passed(0.1)
    for _ in range(3):
        await members.now.look()
    assert members.scheduler.asked_for("dgpunet_lose") == [{"host": "node-a"}]
    assert (await members.row())["state"] == "lost"
    assert (await members.beat())["lost"] is True
    assert (await members.row())["state"] == "ready"


async def test_the_order_to_restart_is_given_until_the_workers_are_others(members):
    await members.beat()
    members.passed(LOST_S + 1)
    await members.now.look()
    assert [(await members.beat())["lost"] for _ in range(3)] == [True] * 3  # answers that may not have arrived
    gone = [{"device": "rtx3090-0", "pid": None, "state": "waiting"}]
    new = [{"device": "rtx3090-0", "pid": 42, "state": "running"}]
    assert [(await members.beat(workers=rows))["lost"] for rows in (gone, new)] == [False, False]


async def test_a_host_without_workers_has_none_to_restart(members):
    await members.beat()
    members.passed(LOST_S + 1)
    await members.now.look()
    assert (await members.beat(workers=[]))["lost"] is False
    assert (await members.beat())["lost"] is False


async def test_an_agent_that_says_goodbye_is_stopped_and_its_workers_leave(members):
    await members.beat()
    await members.now.leave("node-a")
    assert (await members.row())["state"] == "stopped"
    members.passed(LOST_S * 5)
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_lose") == [{"host": "node-a"}]
    await members.beat()
    assert (await members.row())["state"] == "ready"


# Held back


async def test_what_is_held_is_told_once_and_again_to_the_next_scheduler(members):
    await members.beat()
    row = await members.now.node_action("node-a", "cordon", {})
    assert row["state"] == "cordoned"
    want = {"rtx3090-0": "cordoned", "node-a/cpu": "cordoned"}
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_hold") == [{"holds": want}]
    members.now.scheduler_lost()
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_hold") == [{"holds": want}] * 2
    await members.now.node_action("node-a", "uncordon", {})
    assert members.scheduler.held == {}


async def test_holding_works_while_the_scheduler_is_away(members):
    await members.beat()
    members.scheduler.away = True
    assert (await members.now.node_action("node-a", "cordon", {}))["state"] == "cordoned"
    with pytest.raises(DgpunetError):
        await members.now.look()
    members.scheduler.away = False
    await members.now.look()
    assert set(members.scheduler.held) == {"rtx3090-0", "node-a/cpu"}


async def test_a_drain_waits_for_tasks_and_then_lets_the_workers_leave(members):
    await members.beat()
    members.scheduler.hosts = {"node-a": {"workers": ["tls://w"], "tasks": 1}}
    assert (await members.now.node_action("node-a", "drain", {"deadline_s": 60}))["state"] == "draining"
    await members.now.look()
    await settle()
    assert members.scheduler.retired == []
    assert (await members.beat())["run_workers"] is True
    members.scheduler.hosts["node-a"]["tasks"] = 0
    await members.now.look()
    await settle()
    assert members.scheduler.retired == ["tls://w"]
    assert (await members.row())["state"] == "drained"
    assert (await members.beat())["run_workers"] is False


async def test_a_drain_ends_at_its_deadline_whatever_runs(members):
    await members.beat()
    members.scheduler.hosts = {"node-a": {"workers": ["tls://w"], "tasks": 3}}
    await members.now.node_action("node-a", "drain", {"deadline_s": 60})
    members.passed(59.0)
    await members.beat()
    await members.now.look()
    await settle()
    assert (await members.row())["state"] == "draining"
    members.passed(1.1)
    await members.now.look()
    await settle()
    assert members.scheduler.retired == ["tls://w"]
    assert members.now.roll.nodes["node-a"].hold == "drained"


async def test_uncordon_while_workers_leave_brings_the_host_back(members):
    await members.beat()
    members.scheduler.hosts = {"node-a": {"workers": ["tls://w"], "tasks": 0}}
    members.scheduler.may_retire.clear()
    await members.now.node_action("node-a", "drain", {})
    await members.now.look()
    await members.scheduler.retiring.wait()
    await members.now.node_action("node-a", "uncordon", {})
    members.scheduler.may_retire.set()
    await settle()
    assert (await members.row())["state"] == "ready"
    assert (await members.beat())["run_workers"] is True


async def test_a_drain_that_takes_long_delays_nothing_else(members):
    await members.beat()
    await members.beat("node-b", address="10.0.0.3", facts=facts())
    members.scheduler.hosts = {"node-a": {"workers": ["tls://w"], "tasks": 0}}
    members.scheduler.may_retire.clear()
    await members.now.node_action("node-a", "drain", {})
    await asyncio.wait_for(members.now.look(), 5)
    await members.scheduler.retiring.wait()
    members.passed(LOST_S + 1)
    await members.beat()
    await asyncio.wait_for(members.now.look(), 5)
    assert members.scheduler.asked_for("dgpunet_lose") == [{"host": "node-b"}]
    members.scheduler.may_retire.set()
    await settle()
    assert members.scheduler.retired == ["tls://w"]  # once, however often it was looked at meanwhile


async def test_workers_that_cannot_hand_over_are_ended(members):
    async def broken(workers):
        raise OSError("the comm is closed")

    members.now.reach = members.scheduler.reach().__class__(**{**vars(members.now.reach), "retire": broken})
    await members.beat()
    members.scheduler.hosts = {"node-a": {"workers": ["tls://w"], "tasks": 0}}
    await members.now.node_action("node-a", "drain", {})
    await members.now.look()
    await settle()
    assert members.scheduler.asked_for("dgpunet_lose") == [{"host": "node-a"}]
    assert (await members.row())["state"] == "drained"


@pytest.mark.parametrize("deadline", ["soon", -1, float("nan"), float("inf"), True, [], {}])
async def test_a_deadline_that_is_none_is_refused_and_changes_nothing(members, deadline):
    await members.beat()
    with pytest.raises(BadValue):
        await members.now.node_action("node-a", "drain", {"deadline_s": deadline})
    assert (await members.row())["state"] == "ready"


@pytest.mark.parametrize("action", ["cordon", "uncordon", "drain", "remove"])
async def test_a_host_that_nobody_knows_is_not_found(members, action):
    with pytest.raises(NoSuchNode, match="nodex"):
        await members.now.node_action("nodex", action, {})


# Removed


async def test_a_removed_host_is_out_at_once_and_leaves_nothing(members):
    await members.beat()
    await members.beat("node-b", address="10.0.0.3", facts=facts())
    await members.beat(reports=[{"n": 1, "kind": "link", "dst": "node-b", "bytes_per_s": 1e9, "rtt_s": 1e-4}])
    await members.now.node_action("node-a", "remove", {})
    assert [row["host"] for row in await members.now.nodes()] == ["node-b"]
    assert members.scheduler.asked_for("dgpunet_expel") == [{"host": "node-a"}]
    assert members.now.links.to_json()["links"] == []
    with pytest.raises(CertificateRefused, match="removed"):
        await members.beat()
    assert [row["host"] for row in await members.now.nodes()] == ["node-b"]


async def test_the_heads_own_host_stays(members):
    await members.beat(HEAD, address="10.0.0.1")
    with pytest.raises(BadValue, match="down"):
        await members.now.node_action(HEAD, "remove", {})
    assert (await members.row(HEAD))["state"] == "ready"


async def test_devices_that_are_in_no_machine_any_more_leave_the_fleet(members):
    await members.beat()
    members.scheduler.devices = [
        {"name": "rtx3090-0", "host": "node-a", "state": "lost"}, {"name": "old-0", "host": "node-a", "state": "lost"},
        {"name": "odd-0", "host": "node-a", "state": "running"},
    ]  # fmt: skip
    members.passed(LOST_S + SWEEP_S)
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_forget") == [{"devices": ["old-0"]}]


async def test_nobody_is_a_stranger_before_all_had_time_to_be_heard_of(members):
    await members.beat("node-a")
    members.home.nodes_file.write_text("{damaged")
    members.start()
    members.scheduler.hosts = {host: {"workers": [f"tls://{host}"], "tasks": 1} for host in ("node-a", "node-b")}
    await members.now.look()
    await members.beat("node-a")
    members.passed(LOST_S - 1)
    await members.beat("node-a")
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_expel") == []
    members.passed(SWEEP_S + 1)
    await members.beat("node-a")
    await members.now.look()
    assert members.scheduler.asked_for("dgpunet_expel") == [{"host": "node-b"}]


# Heads come and go


async def test_the_next_head_knows_the_hosts_and_what_was_held(members):
    await members.beat()
    await members.now.node_action("node-a", "drain", {"deadline_s": 60})
    before = members.now
    members.start()
    assert members.now.roll.epoch == before.roll.epoch + 1
    assert members.now.roll.nodes == before.roll.nodes
    assert (await members.row())["state"] == "draining"
    answer = await members.beat(facts=None)
    assert (answer["names"], answer["run_workers"], answer["epoch"]) == ({"GPU-1": "rtx3090-0"}, None, 2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '{"version": 1}', '{"version": 1, "epoch": 1, "nodes": [7]}', '{"version": 1, "epoch": "x", "nodes": []}',
             '{"version": "1", "epoch": 1, "nodes": []}', '{"version": 1, "epoch": 1, "nodes": [{"host": "a", "roles": [], "cards": []}]}']
)  # fmt: skip
async def test_a_damaged_file_is_set_aside_and_hosts_appear_again(members, text, caplog):
    await members.beat()
    members.home.nodes_file.write_text(text)
    with caplog.at_level(logging.ERROR):
        members.start()
    assert "set aside" in caplog.text
    assert members.home.nodes_file.with_name("nodes.json.damaged").read_text() == text
    assert await members.now.nodes() == []
    assert (await members.beat())["names"] == {"GPU-1": "rtx3090-0"}


@pytest.mark.parametrize("name", ["nodes_file", "links_file"])
async def test_a_file_of_a_newer_release_stops_the_head_and_stays(members, name):
    await members.beat()
    file = getattr(members.home, name)
    file.write_text('{"version": 99, "nodes": [], "links": []}')
    with pytest.raises(NewerFormat, match="99"):
        members.start()
    assert json.loads(file.read_text())["version"] == 99


async def test_nodes_are_listed_while_the_scheduler_is_away(members):
    await members.beat()
    members.scheduler.away = True
    assert [row["host"] for row in await members.now.nodes()] == ["node-a"]


async def test_following_goes_on_while_the_scheduler_is_away(members, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.daemons.membership.PERIOD_S", 0.001)
    await members.beat()
    members.scheduler.away = True
    following = asyncio.create_task(members.now.run())
    async with asyncio.timeout(10):
        while members.scheduler.unheard < 3:  # noqa: ASYNC110  # nothing announces a look
            await asyncio.sleep(0.001)
    await members.now.node_action("node-a", "cordon", {})
    members.scheduler.away = False
    await asyncio.wait_for(members.scheduler.told.wait(), 10)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


# A host that means ill

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LARGE = [["x"] * 5000, "x" * 5000, 10**30, {"n": 1}, [{}] * 5000, [[]], [{"device": 1}], [{"n": True, "kind": "link"}], [{"device": "a", "pid": []}]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(sorted(body())), value=VALUES | st.sampled_from(LARGE))
async def test_whatever_a_host_says_the_others_are_as_before(members, part, value):
    """Either it is refused and changes nothing, or everybody can still be shown, examined and answered."""
    await members.beat("node-b", address="10.0.0.3")
    other, before = members.now.roll.nodes["node-b"], members.now.roll
    try:
        json.dumps(await members.beat("node-a", **{part: value}))
    except BadValue:
        assert members.now.roll == before
    assert members.now.roll.nodes["node-b"] == other
    json.dumps([await members.now.nodes(), await members.now.doctor({}), await members.now.me("node-b")])
    json.dumps(await members.beat("node-b", address="10.0.0.3"))
    await members.now.look()


@pytest.mark.parametrize("part", ["address", "peer_port", "boot"])
async def test_what_every_heartbeat_must_say_is_asked_for(members, part):
    said = body()
    del said[part]
    with pytest.raises(BadValue, match=part):
        await members.now.heartbeat("node-a", said)
    assert members.now.roll.nodes == {}


@pytest.mark.parametrize(
    "cards",
    [[["GPU-1"]], [["GPU-1", "a-0", 3]], [["GPU-1", "node-b/cpu"]], [["GPU-1", "../x"]], [["GPU-1", ""]], [["GPU-1", "a\n"]], [["GPU-1", "a" * 65]],
     [[{}, "a-0"]], [["", "a-0"]], "ab", 7, [["GPU-1", "a-0"]] * 129],
)  # fmt: skip
async def test_cards_that_are_none_are_refused(members, cards):
    with pytest.raises(BadValue):
        await members.beat(facts={**facts(), "cards": cards})


async def test_nobody_takes_the_name_of_anothers_card(members):
    await members.beat("node-b", address="10.0.0.3", facts=facts(("GPU-9", "rtx3090-0")))
    answer = await members.beat(facts=facts(("GPU-1", "rtx3090-0"), ("GPU-9", "rtx3090-1"), ("GPU-9", "rtx3090-0")))
    assert "rtx3090-0" not in answer["names"].values()
    assert (await members.beat("node-b", address="10.0.0.3", facts=None))["names"] == {"GPU-9": "rtx3090-0"}


async def test_a_card_that_fell_off_its_bus_comes_back_under_its_own_name(members):
    both = facts(("GPU-1", "rtx3090-0"), ("GPU-2", "rtx3090-1"))
    await members.beat(facts=both)
    alone = await members.beat(facts=facts(("GPU-2", "rtx3090-0")), facts_digest="d2")
    assert alone["names"] == {"GPU-2": "rtx3090-1"}
    newcomer = await members.beat("node-b", address="10.0.0.3", facts=facts(("GPU-3", "rtx3090-0")))
    assert newcomer["names"] == {"GPU-3": "rtx3090-2"}
    members.start()
    back = await members.beat(facts=both)
    assert back["names"] == {"GPU-1": "rtx3090-0", "GPU-2": "rtx3090-1"}
