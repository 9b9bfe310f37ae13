"""What the ledger answers: jobs, units, leases, commits."""

from __future__ import annotations

import pytest

from dgpunet_dask.errors import KeyReused, NoSuchJob
from dgpunet_dask.jobs import lease_steps
from dgpunet_dask.jobs.evidence import told_state
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.jobs.states import first_epoch
from tests.unit.jobs.ledgers import Held, commits, held, leased, new_job, running


@pytest.fixture
def one(tmp_path):
    with held(tmp_path / "ledger.db") as opened:
        yield opened
        assert opened.faults() == []


# Jobs


def test_a_job_comes_back_as_it_was_given(one: Held) -> None:
    given = new_job(params={"path": "/x", "n": [1]}, owner="ann", operates=True, shared=True, array_id="a", allow_failed=2, retry=1)
    (row,) = one.submit([given])
    assert row == one.job("j") == one.jobs()[0]
    assert {name: getattr(row, name) for name in vars(given)} == vars(given)
    assert (row.state, row.tries, row.total, row.error) == ("queued", 0, None, None)
    assert JobRow.from_json(row.to_json()) == row


def test_the_same_submission_is_one(one: Held) -> None:
    first = one.submit([new_job("a", key="k", owner="ann", array_id="x"), new_job("b", key="k", owner="ann", array_id="x", params={"n": 2})])
    again = one.submit([new_job("c", key="k", owner="ann", array_id="y"), new_job("d", key="k", owner="ann", array_id="y", params={"n": 2})])
    assert [row.job_id for row in again] == [row.job_id for row in first] == ["a", "b"]
    assert len(one.jobs()) == 2


def test_a_key_is_its_owner_s(one: Held) -> None:
    for owner in (None, "ann", "bob"):
        one.submit([new_job(f"of-{owner}", key="k", owner=owner)])
    assert len(one.jobs()) == 3


def test_a_key_with_other_content_is_refused(one: Held) -> None:
    one.submit([new_job("a", key="k")])
    with pytest.raises(KeyReused, match=r"'k'.*\(a\)"):
        one.submit([new_job("b", key="k", params={"n": 2})])
    assert [row.job_id for row in one.jobs()] == ["a"]


def test_a_submission_is_accepted_whole_or_not_at_all(one: Held) -> None:
    with pytest.raises(NoSuchJob):
        one.submit([new_job("a"), new_job("b", after=("a", "missing"))])
    assert one.jobs() == []
    assert [row.after for row in one.submit([new_job("a"), new_job("b", after=("a",))])] == [(), ("a",)]


def test_a_key_ends_with_the_last_of_its_jobs(one: Held) -> None:
    one.submit([new_job("a", key="k"), new_job("b", key="k")])
    for job_id in "ab":
        one.move(job_id, "cancelled")
    one.forget("a")
    with pytest.raises(KeyReused):
        one.submit([new_job("c", key="k", params={"n": 2})])
    one.forget("b")
    assert one.submit([new_job("c", key="k", params={"n": 2})])[0].job_id == "c"


def test_a_job_is_tried_again_under_its_id(one: Held) -> None:
    one.submit([new_job()])
    one.clock.now = 10.0
    assert (one.move("j", "running").started_s, one.job("j").tries) == (10.0, 1)
    one.clock.now = 20.0
    ended = one.move("j", "failed", error={"code": "x"}, exit_code=100, metrics={"tokens": 1})
    assert (ended.ended_s, ended.error, ended.exit_code, ended.metrics) == (20.0, {"code": "x"}, 100, {"tokens": 1})
    queued = one.move("j", "queued")
    assert (queued.started_s, queued.ended_s, queued.error, queued.exit_code, queued.metrics) == (None, None, None, 0, {"tokens": 1})
    assert one.move("j", "running").tries == 2
    assert [e["state"] for e in one.events("j")] == ["running", "failed", "queued", "running"]


def test_a_job_that_failed_goes_to_its_next_try_in_one_step(one: Held) -> None:
    running(one)
    epoch = leased(one)
    before = one.written
    row = one.again("j", error={"code": "x"}, exit_code=100)
    assert (row.state, row.tries, row.error, row.exit_code) == ("running", 2, None, 0)
    assert one.written == before + 1
    assert not commits(one, "u", epoch)
    assert [e.get("error") for e in one.events("j")][1:4] == [{"code": "x"}, None, None]
    one.move("j", "cancelled")
    with pytest.raises(ValueError, match="cancelled to failed"):
        one.again("j", error={"code": "x"}, exit_code=100)


