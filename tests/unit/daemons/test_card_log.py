"""Which of what befalls the cards is told, how often, and with which consequence."""

from __future__ import annotations

import pytest

from dgpunet_dask.daemons.card_log import HOT_SHARE, STAMP_S, WINDOW_S, XID_AGAIN_S, CardLog, evidence
from dgpunet_dask.hardware.card_facts import CardFacts
from dgpunet_dask.hardware.nvml import CardState
from dgpunet_dask.hardware.xids import XidEvent

LOST = CardState(present=False, lost=True, why="GPU is lost")
NAMES = {"GPU-a": "rtx3090-0", "GPU-b": "rtx5090-0", "MIG-1": "h100-0", "MIG-2": "h100-1"}


def card(uuid="GPU-a", index=0, **more):
    return CardFacts(index=index, uuid=uuid, **more)


def look(log, *facts, at=0.0, since_s=10.0, gone=None):
    return log.looked(facts, {} if gone is None else gone, NAMES, at=at, since_s=since_s)


def test_a_healthy_card_is_told_in_the_row_alone():
    log = CardLog()
    assert look(log, card(temperature_c=60, power_w=200.0, throttle=("sw_power_cap",), vram_mib=24576, used_mib=900)) == []
    row = log.row()["GPU-a"]
    assert (row["name"], row["present"], row["temperature_c"], row["power_w"]) == ("rtx3090-0", True, 60, 200.0)
    assert (row["throttle"], row["throttled_s"], row["xids"], row["energy_j"]) == (["sw_power_cap"], 0.0, [], None)
    assert row["pcie"] == {"generation": None, "generation_max": None, "width": None, "width_max": None}


def test_a_card_that_fell_off_is_told_once_until_it_is_back():
    log = CardLog()
    look(log, card(), card("GPU-b", 1))
    fallen = CardFacts(index=0, present=False, problem="GPU is lost")
    assert log.missing([fallen, card("GPU-b", 1)]) == ["GPU-a"]
    (told,) = look(log, fallen, card("GPU-b", 1), gone={"GPU-a": LOST}, at=7.0)
    assert told == {
        "kind": "card_fault", "uuid": "GPU-a", "device": "rtx3090-0", "what": "rtx3090-0: the card fell off the bus: GPU is lost",
        "cause": "hardware", "cordon": True, "xid": None, "at": 7.0,
    }  # fmt: skip
    assert look(log, fallen, card("GPU-b", 1), gone={"GPU-a": LOST}) == []
    assert look(log, card("GPU-b", 1), gone={"GPU-a": CardState(present=False, why="Not Found")}) == []
    row = log.row()
    assert (row["GPU-a"]["present"], row["GPU-a"]["name"], row["GPU-b"]["present"]) == (False, "rtx3090-0", True)
    (back,) = look(log, card(), card("GPU-b", 1))
    assert (back["kind"], back["uuid"]) == ("card_back", "GPU-a")
    assert log.row()["GPU-a"]["present"] is True
    assert len(look(log, card("GPU-b", 1), gone={"GPU-a": LOST})) == 1


def test_a_driver_that_is_away_is_no_lost_card():
    log = CardLog()
    look(log, card())
    assert look(log, gone={"GPU-a": CardState(None, why="there is no driver to ask")}) == []
    assert log.row()["GPU-a"]["present"] is None
    assert look(log, card()) == []


def test_instances_come_and_go_unless_their_card_is_lost():
    log = CardLog()
    look(log, card("MIG-1", mig_of="GPU-h"), card("MIG-2", mig_of="GPU-h"))
    assert look(log, card("MIG-1", mig_of="GPU-h"), gone={"MIG-2": CardState(present=False, why="Not Found")}) == []
    assert set(log.row()) == {"MIG-1"}
    assert [r["device"] for r in look(log, gone={"MIG-1": LOST})] == ["h100-0"]


