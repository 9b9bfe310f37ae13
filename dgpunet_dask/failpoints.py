"""Named places in the running code where a test lets a process die, stand still or meet a full disk. Off unless a variable names them.

``$DGPUNET_FAILPOINTS`` holds either failures, separated by ``;``, that each process which inherits them meets for itself::

    publish.renamed@3=kill              # the third time that this process comes there, it kills itself
    stage.before{stage=heavy}=stop      # the first time with this fact: it stops itself, as Ctrl-Z would
    commit.before=enospc                # the disk is full
    call.began=exit:7                   # it ends with this status, without clearing up
    task.began=pause:/tmp/wait          # it waits while this file is there

or ``@FOLDER``: then a failure is armed at any time by a file of the point's name in that folder with what stands behind the name above
(``@3=kill``). It happens once in all processes together: whoever fires first takes the file away. So a daemon that is started again does not
meet what ended the one before it.

What fires leaves a line of JSON in the file ``$DGPUNET_FAILPOINT_LOG``, on the disk before anything happens. Standard library only: stage
hosts come here too, in whatever interpreter.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from dgpunet_dask.errors import BadValue

VARIABLE: Final = "DGPUNET_FAILPOINTS"
LOG_VARIABLE: Final = "DGPUNET_FAILPOINT_LOG"
_POLL_S: Final = 0.01

Role = Literal["head", "agent", "worker", "child", "client", "publisher"]


@dataclass(frozen=True)
class Point:
    """A place in the code: whose process comes there, and what it is about to do or has done. `disk`: there it writes to the disk.

    A ``publisher`` is whatever process changes an index: the stage host of a job that makes one, a head, or a command.
    """

    role: Role
    what: str
    disk: bool = False


#: Every place, in about the order in which a unit passes them. A test holds this table and the code to each other.
POINTS: Final[Mapping[str, Point]] = {
    "submit.sent": Point("client", "the request for a job has been written, its answer not read"),
    "submit.before": Point("head", "a request for a job has been read and checked, nothing of it is on disk", disk=True),
    "submit.committed": Point("head", "the job is in the ledger, its client does not know yet"),
    "submit.answered": Point("client", "the client knows its job's id and has told nobody"),
    "wait.polled": Point("client", "an answer to a waiting client has arrived"),
    "lease.granted": Point("head", "a unit has a lease, and no task yet"),
    "unit.submitted": Point("head", "Dask has the tasks of a unit"),
    "task.began": Point("worker", "a task has begun, nothing of its input has been touched"),
    "task.before_call": Point("worker", "the agent is about to be asked"),
    "call.began": Point("agent", "a call has been accepted and its stage host lent"),
    "stage.loaded": Point("child", "a stage is loaded, the agent does not know yet"),
    "stage.before": Point("child", "a stage is about to be called"),
    "stage.after": Point("child", "a stage has given its result, which nobody else has"),
    "stage.replied": Point("child", "the result has been written to the agent"),
    "call.ended": Point("agent", "the result of a call is there, its caller does not have it"),
    "call.delivered": Point("agent", "the caller has been sent the result"),
    "task.after_call": Point("worker", "the worker has the result, Dask does not know"),
    "publish.opened": Point("head", "the temporary file of a result is open and empty", disk=True),
    "publish.written": Point("head", "the result is written, perhaps not on the disk", disk=True),
    "publish.synced": Point("head", "the result is on the disk under its temporary name", disk=True),
    "publish.renamed": Point("head", "the result has its name, which may not be on the disk", disk=True),
    "publish.folder_synced": Point("head", "the result and its name are on the disk"),
    "commit.before": Point("head", "the ledger is about to be told of the result"),
    "commit.done": Point("head", "the ledger has the commit on the disk"),
    "ledger.commit": Point("head", "operations of the ledger have run, their transaction is open", disk=True),
    "ledger.committed": Point("head", "a transaction is on the disk, nobody who waits for it knows"),
    "gather.before": Point("head", "all units are committed, the gather stage is about to be called"),
    "gather.done": Point("head", "the gather stage has given its result, nothing of it is on disk"),
    "job.final": Point("head", "all results are on disk, the job has not its last state"),
    "index.merging": Point("publisher", "rows of a new version are written, and those that are merged along; none of them is on the disk"),
    "index.drafted": Point("publisher", "a new version is whole and on the disk, beside the one in force"),
    "index.moved": Point("publisher", "its files have their places, the manifest names the one before"),
    "index.named": Point("publisher", "the manifest names it, and nothing of the one before is removed"),
    "compact.merged": Point("publisher", "a merged segment is whole and on the disk, beside those that it was made of"),
    "compact.moved": Point("publisher", "it has its place, the manifest names those that it was made of"),
    "compact.named": Point("publisher", "the manifest names it, and those that it was made of are still there"),
}

_FORM: Final = re.compile(
    r"(?P<point>[a-z_.]*)(?:\{(?P<where>[^{}]*)\})?(?:@(?P<at>[1-9]\d*))?=(?P<fault>kill|stop|enospc|exit:\d{1,3}|pause:.+)", re.DOTALL
)


@dataclass(frozen=True)
class Failure:
    """What happens at a point, at the `at`-th hit whose facts are those of `where`.

    `fault`: ``kill``, ``stop``, ``enospc``, ``exit`` with the status in `argument`, ``pause`` with the file there.
    """

    point: str
    fault: str
    at: int = 1
    where: tuple[tuple[str, str], ...] = ()
    argument: str = ""

    def meant(self, facts: Mapping[str, Any]) -> bool:
        """Whether a hit with these facts counts."""
        return all(str(facts.get(name)) == value for name, value in self.where)

    def happen(self, facts: Mapping[str, Any]) -> None:
        """Leave the line in the log, and let it happen.

        Raises
        ------
        OSError
            With ``ENOSPC``, where a full disk is meant.
        """
        _note({"point": self.point, "fault": self.fault, "pid": os.getpid(), "facts": {k: str(v) for k, v in facts.items()}})
        if self.fault == "enospc":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (failpoint {self.point})")
        if self.fault == "exit":
            os._exit(int(self.argument))
        if self.fault == "pause":
            while os.path.exists(self.argument):
                time.sleep(_POLL_S)
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)


class Armed(Protocol):
    """What has been armed."""

    def hit(self, name: str, facts: Mapping[str, Any]) -> None:
        """Count a hit, and let happen what is due."""


class Inherited:
    """Failures that the variable lists; each happens once in this process."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self._failures = failures
        self._hits: Counter[Failure] = Counter()
        self._lock = threading.Lock()

    def hit(self, name: str, facts: Mapping[str, Any]) -> None:
        for failure in self._failures:
            if failure.point == name and failure.meant(facts):
                with self._lock:
                    self._hits[failure] += 1
                    due = self._hits[failure] == failure.at
                if due:
                    failure.happen(facts)