def test_a_move_that_the_table_does_not_know_is_refused(one: Held) -> None:
    one.submit([new_job()])
    with pytest.raises(ValueError, match="queued to done"):
        one.move("j", "done")
    with pytest.raises(NoSuchJob):
        one.move("missing", "running")


def test_an_ended_job_holds_no_lease(one: Held) -> None:
    running(one)
    epoch = leased(one)
    one.move("j", "cancelled")
    assert [a.state for a in one.attempts("j")] == ["lost"]
    assert one.unit("j", "u").state == "ready"
    assert not commits(one, "u", epoch)
    with pytest.raises(ValueError, match="of a job that runs"):
        one.lease("j", "u")


def test_forgetting_a_job_leaves_nothing_of_it(one: Held) -> None:
    running(one)
    commits(one, "u", leased(one))
    with pytest.raises(ValueError, match="running"):
        one.forget("j")
    one.move("j", "cancelled")
    one.forget("j")
    assert [one.sql(f"SELECT count(*) FROM {table}") for table in ("jobs", "units", "attempts", "tallies")] == [[(0,)]] * 4
    assert one.events("j") == []
    assert [e["kind"] for e in one.events()] == ["boot", "forgotten"]


# Passes


def test_what_is_committed_comes_back_committed_in_the_next_pass(one: Held) -> None:
    first = running(one)
    epoch = leased(one, "u", 0)
    commits(one, "u", epoch)
    leased(one, "v", 1)
    second = one.begin_pass("j")
    assert second == first + 1
    found = one.offer("j", 5, "u", second)
    assert (found.state, found.number, found.epoch, found.results, found.counts) == ("committed", 5, epoch, {"leaf": "ab" * 32}, {"tokens": 3})
    assert one.offer("j", 1, "v", second).state == "leased"
    assert one.counts("j").reused == 0  # in the same try it is the job's own work


def test_what_failed_in_an_earlier_try_comes_back_ready_and_in_this_one_failed(one: Held) -> None:
    running(one)
    for number, to in enumerate(("failed", "quarantined")):
        one.fail("j", to, leased(one, to, number), cause="user", evidence={"error_code": "x"}, to=to)
    again = one.begin_pass("j")
    assert [one.offer("j", n, u, again).state for n, u in enumerate(("failed", "quarantined"))] == ["failed", "quarantined"]
    assert one.counts("j").failed == 2
    one.move("j", "failed", error={"code": "x"}, exit_code=100)
    one.move("j", "queued")
    one.move("j", "running")
    again = one.begin_pass("j")
    assert [one.offer("j", n, u, again).state for n, u in enumerate(("failed", "quarantined"))] == ["ready", "ready"]
    assert one.counts("j").failed == 0


def test_what_the_source_gives_no_more_is_dropped_and_kept(one: Held) -> None:
    first = running(one)
    commits(one, "u", leased(one, "u", 0))
    one.offer("j", 1, "v", first)
    one.end_pass("j", first, 2)
    second = one.begin_pass("j")
    one.offer("j", 0, "w", second)
    one.end_pass("j", second, 1)
    assert [one.unit("j", u).state for u in "uvw"] == ["dropped", "dropped", "ready"]
    assert (one.counts("j").total, one.counts("j").done) == (1, 0)
    third = one.begin_pass("j")
    assert [one.offer("j", n, u, third).state for n, u in enumerate("uv")] == ["committed", "ready"]


def test_a_pass_that_ends_takes_the_leases_of_what_it_did_not_give(one: Held) -> None:
    first = running(one)
    epoch = leased(one, "u", 0)
    second = one.begin_pass("j")
    one.end_pass("j", second, 0)
    assert one.unit("j", "u").state == "dropped"
    assert not commits(one, "u", epoch)
    with pytest.raises(ValueError, match=f"of pass {first}"):
        one.offer("j", 0, "u", first)


def test_a_total_must_be_what_was_offered(one: Held) -> None:
    pass_ = running(one)
    one.offer("j", 0, "u", pass_)
    with pytest.raises(ValueError, match="1 units were offered"):
        one.end_pass("j", pass_, 2)


def test_a_source_that_has_ended_gives_no_more(one: Held) -> None:
    """Or a unit of an earlier pass would count in place of one that is not done."""
    running(one)
    commits(one, "u", leased(one))
    pass_ = one.begin_pass("j")
    one.offer("j", 0, "v", pass_)
    one.end_pass("j", pass_, 1)
    with pytest.raises(ValueError, match="ended"):
        one.offer("j", 1, "u", pass_)
    with pytest.raises(ValueError, match="done"):
        one.move("j", "done", exit_code=0)


def test_two_units_of_a_pass_have_two_places(one: Held) -> None:
    pass_ = running(one)
    one.offer("j", 0, "u", pass_)
    with pytest.raises(ValueError, match="refuses"):
        one.offer("j", 0, "v", pass_)


