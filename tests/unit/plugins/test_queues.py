"""The order in which waiting work is served, without Dask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.placement.order import PATIENCE
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.plugins.queues import Queue, Queues
from dgpunet_dask.plugins.records import DecisionLog, Pins, Record, Signature, Signatures


def task(key: str, priority: tuple[int, ...], **restrictions: Any) -> Any:
    none = {"worker_restrictions": None, "host_restrictions": None, "resource_restrictions": None, "loose_restrictions": False}
    return SimpleNamespace(key=key, priority=priority, state="no-worker", **none | restrictions)


def always(record: Record) -> bool:
    return True


@given(st.lists(st.one_of(st.integers(0, 9), st.none()), max_size=40))
def test_a_queue_gives_the_lowest_priority_first_and_equal_ones_in_order_of_arrival(steps: list[int | None]) -> None:
    queue, model = Queue(Signature(Demand()), None), []
    for number, step in enumerate(steps):
        if step is not None:
            queue.push(Record(task(str(number), (step,)), queue.signature))
            model.append((step, number))
        elif model:
            first = min(model)
            model.remove(first)
            head = queue.head(always)
            assert head is not None
            assert head.key == str(first[1])
            queue.pop()
    assert len(queue) == len(model)


def test_tasks_that_have_moved_on_are_dropped() -> None:
    queue = Queue(Signature(Demand()), None)
    for i in range(3):
        queue.push(Record(task(str(i), (i,)), queue.signature))
    head = queue.head(lambda record: record.key == "2")
    assert head is not None
    assert (head.key, len(queue)) == ("2", 1)
    assert queue.head(lambda record: False) is None


def in_order(queues: Queues) -> list[Queue]:
    return sorted(queues.waiting(always), key=lambda queue: queue.standing(lambda user: 0.0))


def two_queues() -> tuple[Queues, Queue, Queue, Pool]:
    pool, queues = Pool(), Queues()
    for name, gib in (("a", 8), ("b", 24)):
        pool.add_device(Device(name=name, host="h", vram_mib=gib << 10), Host(name="h"))
    for number, gib in enumerate((4, 20)):
        queues.push(Record(task(str(number), (number,)), Signature(Demand(vram=f"{gib}GiB"))), lambda s: pool.plan(s.demand))
    small, large = in_order(queues)
    return queues, small, large, pool


def test_a_head_that_is_passed_too_often_goes_first() -> None:
    queues, small, large, pool = two_queues()
    for _ in range(PATIENCE):
        assert in_order(queues) == [small, large]
        queues.passed(small, pool.slot("b").kind, "b")
    assert large.aged
    assert in_order(queues) == [large, small]
    large.push(Record(task("9", (9,)), large.signature))
    large.pop()
    assert not large.aged


def test_placements_on_devices_that_the_head_cannot_use_do_not_age_it() -> None:
    queues, small, large, pool = two_queues()
    for _ in range(PATIENCE):
        queues.passed(small, pool.slot("a").kind, "a")
    assert (large.passed, small.passed) == (0, 0)
    large.only = frozenset({"a"})
    queues.passed(small, pool.slot("b").kind, "b")
    assert large.passed == 0


def test_more_urgent_work_does_not_age_less_urgent_work() -> None:
    pool, queues = Pool(), Queues()
    pool.add_device(Device(name="a", host="h", vram_mib=8192), Host(name="h"))
    for number, priority in enumerate(("idle", "interactive")):
        signature = Signature(Demand(vram="1GiB", priority=priority))
        queues.push(Record(task(str(number), (number,)), signature), lambda s: pool.plan(s.demand))
    urgent, idle = in_order(queues)
    assert (urgent.signature.demand.priority, idle.signature.demand.priority) == ("interactive", "idle")
    for _ in range(PATIENCE):
        queues.passed(urgent, pool.slot("a").kind, "a")
        queues.passed(idle, pool.slot("a").kind, "a")
    assert (idle.aged, urgent.aged) == (False, True)


def test_equal_demands_and_pins_share_a_signature() -> None:
    signatures = Signatures()
    one = signatures.of({"vram": "4GiB"}, None)
    assert signatures.of(Demand(vram="4096MiB"), None) is one
    assert signatures.of({"vram": "4GiB", "inputs": {"a": 3}}, None) is not one
    pins = Pins.of(task("x", (0,), worker_restrictions={"tcp://1"}, resource_restrictions={"FOO": 1}))
    assert pins == Pins(frozenset({"tcp://1"}), resources=(("FOO", 1),))
    assert signatures.of({"vram": "4GiB"}, pins) is not one
    assert Pins.of(task("x", (0,))) is None


def test_a_demand_that_cannot_be_read_is_an_error_of_its_own() -> None:
    signatures = Signatures()
    for wrong in (3, {"vram": 3}, {"what": 1}, {"inputs": 5}, None):
        error = signatures.of(wrong, None).error
        assert error is not None
        assert error.code == "bad_value"


def test_the_decision_log_is_bounded_and_counts_on() -> None:
    log = DecisionLog(most=3)
    for i in range(5):
        log.add(str(i), "s", "d", i, i, None, None, "batch", None)
    assert [(e["seq"], e["key"]) for e in log.since(0)] == [(3, "2"), (4, "3"), (5, "4")]
    assert [e["seq"] for e in log.since(4)] == [5]
    assert log.since(5) == log.since(99) == []