class Folder:
    """Failures that are armed by files, each for one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hits: dict[str, tuple[int, int]] = {}  # by point: which file, and how often since it was seen
        self._lock = threading.Lock()

    def hit(self, name: str, facts: Mapping[str, Any]) -> None:
        path = os.path.join(self._folder, name)
        try:
            with open(path, encoding="utf-8") as file:
                stamp, text = os.fstat(file.fileno()).st_mtime_ns, file.read().strip()
        except FileNotFoundError:
            return
        failure = _read(name + text)
        if failure.meant(facts) and self._count(name, stamp) >= failure.at and self._taken(path):
            failure.happen(facts)

    def _count(self, name: str, stamp: int) -> int:
        with self._lock:
            seen, hits = self._hits.get(name, (stamp, 0))
            hits = hits + 1 if seen == stamp else 1
            self._hits[name] = (stamp, hits)
            return hits

    def _taken(self, path: str) -> bool:
        """Whether this process is the one that fires: of several that take the file away, one does."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True


def parse(text: str) -> Armed | None:
    """Return what the variable's `text` arms, ``None`` for nothing.

    Raises
    ------
    BadValue
        For a failure of another form, or at a point that is not in `POINTS`.
    """
    if text.startswith("@"):
        return Folder(Path(text[1:]))
    failures = tuple(_read(part.strip()) for part in text.split(";") if part.strip())
    return Inherited(failures) if failures else None


def _read(text: str) -> Failure:
    found = _FORM.fullmatch(text)
    if found is None:
        raise BadValue(what=VARIABLE, value=text, why="write POINT@N=kill|stop|enospc|exit:STATUS|pause:FILE")
    if found["point"] not in POINTS:
        raise BadValue(what=VARIABLE, value=found["point"], why=f"points are {', '.join(POINTS)}")
    facts = [fact.partition("=") for fact in (found["where"] or "").split(",") if fact]
    fault, _, argument = found["fault"].partition(":")
    return Failure(found["point"], fault, int(found["at"] or 1), tuple((name, value) for name, _, value in facts), argument)


def _note(line: Mapping[str, Any]) -> None:
    if path := os.environ.get(LOG_VARIABLE):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, (json.dumps(line) + "\n").encode())
            os.fsync(file)
        finally:
            os.close(file)


#: Read once: processes get it from whoever starts them.
_armed: Armed | None = parse(os.environ.get(VARIABLE, ""))


def hit(name: str, **facts: object) -> None:
    """Say that the code has come to the point `name`; nothing happens unless a failure is armed there. `facts` tell units and stages apart."""
    if _armed is not None:
        _armed.hit(name, facts)