def test_committed_units_come_in_the_order_of_the_source(one: Held) -> None:
    running(one)
    for number, unit in ((2, "c"), (0, "a"), (1, "b")):
        commits(one, unit, leased(one, unit, number))
    assert [u.unit_id for u in one.committed("j")] == ["a", "b", "c"]
    assert [u.unit_id for u in one.committed("j", after=0, limit=1)] == ["b"]


# Leases


def test_a_lease_is_of_this_boot_and_every_one_is_another(one: Held) -> None:
    running(one)
    epochs = [leased(one, u, n) for n, u in enumerate("uv")]
    assert epochs == [first_epoch(1) + 1, first_epoch(1) + 2]


def test_a_unit_has_two_live_leases_at_most_one_of_them_speculative(one: Held) -> None:
    running(one)
    leased(one)
    with pytest.raises(ValueError, match="refuses"):
        one.lease("j", "u")
    one.lease("j", "u", speculative=True)
    with pytest.raises(ValueError, match="refuses"):
        one.lease("j", "u", speculative=True)
    with pytest.raises(NoSuchJob):
        one.lease("j", "missing")


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_of_two_leases_to_commit_wins(one: Held, winner: int) -> None:
    running(one)
    epochs = [leased(one), one.lease("j", "u", speculative=True)]
    assert commits(one, "u", epochs[winner], device="h/gpu0", host="h", seconds=1.5)
    assert not commits(one, "u", epochs[1 - winner])
    states = {a.epoch: (a.state, a.speculative, a.device, a.host, a.seconds) for a in one.attempts("j")}
    assert states[epochs[winner]] == ("committed", bool(winner), "h/gpu0", "h", 1.5)
    assert states[epochs[1 - winner]][0] == "stale"
    assert one.unit("j", "u").epoch == epochs[winner]
    assert [(e["kind"], e["epoch"]) for e in one.events("j") if e["kind"] == "refused"] == [("refused", epochs[1 - winner])]


def test_the_slower_lease_ends_when_the_other_commits(one: Held) -> None:
    running(one)
    slow, fast = leased(one), one.lease("j", "u", speculative=True)
    commits(one, "u", fast)
    assert {a.epoch: a.state for a in one.attempts("j")} == {slow: "beaten", fast: "committed"}


def test_a_commit_that_is_told_twice_is_one(one: Held) -> None:
    running(one)
    epoch = leased(one)
    assert commits(one, "u", epoch)
    assert commits(one, "u", epoch)
    assert not one.commit("j", "u", epoch, {"leaf": "cd" * 32}, counts={})
    assert one.unit("j", "u").results == {"leaf": "ab" * 32}


def test_a_committed_unit_is_not_leased(one: Held) -> None:
    running(one)
    commits(one, "u", leased(one))
    with pytest.raises(ValueError, match="not done"):
        one.lease("j", "u")


def test_a_unit_fails_only_when_no_other_of_its_leases_lives(one: Held) -> None:
    running(one)
    first, second = leased(one), one.lease("j", "u", speculative=True)
    assert one.fail("j", "u", first, cause="user", evidence={"errno": None}, device="h/gpu0", host="h", to="failed")
    assert one.unit("j", "u").state == "leased"
    assert one.fail("j", "u", second, cause="user", evidence={}, to="quarantined")
    assert not one.fail("j", "u", second, cause="user", evidence={}, to="failed")
    assert one.unit("j", "u").state == "quarantined"
    failed = one.attempts("j", unit_id="u")[0]
    assert (failed.cause, failed.evidence, failed.device, failed.host, failed.ended_s) == ("user", {"errno": None}, "h/gpu0", "h", 1000.0)


def test_a_cause_that_is_none_is_refused(one: Held) -> None:
    running(one)
    with pytest.raises(ValueError, match="refuses"):
        one.fail("j", "u", leased(one), cause="weather", evidence={})


def test_a_lost_attempt_gives_its_unit_back(one: Held) -> None:
    running(one)
    epoch = leased(one)
    assert one.lost("j", "u", epoch, cause="network", evidence={"host_lost": True})
    assert not one.lost("j", "u", epoch, evidence={})
    assert one.unit("j", "u").state == "ready"
    assert not commits(one, "u", epoch)
    assert [a.state for a in one.attempts("j")] == ["stale"]
    assert commits(one, "u", one.lease("j", "u"))


