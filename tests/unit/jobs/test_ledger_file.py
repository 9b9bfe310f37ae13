"""The ledger's file: when what is answered is on the disk, and what becomes of a full disk, a damaged file, a newer or an older one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dgpunet_dask.errors import DamagedFile, DiskFull, NewerFormat, StartFailed
from dgpunet_dask.jobs import ledger as module
from dgpunet_dask.jobs import ledger_steps, schema
from dgpunet_dask.jobs.ledger import read_copy
from dgpunet_dask.jobs.rows import Restored
from dgpunet_dask.jobs.states import boot_of
from dgpunet_dask.security.files import lock_holder
from tests.helpers import ROOT, until
from tests.unit.jobs.ledgers import Held, commits, held, leased, new_job, running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what was answered at once only with something else."""
    monkeypatch.setattr(module, "LAG_S", 3600.0)


# What is on the disk


@pytest.mark.usefixtures("unhurried")
def test_a_submission_is_on_the_disk_when_it_is_answered_and_a_lease_with_the_next_commit(path: Path, tmp_path: Path) -> None:
    one = Held(path)
    one.open()
    running(one)
    before = one.written
    epoch = leased(one)
    assert one.written == before
    commits(one, "u", epoch)
    assert one.written == before + 1
    later = leased(one, "v", 1)
    with held(one.kill(tmp_path / "k")) as two:
        assert two.job("j").state == "running"
        assert two.unit("j", "u").state == "committed"
        assert two.unit("j", "v") is None
        assert boot_of(two.ledger._epoch) > boot_of(later)


def test_what_was_answered_at_once_is_on_the_disk_a_little_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAG_S", 0.0)
    with held(path) as one:
        running(one)
        before = one.written
        leased(one)
        until(lambda: one.loop.run_until_complete(asyncio.sleep(0.001, one.written > before)))


@pytest.mark.usefixtures("unhurried")
def test_closing_writes_what_was_answered(path: Path) -> None:
    with held(path) as one:
        running(one)
        leased(one)
    with held(path) as two:
        assert [a.state for a in two.attempts("j")] == ["unknown"]


def test_what_comes_together_is_written_together(path: Path) -> None:
    with held(path) as one:
        running(one)
        epochs = [leased(one, f"u{n}", n) for n in range(60)]
        before = one.written
        done = one.together(*(one.ledger.commit("j", f"u{n}", epoch, {}, counts={}) for n, epoch in enumerate(epochs)))
        assert done == [True] * 60
        assert one.written - before == 1


def test_one_that_is_refused_does_not_take_the_others_with_it(path: Path) -> None:
    with held(path) as one:
        good, bad, last = one.together(one.ledger.submit([new_job("a")]), one.ledger.submit([new_job("a")]), one.ledger.submit([new_job("b")]))
        assert ([r.job_id for r in good], [r.job_id for r in last]) == (["a"], ["b"])
        assert isinstance(bad, ValueError)
        assert len(one.jobs()) == 2