@pytest.mark.parametrize(("xid", "cordon", "cause"), [(79, True, "hardware"), (94, False, "hardware"), (31, False, "workload"), (777, False, "hardware")])
def test_errors_have_their_consequence(xid, cordon, cause):
    log = CardLog()
    look(log, card())
    (told,) = log.heard([XidEvent("GPU-a", xid, 5.0)])
    assert (told["xid"], told["cordon"], told["cause"], told["device"], told["at"]) == (xid, cordon, cause, "rtx3090-0", 5.0)
    assert told["what"].startswith(f"rtx3090-0: Xid {xid}, ")
    assert log.row()["GPU-a"]["xids"] == [{"xid": xid, "count": 1, "at": 5.0, "severity": told["severity"]}]


def test_a_failed_call_is_told_the_errors_since_it_began_and_whether_its_card_is_hot():
    log = CardLog()
    look(log, card(throttle=("sw_thermal",)), card("GPU-b", 1, throttle=("sw_power_cap",)))
    log.heard([XidEvent("GPU-a", 31, 5.0), XidEvent("GPU-a", 79, 50.0), XidEvent("GPU-a", 79, 51.0)])
    row = log.row()
    assert evidence(row["GPU-a"], 50.5) == {"xid": [79], "thermal": True}
    assert evidence(row["GPU-a"], 5.0) == {"xid": [31, 79], "thermal": True}
    assert evidence(row["GPU-a"], 51.0 + STAMP_S + 0.1) == {"thermal": True}
    assert evidence(row["GPU-b"], 0.0) == evidence({}, 0.0) == {}


def test_errors_that_the_card_mends_are_counted_alone():
    log = CardLog()
    look(log, card())
    assert log.heard([XidEvent("GPU-a", 63, 5.0)] * 3) == []
    assert log.row()["GPU-a"]["xids"][0]["count"] == 3


def test_a_burst_of_one_error_is_told_once_a_minute_and_counted():
    log = CardLog()
    look(log, card())
    events = [XidEvent("GPU-a", 31, float(second)) for second in range(int(XID_AGAIN_S) + 1)]
    first, second = log.heard(events)
    assert (first["at"], second["at"]) == (0.0, XID_AGAIN_S)
    assert f"({XID_AGAIN_S - 1:.0f} more since it was last told)" in second["what"]
    assert len(log.heard([XidEvent("GPU-a", 13, 61.0)])) == 1
    assert log.row()["GPU-a"]["xids"][1]["count"] == len(events)


def test_an_error_of_a_split_or_unknown_card_is_told_all_the_same():
    log = CardLog()
    look(log, card("MIG-1", mig_of="GPU-h"), card("MIG-2", mig_of="GPU-h"))
    (told,) = log.heard([XidEvent("GPU-h", 95, 1.0)])
    assert (told["uuid"], told["device"], told["cordon"]) == ("GPU-h", "h100-0, h100-1", True)
    assert [row["xids"][0]["xid"] for row in log.row().values()] == [95, 95]
    (told,) = log.heard([XidEvent(None, 79, 1.0)])
    assert told["what"].startswith("a card: Xid 79")


def test_heat_is_told_once_it_has_lasted_and_again_after_it_was_over():
    log, seconds = CardLog(), HOT_SHARE * WINDOW_S
    hot, cold = card(throttle=("hw_slowdown", "hw_thermal")), card(throttle=("sw_power_cap",))
    looks = int(seconds / 10)
    assert [look(log, hot, at=10.0 * n) for n in range(looks)] == [[]] * looks
    (told,) = look(log, hot, at=10.0 * looks)
    assert (told["cordon"], told["cause"], told["severity"]) == (False, "hardware", "warning")
    assert "too hot for 40 s of the last 10 min" in told["what"]
    assert look(log, hot, at=10.0 * (looks + 1)) == []
    assert look(log, cold, at=WINDOW_S + 10 * looks) == []
    assert log.row()["GPU-a"]["throttled_s"] == 10.0
    again = [look(log, hot, at=2 * WINDOW_S + 100 + 10.0 * n) for n in range(looks + 1)]
    assert [len(reports) for reports in again] == [0] * looks + [1]