def test_an_attempt_whose_call_was_taken_over_counts_with_the_one_that_did(one: Held) -> None:
    running(one)
    first = leased(one)
    one.placed("j", "u", first, "g")
    one.lost("j", "u", first, evidence={})
    assert one.counts("j").attempts == 1
    second = one.lease("j", "u")
    one.placed("j", "u", second, "g")
    assert one.counts("j").attempts == 2
    commits(one, "u", second, adopted=True)
    assert one.counts("j").attempts == 1
    assert {a.epoch: (a.state, a.adopted) for a in one.attempts("j")} == {first: ("adopted", False), second: ("committed", True)}
    assert one.unit("j", "u").attempts == 2


def test_of_several_lost_attempts_the_last_one_s_call_was_taken_over(one: Held) -> None:
    running(one)
    leased(one)
    for _ in range(2):
        last = one.attempts("j")[-1].epoch
        one.placed("j", "u", last, "h/gpu0")
        one.lost("j", "u", last, evidence={})
        one.lease("j", "u")
    commits(one, "u", one.attempts("j")[-1].epoch, adopted=True)
    assert [a.state for a in one.attempts("j")] == ["lost", "adopted", "committed"]
    assert one.counts("j").attempts == 2


def test_a_damaged_result_is_computed_again(one: Held) -> None:
    running(one)
    epoch = leased(one)
    assert not one.damaged("j", "u", epoch, evidence={})
    commits(one, "u", epoch)
    assert one.damaged("j", "u", epoch, evidence={"missing": ["leaf"]})
    assert (one.unit("j", "u").state, one.unit("j", "u").results, one.counts("j").done) == ("ready", None, 0)
    assert commits(one, "u", one.lease("j", "u"))


def test_what_a_done_job_has_committed_stays(one: Held) -> None:
    pass_ = running(one)
    epoch = leased(one)
    commits(one, "u", epoch)
    one.end_pass("j", pass_, 1)
    one.move("j", "done")
    assert not one.damaged("j", "u", epoch, evidence={})
    assert (one.unit("j", "u").state, one.attempts("j")[-1].state, one.faults()) == ("committed", "committed", [])


def test_where_an_attempt_runs_is_known_before_it_ends(one: Held) -> None:
    running(one)
    one.placed("j", "u", leased(one), "h/gpu1", "h")
    assert [(a.device, a.host) for a in one.attempts("j")] == [("h/gpu1", "h")]


@pytest.mark.parametrize("large", [0, 1000])
def test_the_last_attempts_are_told_oldest_first(one: Held, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_steps, "_LARGE", large)
    running(one, "other")
    leased(one, "u", 0, "other")
    running(one)
    epochs = [leased(one, u, n) for n, u in enumerate("uvw")]
    for unit, epoch in zip("uvw", epochs, strict=True):
        one.placed("j", unit, epoch, "h/gpu0")
    leased(one, "v", 1, "other")
    assert [a.epoch for a in one.attempts("j", limit=2)] == epochs[1:]
    assert [a.unit_id for a in one.attempts("other")] == ["u", "v"]
    assert one.attempts("missing") == []
    assert [a.number for a in one.attempts("j", unit_id="v")] == [1]


def test_counts(one: Held) -> None:
    pass_ = running(one)
    commits(one, "u", leased(one, "u", 0))
    one.fail("j", "v", leased(one, "v", 1), cause="data", evidence={}, to="failed")
    waits = leased(one, "w", 2)
    one.end_pass("j", pass_, 3)
    assert one.counts("j").to_json() == {"total": 3, "done": 1, "reused": 0, "failed": 1, "attempts": 2}
    one.placed("j", "w", waits, None)
    one.placed("j", "w", waits, "g")
    assert one.counts("j").attempts == 3
    with pytest.raises(NoSuchJob):
        one.counts("missing")


def test_what_was_spent_is_told_by_device_for_all_committed_units(one: Held) -> None:
    running(one)
    commits(one, "u", leased(one, "u", 0), spent={"a": ("x", 1.5), "b": ("y", 2.0)}, device="y", seconds=3.5)
    commits(one, "v", leased(one, "v", 1), spent={"a": ("x", 0.5), "b": (None, 1.0)})
    commits(one, "w", leased(one, "w", 2), device="y", seconds=4.0)
    one.fail("j", "z", leased(one, "z", 3), cause="data", evidence={}, device="x", to="failed")
    assert one.spent("j") == {"x": (2, 2.0), "y": (2, 6.0)}
    assert one.spent("missing") == {}


def test_an_attempt_that_ends_with_its_job_has_not_failed(one: Held) -> None:
    running(one)
    one.placed("j", "u", leased(one), "h/gpu0")
    one.move("j", "cancelled")
    (row,) = one.attempts("j")
    assert (row.state, row.cause, row.evidence["why"], told_state(row)) == ("lost", None, "the job is cancelled", "cancelled")
