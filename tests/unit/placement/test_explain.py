"""What people read of a decision."""

from __future__ import annotations

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host, features_of
from dgpunet_dask.placement.explain import explain, headline, ranking, reasons, rows, table
from dgpunet_dask.placement.place import place

FLEET = Fleet(
    (Host(name="h", cpus=4, ram_mib=8192),),
    (
        Device(name="big", host="h", vram_mib=24 << 10, capability=(8, 6), features=features_of((8, 6)), speed=2.0),
        Device(name="small", host="h", vram_mib=8 << 10, capability=(8, 9), features=features_of((8, 9)), speed=1.0),
        Device(name="h/cpu", host="h", kind="cpu", speed=0.02),
    ),
)


def test_a_placed_unit_shows_the_ranking_and_who_did_not_come_in() -> None:
    assert explain(place(FLEET, Demand(vram="6GiB")), "embed").splitlines() == [
        "embed: on big",
        "1. big  100.0 = finish 100.0",
        "2. small  50.0 = finish 50.0",
        "device           reason       needs  has",
        "h/cpu   by rule  not_allowed  a GPU  a CPU",
    ]


def test_a_hopeless_unit_shows_every_reason_of_each_device() -> None:
    decision = place(FLEET, Demand(vram="30GiB", features=["fp8"]))
    assert explain(decision, "llm").splitlines() == [
        "llm: can never be placed on this fleet: 2 vram_total, 1 not_allowed",
        "device           reason       needs  has",
        "big     never    vram_total   30GiB  24GiB",
        "big     never    feature      fp8    bf16, flash-attention-2",
        "h/cpu   by rule  not_allowed  a GPU  a CPU",
        "small   never    vram_total   30GiB  8GiB",
    ]
    assert ranking(decision) == []
    assert {row.kind for row in rows(decision)} == {"never", "by rule"}


def test_a_waiting_unit_tells_never_from_not_now() -> None:
    busy = FLEET.with_charges([Charge(holder="unit-1", device="big", vram_mib=20 << 10)])
    decision = place(busy, Demand(vram="10GiB"))
    assert headline(decision) == "work: waits; no device will do now: 1 not_allowed, 1 vram_total, 1 vram_free"
    assert reasons(decision) == [
        "never  : small vram_total (needs 10GiB, has 8GiB)",
        "by rule: h/cpu not_allowed (needs a GPU, has a CPU)",
        "not now: big vram_free (needs 10GiB, has 4GiB)",
    ]
    assert [row[2:] for row in rows(decision) if row.device == "big"] == [
        ("vram_free", "10GiB", "4GiB"),
        ("busy", "a free unit slot", "running unit-1"),
    ]


def test_what_must_leave_first_is_told() -> None:
    idle = Charge(holder="chat", device="big", vram_mib=20 << 10, kind="resident", stage="chat", evictable=True)
    assert headline(place(FLEET.with_charges([idle]), Demand(vram="10GiB"))) == "work: on big, once chat has been unloaded"


def test_nothing_refused_has_no_table() -> None:
    assert table(place(Fleet(), Demand())) == ""
