"""The ledger: what the head knows of all jobs, units and attempts, in one SQLite file that survives whatever is killed.

One connection, held by one process (``locking_mode=EXCLUSIVE``), WAL, ``synchronous=FULL``. Operations run in the order in which they were
called, each in a savepoint of its own, and are answered once the transaction that holds them is on the disk. While one transaction is being
written, the next operations queue, and all of them make the next transaction: the more there is to do, the fewer fsyncs each costs.

The statements run on the event loop's thread and only ``COMMIT``, with its fsync, and what is long in a thread; they take turns, so that one
thread at a time has the connection. A statement takes some microseconds from the page cache. In a thread of its own each lets go of the
interpreter's lock and may have to wait until the busy loop gives it back, for up to `sys.getswitchinterval` (measured beside a loop that is
always busy: 1.4 ms for a statement of 2 µs).

What need not be on the disk before it is used (a lease: its epoch holds the number of the boot, so that no later head takes it for its own)
is answered at once and written with the next transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from dgpunet_dask.clock import Clock
from dgpunet_dask.errors import DamagedFile, DamagedLedger, DiskFull, NewerFormat, StartFailed
from dgpunet_dask.errors.fullness import SHORTAGES, shortage_of
from dgpunet_dask.jobs import lease_steps, ledger_steps, schema
from dgpunet_dask.jobs.ledger_calls import LedgerCalls, Manner
from dgpunet_dask.jobs.ledger_files import copy_still, note_boot, noted_boot, put_aside
from dgpunet_dask.jobs.ledger_steps import Db
from dgpunet_dask.jobs.rows import AttemptRow, JobRow, NewJob, UnitRow
from dgpunet_dask.jobs.states import first_epoch
from dgpunet_dask.security.files import lock_holder, sync_folder

__all__ = ["AttemptRow", "JobRow", "Ledger", "NewJob", "UnitRow", "read_copy"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Operations of one transaction at most: they hold up the event loop while they run.
BATCH: Final = 256
#: How long what was answered at once may stay off the disk if nothing else is written.
LAG_S: Final = 0.2
#: How long a file may be held by a head that is about to be gone.
BUSY_S: Final = 5.0
_IN_THREAD: Final = frozenset({"long", "outside"})
_PRAGMAS: Final = (
    "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "cache_size = -65536", "temp_store = MEMORY",
    "wal_autocheckpoint = 4000", f"journal_size_limit = {64 << 20}",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class _Operation:
    """Something to be done, and who waits for it; nobody, where it was answered before."""

    step: Callable[[Db], Any]
    manner: Manner
    future: asyncio.Future[Any] | None

    def answer(self, value: Any) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(value)

    def refuse(self, error: BaseException) -> None:
        if self.future is None:
            log.error("the ledger cannot keep what it has answered: %s", error)
        elif not self.future.done():
            self.future.set_exception(error)


class Ledger(LedgerCalls):
    """The ledger in the file at `path`. All methods belong to the event loop that `open` was called in.

    Parameters
    ----------
    path
        ``$DGPUNET_HOME/ledger.db``; beside it ``ledger.db.boot`` and ``last-boot`` hold the number of the last boot, for a ledger
        that is made anew.
    failpoint
        Called in the thread with ``ledger.commit`` before each transaction is written and ``ledger.committed`` after.

    Attributes
    ----------
    set_aside
        Where a damaged ledger was moved by `open`, which then began an empty one; ``None`` where it was good.
    fresh
        Whether nobody has yet looked for what jobs of a lost ledger, or of a release without one, have left (`jobs.rebuild`). It stays so
        until `restore`, whoever is killed before.

    Raises
    ------
    DiskFull
        From whatever writes, if there is no room; nothing of it was kept, and it may be called again.
    DamagedFile
        If the file cannot be read or made durable any more; a head that starts again finds out what is good.
    ValueError
        For what the state machines and constraints do not allow.
    """

    def __init__(self, path: Path, clock: Clock, *, failpoint: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self.set_aside: Path | None = None
        self.fresh = False
        self.boot = 0
        self._clock = clock
        self._failpoint = failpoint
        self._queue: deque[_Operation] = deque()
        self._waiting: list[tuple[_Operation, Any]] = []  # done in the open transaction, to be answered when that is on the disk
        self._owed: list[_Operation] = []  # answered, and in the open transaction
        self._busy = False
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._epoch = 0
        self._broken: DamagedFile | None = None
        self._closed = True

    # Opening and closing

    async def open(self) -> int:
        """Open the file, bring it to this release's version and begin a boot; return the number of the boot.

        Raises
        ------
        NewerFormat
            If a newer release wrote it.
        StartFailed
            If another process holds it.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        try:
            self._connection = await self._loop.run_in_executor(self._thread, self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._db = cast("Db", self._connection)
        self._epoch = first_epoch(self.boot)
        self._closed = False
        return self.boot

    async def close(self) -> None:
        """Write what is left and close the file. Calling it again does nothing."""
        if self._closed:
            return
        with contextlib.suppress(*SHORTAGES, DamagedFile):
            await self._do(lambda _: None)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._loop.run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._good_connection()
        except (sqlite3.DatabaseError, DamagedFile) as error:
            primary = _primary(error)
            if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StartFailed(why=f"{lock_holder(self.path)} holds {self.path}", logs=self.path.parent / "run" / "logs") from error
            if primary == sqlite3.SQLITE_FULL:
                raise DiskFull(path=self.path) from error
            if primary not in (None, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise  # the file may be good: a disk that gives errors, or a mistake of ours
            self.set_aside = put_aside(self.path)
            log.error("the ledger %s is damaged (%s) and was set aside as %s", self.path, error, self.set_aside)
        return self._good_connection()

    def _good_connection(self) -> sqlite3.Connection:
        connection = _connect(self.path)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            _check(connection, self.path)  # before anything is changed: it may be somebody else's
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            _migrate(connection, self.path)
            self._begin_boot(connection)
            sync_folder(self.path.parent)
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin_boot(self, connection: sqlite3.Connection) -> None:
        db, now = cast("Db", connection), self._clock.wall()
        self.boot = 1 + max(lease_steps.last_boot(db), noted_boot(self.path))
        note_boot(self.path, self.boot)  # first: a ledger that is lost from here on must not give this boot's epochs again
        with _transaction(connection):
            lease_steps.boot(db, self.boot, now)
        self.fresh = not ledger_steps.was_restored(db)

    def _boot_again(self, db: Db, number: int) -> None:
        note_boot(self.path, number)
        lease_steps.boot(db, number, self._clock.wall())
        self.boot, self._epoch = number, first_epoch(number)

    # Turns

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    async def _do(self, step: Callable[[Db], T], manner: Manner = "durable") -> T:
        if self._closed or self._broken is not None:
            raise self._broken or DamagedLedger(path=self.path, why="it is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(_Operation(step, manner, future))
        if not self._due and not self._busy:
            self._due = True
            self._loop.call_soon(self._turn)  # not at once: whatever else this round of the loop calls goes along
        return await future

    def _turn(self) -> None:
        """Do what has queued, then let the thread write it, if somebody waits for that."""
        self._due = False
        if self._busy or self._closed:
            return
        while self._queue and self._queue[0].manner not in _IN_THREAD and len(self._waiting) < BATCH:
            self._run(self._queue.popleft())
        next_ = self._queue[0] if self._queue and self._queue[0].manner in _IN_THREAD else None
        if self._waiting or (next_ and self._connection.in_transaction):
            self._hand_over(self._commit, self._written)
        elif next_:
            self._queue.popleft()
            self._hand_over(functools.partial(self._long, next_), functools.partial(self._long_done, next_))
        elif self._owed and self._timer is None:
            self._timer = self._loop.call_later(LAG_S, self._write_owed)

    def _hand_over(self, work: Callable[[], T], then: Callable[[asyncio.Future[T]], None]) -> None:
        self._busy = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.run_in_executor(self._thread, work).add_done_callback(then)

    def _write_owed(self) -> None:
        self._timer = None
        if self._owed and not self._busy:
            self._hand_over(self._commit, self._written)

    def _run(self, operation: _Operation) -> None:
        if operation.manner == "read":
            try:
                operation.answer(operation.step(self._db))
            except Exception as error:
                operation.refuse(self._told(error))
            return
        try:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("SAVEPOINT operation")
            value = operation.step(self._db)
            self._connection.execute("RELEASE operation")
        except Exception as error:
            self._undo(operation, error)
            return
        if operation.manner == "lazy":
            self._owed.append(_Operation(operation.step, "lazy", None))
            operation.answer(value)
        else:
            self._waiting.append((operation, value))

    def _undo(self, operation: _Operation, error: Exception) -> None:
        """Take back one operation, or all of the transaction where SQLite has done so."""
        told = self._told(error)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
        else:
            self._failed(told)
        operation.refuse(told)

    def _commit(self) -> None:
        """In the thread: make the open transaction durable, or take it back."""
        try:
            self._failpoint("ledger.commit")
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        self._failpoint("ledger.committed")

    def _written(self, done: asyncio.Future[None]) -> None:
        self._busy = False
        error = done.exception()
        if error is None:
            self._owed.clear()
            waiting, self._waiting = self._waiting, []
            for operation, value in waiting:
                operation.answer(value)
        else:
            self._failed(self._told(error))
        self._turn()

    def _failed(self, error: BaseException) -> None:
        """The transaction is gone: those who wait hear of it, and what was answered is done again in the next one."""
        waiting, self._waiting = self._waiting, []
        self._queue.extendleft(reversed(self._owed))
        self._owed = []
        for operation, _ in waiting:
            operation.refuse(error)

    def _long(self, operation: _Operation) -> Any:
        with _transaction(self._connection) if operation.manner == "long" else contextlib.nullcontext():
            return operation.step(self._db)

    def _long_done(self, operation: _Operation, done: asyncio.Future[Any]) -> None:
        self._busy = False
        error = done.exception()
        if error is None:
            operation.answer(done.result())
        else:
            operation.refuse(self._told(error))
        self._turn()

    def _told(self, error: BaseException) -> BaseException:
        """Return the product's error for what SQLite or the system said."""
        if (short := shortage_of(error, self.path)) is not None:
            return short
        primary = _primary(error)
        if not isinstance(error, sqlite3.Error) or primary in (None, sqlite3.SQLITE_ERROR):  # the latter: a statement of ours is wrong
            return error
        if primary == sqlite3.SQLITE_FULL:
            return DiskFull(path=self.path)
        if primary == sqlite3.SQLITE_CONSTRAINT:
            return ValueError(f"the ledger refuses this: {error}")
        told = DamagedLedger(path=self.path, why=str(error))
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
            self._broken = told  # after a failed fsync nobody knows what is on the disk
        return told

    # Copies

    async def backup(self, into: Path) -> None:
        """Copy the ledger to the file `into`, which appears whole or not at all; other operations wait meanwhile.

        Raises
        ------
        DiskFull
            If there is no room for it there.
        """
        await self._do(lambda _: _copy_into(self._connection, into), "outside")


class Connection(sqlite3.Connection):
    """A connection that lets go of its file when it is closed.

    SQLite keeps a closed connection, with its lock, until the last statement is finalised (`sqlite3_close_v2`), and Python finalises one when
    its cursor is collected: whoever still refers to a cursor, a traceback or a sampled frame, would keep the next head out.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run one statement."""
        cursor = super().execute(sql, parameters)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """Finalise every statement and close the file."""
        for cursor in list(self._cursors):
            cursor.close()
        super().close()


@contextlib.contextmanager
def read_copy(path: Path) -> Iterator[Db]:
    """Give the ledger of a file to be read by `ledger_steps` and `lease_steps`, without touching it: a copy, taken while nothing is written.

    For a look afterwards, or beside a head that is idle. Not in the process that has it open, whose lock on the file this would end.

    Raises
    ------
    DamagedFile
        If it cannot be read, or does not hold still.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        copy = Path(folder) / path.name
        copy_still(path, copy)
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            _check(connection, path)
            yield cast("Db", connection)
        except sqlite3.DatabaseError as error:
            raise DamagedLedger(path=path, why=str(error)) from error
        finally:
            connection.close()


def _copy_into(connection: sqlite3.Connection, into: Path) -> None:
    fd, draft = tempfile.mkstemp(prefix=f".{into.name}.", dir=into.parent)
    try:
        with contextlib.closing(sqlite3.connect(draft)) as target:
            connection.backup(target)
        os.fsync(fd)
        Path(draft).replace(into)
        sync_folder(into.parent)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _connect(path: Path) -> Connection:
    # A file that exists is not opened here: whoever closes any descriptor of a file ends all locks of its process on it (fcntl(2)).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256, factory=Connection)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """See that the file is a ledger, of a release that is not newer, and whole."""
    version = _value(connection, "PRAGMA user_version")
    if version > schema.VERSION:
        raise NewerFormat(path=path, found=version, known=schema.VERSION)
    stranger = _value(connection, "SELECT count(*) FROM sqlite_master") if version == 0 else _value(connection, "PRAGMA application_id") != schema.APPLICATION_ID
    if stranger:
        raise DamagedLedger(path=path, why="it is no ledger")
    if (found := _value(connection, "PRAGMA quick_check(1)")) != "ok":
        raise DamagedLedger(path=path, why=str(found))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to this release's version, each step whole or not at all."""
    for version in range(_value(connection, "PRAGMA user_version"), schema.VERSION):
        with _transaction(connection):
            for statement in _statements(schema.MIGRATIONS[version]):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
        log.info("%s has version %d", path, version + 1)


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit before them."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _value(connection: sqlite3.Connection, sql: str) -> Any:
    return connection.execute(sql).fetchone()[0]


def _primary(error: BaseException) -> int | None:
    """Return SQLite's own code for an error, without what it adds to it."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF
