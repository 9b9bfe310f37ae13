"""A full disk is known for what it is, whoever met it first."""

from __future__ import annotations

import errno
import pickle
import sqlite3

import pytest

from dgpunet_dask.errors import DiskFull, JobFailed, LowDisk, OutOfFiles, StageFailed
from dgpunet_dask.errors.fullness import full_in, is_full, is_short, out_of_files, says_full, shortage_of


def raised_from(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        try:
            raise error
        except BaseException as first:
            if cause is not None:
                raise cause from first
            raise ValueError("while clearing up") from None
    except BaseException as last:
        return last


def sqlite_full() -> sqlite3.Error:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as raised:
            connection.execute("CREATE TABLE t AS WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<5000) SELECT i FROM n")
    return raised.value


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_system_says_so(number: int) -> None:
    error = OSError(number, "no room", "/x")
    assert is_full(error)
    assert is_full(pickle.loads(pickle.dumps(error)))
    assert is_full(raised_from(error, JobFailed(why="x")))
    assert is_full(ExceptionGroup("several", [ValueError("x"), error]))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_open_files_that_run_out_are_a_shortage_and_no_full_disk(number: int) -> None:
    error = OSError(number, "too many", "/x")
    assert is_short(raised_from(error, JobFailed(why="x")))
    assert not is_full(error)
    assert out_of_files(error) is error
    assert isinstance(shortage_of(error, "/x"), OutOfFiles)
    assert isinstance(shortage_of(OSError(errno.ENOSPC, "no room"), "/x"), DiskFull)
    assert shortage_of(OSError(errno.EIO, "broken"), "/x") is None


def test_so_do_we_and_sqlite() -> None:
    assert is_full(DiskFull(path="/x"))
    assert is_full(LowDisk(path="/x", free="1 MiB", floor="2 MiB"))
    assert is_full(sqlite_full())


@pytest.mark.parametrize(
    "error", [None, OSError(errno.EIO, "broken"), OSError("no number"), ValueError("No space left on device"), StageFailed(stage="s", kind="k", why="w", traceback="")]
)
def test_anything_else_is_something_else(error: BaseException | None) -> None:
    assert not is_full(error)


def test_the_one_that_says_so_is_found_behind_others() -> None:
    error = OSError(errno.ENOSPC, "no room", "/x")
    assert full_in(raised_from(error, JobFailed(why="x"))) is error
    assert full_in(ValueError("x")) is None


def test_an_error_may_not_say_what_lies_behind_it() -> None:
    error = OSError(errno.ENOSPC, "no room", "/x")
    assert says_full(error)
    assert not says_full(raised_from(error, JobFailed(why="x")))


def test_what_was_put_away_does_not_count() -> None:
    assert not is_full(raised_from(OSError(errno.ENOSPC, "no room")))


def test_errors_that_go_round_in_a_circle_end() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert not is_full(one)
