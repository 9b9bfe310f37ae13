"""The head's table of links: whose turn, what is kept, what the scheduler is told."""

import json

import pytest

from dgpunet_dask.cluster.link_keeper import LinkKeeper
from dgpunet_dask.cluster.links import EVERY_S
from dgpunet_dask.errors import NewerFormat


class Clock:
    now = 1000.0

    def wall(self):
        return self.now

    monotonic = wall


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keeper(tmp_path, clock):
    return LinkKeeper(tmp_path / "links.json", clock)


def report(src, dst, rate):
    return {"src": src, "dst": dst, "bytes_per_s": rate, "rtt_s": 0.001}


def test_a_host_is_told_to_measure_when_it_is_its_turn_and_alone(keeper, clock):
    assert keeper.due("b", ["a", "b"]) is None  # a goes first
    assert keeper.due("a", ["a", "b"]) == "b"
    assert keeper.due("b", ["a", "b"]) is None
    keeper.measured(report("a", "b", 1e9))
    assert keeper.due("b", ["a", "b"]) == "a"
    keeper.measured(report("b", "a", None))
    assert keeper.due("a", ["a", "b"]) is None
    clock.now += EVERY_S
    assert keeper.due("b", ["a", "b"]) == "a"


def test_a_new_head_knows_what_the_last_one_measured(keeper, clock):
    for _ in range(3):
        keeper.measured(report("a", "b", 1e9))
    again = LinkKeeper(keeper.file, clock)
    assert again.to_json() == keeper.to_json()
    assert again.to_json()["baseline"] == [{"src": "a", "dst": "b", "bytes_per_s": 1e9}]
    assert keeper.file.stat().st_mode & 0o777 == 0o600


def test_the_scheduler_is_told_what_has_changed(keeper):
    assert keeper.news() is None
    keeper.measured(report("a", "b", 1e9))
    assert keeper.news() == [["a", "b", 1e9]]
    assert keeper.news() is None
    keeper.measured(report("a", "b", 1.05e9))
    assert keeper.news() is None
    keeper.measured(report("b", "a", 1e8))
    assert keeper.news() == [["a", "b", pytest.approx(1.025e9)], ["b", "a", 1e8]]
    keeper.forget(["a"])
    assert keeper.news() == []
    keeper.measured(report("a", "b", 1e9))
    keeper.told = None
    assert keeper.news() == [["a", "b", 1e9]]


@pytest.mark.parametrize("odd", [{}, {"src": "a"}, {"src": "a", "dst": "a"}, {"src": 1, "dst": ["b"]}, {"src": "a", "dst": "b", "bytes_per_s": "fast"}])
def test_odd_reports_change_nothing(keeper, odd):
    keeper.measured(odd)
    assert keeper.news() is None


def test_a_damaged_file_is_set_aside_and_a_newer_one_refused(keeper, tmp_path):
    keeper.file.write_text("{")
    assert keeper.news() is None
    assert (tmp_path / "links.json.damaged").read_text() == "{"
    keeper.file.write_text(json.dumps({"version": 99, "links": []}))
    with pytest.raises(NewerFormat):
        _ = LinkKeeper(keeper.file, Clock()).table


def test_a_baseline_can_be_taken_anew(keeper):
    for rate in (1e9, 1e9, 1e9, 1e8, 1e8, 1e8):
        keeper.measured(report("a", "b", rate))
    keeper.reset_baseline()
    assert keeper.to_json()["baseline"] == [{"src": "a", "dst": "b", "bytes_per_s": 1e8}]
