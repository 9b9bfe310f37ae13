"""Links: whose turn it is, what they give, and when they have become slow."""

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.cluster.links import (
    EVERY_S,
    LOST_S,
    RETRY_S,
    Codec,
    Degraded,
    LinkTable,
    break_even,
    comm_compression,
    compress_for,
)
from dgpunet_dask.errors import NewerFormat

HOSTS = ["a", "b", "c", "d", "e"]


def noted(*rates: float, src: str = "a", dst: str = "b") -> LinkTable:
    table = LinkTable()
    for now, rate in enumerate(rates):
        table.note(src, dst, float(now), bytes_per_s=rate, rtt_s=0.002)
    return table


@given(st.integers(1, 6), st.integers(0, 30))
def test_every_link_gets_its_turn_and_no_two_share_a_host(count, seed):
    hosts, table, now, seen = [f"h{i}" for i in range(count)], LinkTable(), float(seed), set()
    for _ in range(count * count):
        ways = table.plan(hosts, now)
        for way in ways:
            table.begin(*way, now)
        assert len({host for way in ways for host in way}) == 2 * len(ways)
        assert table.plan(hosts, now) == [] or count > 2 * len(ways) + 1
        for way in ways:
            assert way not in seen
            seen.add(way)
            table.note(*way, now, bytes_per_s=1e9)
        now += 2
    assert seen == set(permutations(hosts, 2))
    assert table.plan(hosts, now) == []


def test_a_link_is_measured_again_when_its_time_has_come_the_longest_overdue_first():
    table = LinkTable()
    table.note("b", "a", 5.0, bytes_per_s=1e9)
    table.note("a", "b", 9.0, bytes_per_s=1e9)
    assert table.plan(["a", "b"], 5.0 + EVERY_S - 0.1) == []
    assert table.plan(["a", "b"], 9.0 + EVERY_S) == [("b", "a")]


def test_a_host_that_is_measured_or_busy_is_left_in_peace():
    table = LinkTable()
    table.begin("a", "b", 0.0)
    assert table.plan(["a", "b", "c"], 1.0) == []
    assert table.plan(["a", "b", "c", "d"], 1.0, busy=["c"]) == []
    assert table.plan(["a", "b", "c", "d"], 1.0) == [("c", "d")]
    assert table.plan(["a", "b"], LOST_S + 1) == [("b", "a")]  # what was handed out is lost, and not tried again at once


def test_a_failed_measurement_is_tried_again_soon_but_not_at_once():
    table = LinkTable()
    table.note("a", "b", 10.0, bytes_per_s=None, rtt_s=0.1)
    assert table.rate("a", "b") is None
    assert table.plan(["a", "b"], 11.0) == [("b", "a")]
    table.note("b", "a", 12.0, bytes_per_s=1e9)
    assert table.plan(["a", "b"], 11.0 + RETRY_S) == [("a", "b")]
    table.note("a", "b", 80.0, bytes_per_s=1e9)
    table.note("a", "b", 90.0, bytes_per_s=None)
    assert table.rate("a", "b") == 1e9


@pytest.mark.parametrize("state", ["running", "tried", "measured"])
def test_a_clock_that_is_set_back_stops_no_measuring(state):
    """A laptop's clock may be hours ahead until NTP has it."""
    table = LinkTable()
    for way in (("a", "b"), ("b", "a")):
        table.begin(*way, 9_000.0)
        if state != "running":
            table.note(*way, 9_000.0, bytes_per_s=1e9 if state == "measured" else None)
    assert table.plan(["a", "b"], 100.0) == [("a", "b")]


def test_a_rate_is_the_median_of_three():
    assert noted(1e9).rate("a", "b") == 1e9
    assert noted(1e9, 2e8, 1.1e9).rate("a", "b") == 1e9
    assert noted(9e9, 1e9, 1e9, 2e9).rate("a", "b") == 1e9
    assert LinkTable().rate("a", "b") is None


@pytest.mark.parametrize("odd", [0, -1.0, float("nan"), float("inf"), 10**400, True, "fast"])
def test_what_is_no_rate_changes_none(odd):
    table = noted(1e9)
    table.note("a", "b", 9.0, bytes_per_s=odd, rtt_s=odd)
    assert table.rate("a", "b") == 1e9
    assert table.links["a", "b"].rtt_s == 0.002


def test_degraded_is_less_than_seven_tenths_of_the_best_and_not_one_bad_measurement():
    table = noted(1e9, 1e9, 1e9)
    table.note("a", "b", 4.0, bytes_per_s=1e8)
    assert table.degraded() == []
    table.note("a", "b", 5.0, bytes_per_s=6.9e8)
    assert table.degraded() == [Degraded("a", "b", 6.9e8, 1e9)]
    assert table.degraded()[0].share == pytest.approx(0.69)
    for now in (6.0, 7.0):
        table.note("a", "b", now, bytes_per_s=7.1e8)
    assert table.degraded() == []
    assert table.baseline["a", "b"] == 1e9


def test_a_baseline_rises_with_the_link_and_falls_by_hand_alone():
    table = noted(1e8, 1e8, 1e8, 1e9, 1e9)
    assert table.baseline["a", "b"] == 1e9
    for now in range(10, 13):
        table.note("a", "b", float(now), bytes_per_s=1e8)
    assert len(table.degraded()) == 1
    table.reset_baseline()
    assert table.degraded() == []


def test_two_measurements_make_no_baseline():
    assert noted(9e9, 9e9).baseline == {}


def test_a_transfer_takes_half_a_round_trip_and_its_bytes():
    table = noted(1e9)
    assert table.transfer_s(10**9, "a", "b") == pytest.approx(1.001)
    assert table.transfer_s(10**9, "a", "a") == 0.0
    assert table.transfer_s(10**9, "b", "a") is None
    assert table.transfer_s(10**9, "b", "a", {"a": 2e9, "b": 5e8}) == pytest.approx(2.0)
    assert table.transfer_s(10**9, "a", "b", {"a": 1.0}) == pytest.approx(1.001)  # measured wins over stated


def test_a_table_comes_back_from_its_file():
    table = noted(1e9, 1e9, 1e9)
    table.note("b", "a", 3.0, bytes_per_s=None)
    back = LinkTable.from_json(json.loads(json.dumps(table.to_json())))
    assert (back.links, back.baseline) == (table.links, table.baseline)
    assert back.rates() == {("a", "b"): 1e9}


def test_hosts_that_left_are_forgotten():
    table = noted(1e9, 1e9, 1e9)
    table.keep_only(["a"])
    assert (table.rows(), table.baseline) == ([], {})
    assert table == LinkTable()


@pytest.mark.parametrize("raw", [None, [], {}, {"version": 1}, {"version": "1", "links": []}, {"version": 1, "links": [{}]}, {"version": 1, "links": 3}])
def test_a_damaged_file_is_told(raw):
    with pytest.raises(ValueError, match="no table of links"):
        LinkTable.from_json(raw)


def test_a_newer_file_is_refused():
    with pytest.raises(NewerFormat):
        LinkTable.from_json({"version": 2, "links": []})


LZ4 = Codec("lz4", 5e8, 2e9)
ZLIB = Codec("zlib", 4e7, 3e8)


@pytest.mark.parametrize(
    ("link", "ratio", "codec", "pays"),
    [
        (1.25e9, 0.5, LZ4, False),  # 10 GbE
        (1.25e8, 0.5, LZ4, True),  # 1 GbE, text
        (1.25e8, 0.5, ZLIB, False),
        (1e7, 0.4, ZLIB, True),  # Wi-Fi, text
        (1e7, 1.0, LZ4, False),  # embeddings
        (1e7, 1.2, LZ4, False),
        (1e7, float("nan"), LZ4, False),
        (None, 0.1, LZ4, False),
    ],
)
def test_compression_is_used_where_it_pays(link, ratio, codec, pays):
    assert compress_for(link, ratio, codec) is pays


@given(st.floats(0.01, 0.99), st.floats(1e6, 1e10))
def test_compression_pays_below_the_break_even(ratio, link):
    assert compress_for(link, ratio, LZ4) is (link < break_even(ratio, LZ4)) or link == pytest.approx(break_even(ratio, LZ4))


@pytest.mark.parametrize(
    ("rates", "available", "want"),
    [
        ([], ["lz4"], None),
        ([1.1e9] * 4, ["lz4", "zlib"], None),  # 10 GbE
        ([1.1e8] * 4, ["lz4", "zlib"], "lz4"),  # 1 GbE
        ([1.1e8] * 4, ["zlib"], None),
        ([5e6] * 4, ["zlib"], "zlib"),
        ([1.1e9, 1.1e9, 5e7], ["lz4"], "lz4"),  # one slow link takes most of the time
        ([1.1e9, 1.1e9, 9e8], ["lz4"], None),
        ([5e6], [], None),
    ],
)
def test_one_codec_for_a_cluster_where_it_pays(rates, available, want):
    assert comm_compression(rates, available) == want
