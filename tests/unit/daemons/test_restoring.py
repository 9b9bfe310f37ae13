"""A ledger is put back from a copy, or made anew, and nothing that was committed on this disk is lost by it."""

from __future__ import annotations

import json
import shutil

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import restoring
from dgpunet_dask.daemons.restoring import UNKNOWN_BOOTS, check, rebuild_anew, restore
from dgpunet_dask.errors import DamagedFile, MissingPath, UnreadablePath, UsageError
from dgpunet_dask.jobs.accepting import shipped_digests
from dgpunet_dask.jobs.states import boot_of
from tests.unit.daemons.ledger_homes import Kept
from tests.unit.jobs.ledgers import held, new_job


@pytest.fixture
def kept(home):
    made = Kept(home)
    made.begin("a")
    made.commit("a", 0, 1)
    return made


def broken(home):
    """Write over the middle of the ledger."""
    with home.ledger.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def test_a_copy_is_put_back_and_what_was_there_is_set_aside(kept):
    offer = kept.copy()
    before = kept.home.ledger.read_bytes()
    done = restore(kept.home)
    assert (done.source.name, done.at, done.jobs, done.units, done.from_disk, done.taken_back) == (offer.name, 1000.0, 1, 2, (), ())
    assert (done.aside / "ledger.db").read_bytes() == before
    assert done.aside.stat().st_mode & 0o077 == kept.home.ledger.stat().st_mode & 0o077 == 0
    assert kept.told() == {"a": ("running", [0, 1])}


def test_what_happened_here_since_the_copy_was_made_counts(kept):
    kept.begin("failing", "ended")
    kept.fail("failing", 7)
    kept.copy()
    kept.commit("a", 2)
    kept.begin("later")
    kept.commit("later", 5)
    kept.end("ended")
    broken(kept.home)
    done = restore(kept.home)
    assert sorted(done.from_disk) == ["a", "ended", "later"]
    assert kept.told() == {"a": ("running", [0, 1, 2]), "failing": ("running", []), "ended": ("cancelled", []), "later": ("running", [5])}
    assert kept.attempts("failing")[0] == ("failed", "gpu-oom")  # the copy alone tells of it


def test_commits_whose_files_are_not_here_are_taken_back(kept):
    kept.copy()
    kept.lose_results("a")
    done = restore(kept.home)
    assert [job for job, _ in done.taken_back] == ["a", "a"]
    assert kept.told() == {"a": ("running", [])}


def test_on_another_machine_the_jobs_come_back_without_results(kept, tmp_path):
    offer = kept.copy()
    other = Kept(Home(tmp_path / "other").ensure())
    shutil.copytree(kept.home.backups / offer.name, tmp_path / "brought")
    done = restore(other.home, tmp_path / "brought")
    assert (done.aside, done.jobs, len(done.taken_back), done.missing) == (None, 1, 2, ("d" * 64,))
    assert other.told() == {"a": ("running", [])}
    assert json.loads((other.home.jobs / "a" / "job.json").read_text())["job_id"] == "a"


def test_a_workload_that_comes_with_the_product_is_put_in_its_place(kept):
    (digest, _), *_ = shipped_digests().items()
    kept.begin("b", digest=digest)
    kept.copy()
    assert restore(kept.home).missing == ("d" * 64,)
    assert (kept.home.workloads / digest / "job.yaml").is_file()


def test_no_epoch_that_a_head_may_have_given_is_given_again(kept):
    kept.copy()
    for number in range(3):
        kept.commit("a", 10 + number)  # each under a boot of its own, and no copy knows of them
    last, epoch = kept.boots()
    for note in ("ledger.db.boot", "last-boot"):
        kept.home.ledger.with_name(note).unlink()
    broken(kept.home)
    restore(kept.home)
    boot, _ = kept.boots()
    assert boot > max(last, boot_of(epoch), UNKNOWN_BOOTS)


def test_a_key_still_stands_for_all_its_jobs(kept):
    pair = [new_job("x", key="k", owner="ann", array_id="x"), new_job("y", key="k", owner="ann", array_id="x")]
    with held(kept.home.ledger) as one:
        one.submit(pair)
    kept.begin("z")
    with held(kept.home.ledger) as one:
        for job in ("x", "y"):
            (kept.home.jobs / job).mkdir()
            kept._save(one, job)
    kept.copy()
    kept.end("y")
    restore(kept.home)
    with held(kept.home.ledger) as one:
        again = one.submit([new_job("x2", key="k", owner="ann", array_id="x2"), new_job("y2", key="k", owner="ann", array_id="x2")])
    assert [row.job_id for row in again] == ["x", "y"]


def test_the_last_whole_copy_is_taken(kept):
    first, second = kept.copy(at=1000.0), kept.copy(at=2000.0)
    with (kept.home.backups / second.name / "ledger.db").open("r+b") as file:
        file.write(b"odd")
    assert restore(kept.home).source.name == first.name
    with pytest.raises(UnreadablePath, match="damaged"):
        restore(kept.home, kept.home.backups / second.name)


def test_without_a_copy_nothing_changes(kept, tmp_path):
    before = kept.home.ledger.read_bytes()
    with pytest.raises(MissingPath):
        restore(kept.home)
    with pytest.raises(UnreadablePath, match="no copy"):
        restore(kept.home, tmp_path)
    assert kept.home.ledger.read_bytes() == before


def test_a_copy_that_cannot_be_put_in_leaves_the_ledger_as_it_was(kept, monkeypatch):
    kept.copy()
    before = kept.home.ledger.read_bytes()

    def full(home, copy, boot):
        raise OSError(28, "no space left")

    monkeypatch.setattr(restoring, "_put_in", full)
    with pytest.raises(OSError, match="no space"):
        restore(kept.home)
    assert kept.home.ledger.read_bytes() == before
    assert not list(kept.home.backups.glob("before-*"))


def test_beside_a_head_that_runs_it_is_refused(kept, monkeypatch):
    kept.copy()
    monkeypatch.setattr(restoring, "current_head", lambda home: object())
    for call in (restore, rebuild_anew):
        with pytest.raises(UsageError, match="dgpunet-dask down"):
            call(kept.home)


def test_a_ledger_is_made_anew_from_what_lies_beside_it(kept):
    kept.begin("b")
    broken(kept.home)
    done = rebuild_anew(kept.home)
    assert (done.jobs, done.units, done.aside is None) == (2, 2, False)
    assert kept.told() == {"a": ("running", [0, 1]), "b": ("running", [])}


def test_a_good_ledger_has_no_faults_and_a_damaged_one_tells_them(kept, tmp_path):
    found = check(kept.home.ledger)
    assert (found.jobs, found.units, found.attempts, found.faults) == (1, 2, 2, ())
    with pytest.raises(MissingPath):
        check(tmp_path / "none.db")
    broken(kept.home)
    with pytest.raises(DamagedFile):
        check(kept.home.ledger)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"x" * 9000, b"\xff" * 65536])
def test_a_ledger_that_is_no_ledger_any_more_is_put_back_too(kept, content):
    kept.copy()
    kept.home.ledger.write_bytes(content)
    assert restore(kept.home).units == 2
    assert kept.told() == {"a": ("running", [0, 1])}


def test_what_does_not_agree_is_a_fault(kept):
    with held(kept.home.ledger) as one:
        one.sql("UPDATE tallies SET attempts = attempts + 1")
    (fault,) = check(kept.home.ledger).faults
    assert fault["fault"] == "a tally that does not agree with the units"
    assert fault["job_id"] == "a"