def test_what_is_no_longer_waited_for_is_done_all_the_same(path: Path) -> None:
    async def impatient(one: Held) -> None:
        task = asyncio.ensure_future(one.ledger.submit([new_job("a")]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with held(path) as one:
        one.loop.run_until_complete(impatient(one))
        one.submit([new_job("b")])
        assert [r.job_id for r in one.jobs()] == ["a", "b"]


def test_the_file_is_private(path: Path) -> None:
    with held(path) as one:
        one.submit([new_job()])
        assert {stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()} == {0o600}
        assert {f.name for f in path.parent.iterdir()} == {"ledger.db", "ledger.db-wal", "ledger.db.boot", "last-boot"}


# Boots


def test_leases_of_an_earlier_boot_are_unknown_and_may_not_commit(path: Path) -> None:
    with held(path) as one:
        running(one)
        epoch = leased(one)
    with held(path) as two:
        assert [(a.unit_id, a.epoch, a.state) for a in two.unknown()] == [("u", epoch, "unknown")]
        assert two.unit("j", "u").state == "ready"
        assert not commits(two, "u", epoch)
        assert two.unknown() == []
        assert commits(two, "u", two.lease("j", "u"))
        assert two.faults() == []


def test_a_call_that_outlived_its_head_is_no_second_start(path: Path) -> None:
    with held(path) as one:
        running(one)
        for number, unit in enumerate("uv"):
            one.placed("j", unit, leased(one, unit, number), "h/gpu0")
    with held(path) as two:
        for unit, adopted in (("u", True), ("v", False)):
            commits(two, unit, two.lease("j", unit), adopted=adopted)
        assert [a.state for a in two.attempts("j")] == ["adopted", "lost", "committed", "committed"]
        assert two.counts("j").attempts == 3


def test_what_a_head_took_with_it_has_a_cause_where_anything_had_begun(path: Path) -> None:
    with held(path) as one:
        running(one)
        one.placed("j", "u", leased(one, "u", 0), "h/gpu0")
        leased(one, "v", 1)
    with held(path) as two:
        for unit in "uv":
            commits(two, unit, two.lease("j", unit))
        begun, in_line = two.attempts("j")[:2]
        assert (begun.state, begun.cause, begun.started, begun.evidence) == ("lost", "system", True, {"why": "the head that had started it ended"})
        assert (in_line.state, in_line.cause, in_line.started) == ("lost", None, False)


def test_a_ledger_that_is_made_anew_gives_no_epoch_again(path: Path) -> None:
    for _ in range(2):
        with held(path):
            pass
    path.unlink()
    with held(path) as one:
        assert one.ledger.boot == 3
    for file in path.parent.glob("ledger.db*"):  # as people delete it
        file.unlink()
    with held(path) as one:
        assert one.ledger.boot == 4
    for note in ("ledger.db.boot", "last-boot"):
        path.with_name(note).write_text("no number")
    with held(path) as one:
        assert one.ledger.boot == 5


def test_a_ledger_is_fresh_until_somebody_has_looked_for_what_others_left(path: Path) -> None:
    for _ in range(2):
        with held(path) as one:
            assert one.ledger.fresh
    with held(path) as one:
        one.restore(Restored((), {}))
        assert not one.ledger.fresh
    with held(path) as one:
        assert not one.ledger.fresh


# A full disk


@pytest.mark.usefixtures("unhurried")
def test_a_full_disk_is_told_and_nothing_of_what_failed_is_kept(path: Path) -> None:
    with held(path) as one:
        running(one)
        epoch = leased(one)
        one.full = True
        for _ in range(2):
            with pytest.raises(DiskFull):
                commits(one, "u", epoch)
        with pytest.raises(DiskFull):
            one.submit([new_job("k")])
        one.full = False
        assert one.job("k") is None
        assert one.unit("j", "u").state == "leased"
        assert commits(one, "u", epoch)
        assert one.faults() == []


@pytest.mark.usefixtures("unhurried")
def test_a_lease_that_was_answered_outlives_a_full_disk(path: Path, tmp_path: Path) -> None:
    one = Held(path)
    one.open()
    running(one)
    epoch = leased(one)
    one.full = True
    with pytest.raises(DiskFull):
        one.submit([new_job("k")])
    one.full = False
    one.submit([new_job("k")])
    with held(one.kill(tmp_path / "k")) as two:
        assert [a.epoch for a in two.unknown()] == [epoch]


def test_a_database_that_may_not_grow_is_a_full_disk(path: Path) -> None:
    with held(path) as one:
        pages = one.sql("PRAGMA page_count")[0][0]
        one.sql(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(DiskFull):
            one.submit([new_job(f"j{n}", params={"text": "x" * 2000}) for n in range(20)])
        assert one.jobs() == []
        one.sql("PRAGMA max_page_count = 1000000")
        assert one.submit([new_job()])[0].state == "queued"


# Files that are not as they should be


def garbled(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(bytes(content))


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()


@pytest.mark.parametrize("damage", [garbled, cut, flipped, foreign], ids=lambda f: f.__name__)
def test_a_damaged_ledger_is_set_aside_and_an_empty_one_begun(path: Path, damage) -> None:
    for number in (1, 2):
        with held(path) as one:
            one.submit([new_job(f"j{n}") for n in range(50)])
        damage(path)
        spoilt = path.read_bytes()
        with held(path) as two:
            assert two.jobs() == []
            assert two.ledger.fresh
            assert two.ledger.set_aside == path.with_name("ledger.db.damaged" if number == 1 else "ledger.db.damaged.2")
            assert two.ledger.set_aside.read_bytes() == spoilt
            assert two.ledger.boot == 2 * number


def test_a_good_ledger_is_not_set_aside(path: Path) -> None:
    for _ in range(2):
        with held(path) as one:
            assert one.ledger.set_aside is None


def test_a_newer_ledger_is_refused_and_left_alone(path: Path) -> None:
    with held(path):
        pass
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(NewerFormat, match=f"reads up to {schema.VERSION}"):
        Held(path).open()
    with pytest.raises(NewerFormat), read_copy(path):
        pass
    assert path.read_bytes() == before


def test_an_older_ledger_is_brought_up_keeping_what_it_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(path) as one:
        one.submit([new_job()])
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE jobs ADD COLUMN colour TEXT;\nUPDATE jobs SET colour = 'red';\n"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with held(path) as two:
        assert two.sql("SELECT job_id, colour FROM jobs") == [("j", "red")]
        assert two.sql("PRAGMA user_version") == [(schema.VERSION,)]


def test_a_migration_that_breaks_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(path) as one:
        one.submit([new_job()])
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE jobs ADD COLUMN colour TEXT;\nUPDATE missing SET x = 1;\n"))
        patch.setattr(schema, "VERSION", schema.VERSION + 1)
        with pytest.raises(sqlite3.OperationalError):
            Held(path).open()
    with held(path) as two:
        assert len(two.jobs()) == 1
        assert two.ledger.set_aside is None


def test_a_second_head_on_one_ledger_does_not_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.1)
    with held(path):
        code = (
            "import asyncio, sys; from pathlib import Path; from dgpunet_dask.jobs import ledger\n"
            "from dgpunet_dask.clock import SystemClock; ledger.BUSY_S = 0.1\n"
            "asyncio.run(ledger.Ledger(Path(sys.argv[1]), SystemClock()).open())"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"{StartFailed.__name__}: The cluster did not start: process {os.getpid()} holds {path}" in done.stderr


def test_a_second_ledger_in_one_process_is_refused_and_the_first_keeps_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.1)
    with held(path):
        with pytest.raises(StartFailed, match="this process itself holds"):
            Held(path).open()
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.1).execute('PRAGMA user_version')"
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "database is locked" in done.stderr


def test_who_holds_a_file_is_not_known_where_the_system_does_not_tell(path: Path, tmp_path: Path) -> None:
    path.touch()
    assert lock_holder(path) == "another process"
    assert lock_holder(path, locks=tmp_path / "none") == "another process"
    assert lock_holder(tmp_path / "none") == "another process"


def test_a_lock_whose_file_the_system_does_not_name_is_passed_over(path: Path, tmp_path: Path) -> None:
    path.touch()
    found, locks = path.stat(), tmp_path / "locks"
    own = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    locks.write_text(f"1: POSIX  ADVISORY  WRITE 11 <none>:0 0 EOF\n2: POSIX  ADVISORY  WRITE 12 {own} 0 EOF\n")
    assert lock_holder(path, locks=locks) == "process 12"


def test_a_closed_ledger_lets_go_of_its_file_whoever_still_refers_to_a_statement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.1)
    with held(path) as one:
        running(one)
        running(one, "k")
        cursor = one.ledger._connection.execute("SELECT job_id FROM jobs")
        assert cursor.fetchone() is not None
    with held(path) as two:
        assert len(two.jobs()) == 2
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.fetchone()


def test_sqlite_keeps_the_lock_of_a_closed_connection_until_its_last_statement_is_finalised(path: Path) -> None:
    first = sqlite3.connect(path, isolation_level=None)
    first.execute("PRAGMA locking_mode = EXCLUSIVE")
    first.execute("CREATE TABLE t AS VALUES (1), (2)")
    cursor = first.execute("SELECT * FROM t")
    first.close()
    with contextlib.closing(sqlite3.connect(path, timeout=0.1)) as second:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            second.execute("SELECT * FROM t")
        del cursor
        assert second.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_closed_ledger_says_so(path: Path) -> None:
    one = Held(path)
    one.open()
    one.close()
    one.close()
    with pytest.raises(DamagedFile, match="it is closed"):
        one.jobs()
    one.loop.close()


def test_after_a_failed_fsync_nothing_is_answered_any_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fsync(name: str) -> None:
        if name == "ledger.commit":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error

    with held(path) as one:
        monkeypatch.setattr(one.ledger, "_failpoint", no_fsync)
        for _ in range(2):
            with pytest.raises(DamagedFile, match="disk I/O error"):
                one.submit([new_job()])


# Copies


def test_a_backup_is_a_whole_ledger(path: Path, tmp_path: Path) -> None:
    with held(path) as one:
        running(one)
        commits(one, "u", leased(one))
        leased(one, "v", 1)
        one.backup(tmp_path / "copy.db")
        one.backup(tmp_path / "copy.db")
        one.submit([new_job("k")])
    assert [f.name for f in tmp_path.iterdir() if "copy" in f.name] == ["copy.db"]
    with read_copy(tmp_path / "copy.db") as db:
        assert [row.job_id for row in ledger_steps.jobs(db)] == ["j"]
        assert ledger_steps.unit(db, "j", "v").state == "leased"
    with held(tmp_path / "copy.db") as two:
        assert two.unit("j", "u").state == "committed"
        assert two.faults() == []


def test_a_backup_that_finds_no_folder_leaves_the_ledger_as_it_is(path: Path, tmp_path: Path) -> None:
    with held(path) as one:
        with pytest.raises(FileNotFoundError):
            one.backup(tmp_path / "missing" / "copy.db")
        assert one.submit([new_job()])[0].state == "queued"


def test_a_copy_to_read_holds_what_is_in_the_log_alone(path: Path, tmp_path: Path) -> None:
    one = Held(path)
    one.open()
    one.submit([new_job()])
    copied = one.kill(tmp_path / "k")
    before = {f.name: f.read_bytes() for f in copied.parent.iterdir()}
    with read_copy(copied) as db:
        assert len(ledger_steps.jobs(db)) == 1
    assert {f.name: f.read_bytes() for f in copied.parent.iterdir()} == before
    (tmp_path / "no.db").write_bytes(b"no ledger" * 1000)
    with pytest.raises(DamagedFile), read_copy(tmp_path / "no.db"):
        pass
