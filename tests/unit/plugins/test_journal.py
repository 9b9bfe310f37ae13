"""The last events, and what the scheduler learns by itself."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.placement.trace import EndRecord, FleetRecord, PlaceRecord, SubmitRecord, parse_trace
from dgpunet_dask.plugins.journal import Journal
from dgpunet_dask.plugins.observing import KEPT, Observer, run_seconds

CARD = Device(name="a", host="h", vram_mib=8192, model="RTX", speed=2.0)
FLEET = Fleet((Host(name="h"),), (CARD,))


def test_a_unit_leaves_its_whole_course() -> None:
    journal = Journal(lambda: 7.0, lambda: FLEET)
    journal.submitted("x", Demand(stage="embed"))
    journal.placed("x", ("a",), "41ab")
    journal.left("x", "done", ("a",), [{"action": "transfer", "start": 0, "stop": 9}, {"action": "compute", "start": 1, "stop": 3}], 2)
    told = journal.since(0)
    submit, fleet, place, end = parse_trace("\n".join(told["lines"]) + "\n", "log").records
    assert submit == SubmitRecord(7.0, "x", Demand(stage="embed"))
    assert isinstance(fleet, FleetRecord)
    assert place == PlaceRecord(7.0, "x", "placed", ("a",), fleet=fleet.fleet, policy="41ab")
    assert end == EndRecord(7.0, "x", "done", ("a",), 2.0, 2)


def test_who_asks_too_seldom_is_told_what_was_dropped() -> None:
    journal = Journal(lambda: 0.0, lambda: FLEET, most=3)
    for number in range(5):
        journal.submitted(str(number), Demand())
    told = journal.since(0)
    assert (len(told["lines"]), told["seq"], told["dropped"]) == (3, 5, 2)
    assert journal.since(5) == {"lines": [], "seq": 5, "dropped": 0}
    parts = [journal.since(2, most=2), journal.since(4, most=2)]
    assert [(len(p["lines"]), p["seq"]) for p in parts] == [(2, 4), (1, 5)]


def test_a_number_of_an_earlier_scheduler_begins_anew() -> None:
    journal = Journal(lambda: 0.0, lambda: FLEET)
    journal.submitted("x", Demand())
    assert journal.since(900)["seq"] == 1


def test_what_was_seen_is_folded_in_and_the_heads_word_comes_first() -> None:
    observer = Observer()
    for _ in range(KEPT + 5):
        observer.see("embed", None, CARD, 1.0, 2)
    assert observer.estimates == NO_ESTIMATES
    assert observer.news
    learned = observer.fold()
    assert (learned.run_s("embed", None, "RTX"), learned.work_s("embed", None)) == (pytest.approx(0.5), pytest.approx(1.0))
    observer.told = NO_ESTIMATES.with_run("embed", None, "RTX", 9.0)
    assert observer.fold().run_s("embed", None, "RTX") == 9.0


def test_only_computing_counts() -> None:
    assert run_seconds(None) is None
    assert run_seconds([{"action": "transfer", "start": 0, "stop": 1}]) is None
