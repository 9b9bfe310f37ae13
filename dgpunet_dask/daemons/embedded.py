"""Getting to a cluster: the one that was named, the head that runs under this home, or an embedded one that lives as long as its users.

A lock in ``run`` decides who starts a cluster, so that commands that begin at the same moment share one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from dgpunet_dask.cluster.api_client import ApiClient, Lease
from dgpunet_dask.cluster.config import joined_cluster
from dgpunet_dask.cluster.headfile import HeadFile, read_head_file
from dgpunet_dask.cluster.tls import Trust, is_loopback
from dgpunet_dask.cluster.wire import error_from_wire
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import OwnedProcess, child_env, python_argv, spawn, wait_until
from dgpunet_dask.daemons.register import SUPERVISOR, Register, Registered, supervisor_of
from dgpunet_dask.daemons.starter import no_room
from dgpunet_dask.errors import BadValue, DgpunetError, HeadAway, NoHead, StartFailed, UsageError

log = logging.getLogger(__name__)

#: How long a stopping head may take before it is killed.
STOP_S: Final = 20.0
#: The same of a supervisor, which gives its daemons as long, one after the other.
SUPERVISOR_STOP_S: Final = 45.0
#: A head that was stopped during its start.
ABORT_S: Final = 8.0
#: How long a head whose supervisor runs may take to come back.
RETURN_S: Final = 60.0

Say = Callable[[str], None]


def quietly(text: str) -> None:
    """Say nothing."""


@contextlib.contextmanager
def attach(
    home: Home,
    cluster: str | None = None,
    *,
    simulate: Path | None = None,
    environ: Mapping[str, str] | None = None,
    say: Say = quietly,
    start: bool = True,
) -> Iterator[ApiClient]:
    """Give a connection to a cluster.

    In this order: `cluster`, ``$DGPUNET_CLUSTER``, the cluster that this machine has joined, the head under `home`, else an embedded
    cluster, which stops when the last command that uses it has ended.

    Parameters
    ----------
    cluster
        A name (``run/head.json`` of `home` is ``local``; others are files ``clusters/NAME.json`` of the same form), or an address.
    simulate
        Fleet file for an embedded cluster that is started here.
    say
        Takes lines on what is going on.
    start
        Whether an embedded cluster is started where no head runs: not by who only wants to see.

    Raises
    ------
    NoHead
        If a named cluster does not answer, or without `start` none runs.
    StartFailed
        If an embedded cluster does not start.
    """
    named = cluster or (os.environ if environ is None else environ).get("DGPUNET_CLUSTER") or joined_cluster(home)
    if named:
        client = named_cluster(home, named, os.environ if environ is None else environ)
        client.status()
        yield client
        return
    head, lease = _held(home, simulate, say) if start else _found(home)
    try:
        yield client_of(head)
    finally:
        if lease.close() and head.embedded:
            _wait_for_end(head)


def named_cluster(home: Home, named: str, environ: Mapping[str, str]) -> ApiClient:
    """Return a client of the cluster with this name or address; for an address the key is ``$DGPUNET_API_KEY``, else the local head's.

    An address without a scheme is ``http`` on this machine and ``https`` elsewhere.

    Raises
    ------
    NoHead
        If there is no cluster of that name.
    UsageError
        If the address is none, or the key would travel in the clear.
    """
    local = read_head_file(home.head_file)
    ca_file = environ.get("DGPUNET_CA_FILE")
    trust = Trust(ca_file=Path(ca_file) if ca_file else None, pki=home.pki)
    if ":" not in named:
        head = local if named == "local" else read_head_file(home.root / "clusters" / f"{Path(named).name}.json")
        if head is None:
            raise NoHead(where=named)
        return ApiClient(head.api, head.key, trust=trust)
    address = _address_of(named)
    known = local is not None and is_loopback(address.hostname or "") and address.port == urllib.parse.urlsplit(local.api).port
    key = environ.get("DGPUNET_API_KEY") or (local.key if local is not None and known else "")
    return ApiClient(address.geturl(), key, trust=trust)


#: What may stand for a cluster.
_WRITE: Final = "write the name of a cluster or HOST:PORT, with no scheme before it but http or https"


def _address_of(named: str) -> urllib.parse.SplitResult:
    try:
        bare = urllib.parse.urlsplit(named if "://" in named else f"//{named}")
        here = is_loopback(bare.hostname or "")
        address = bare if bare.scheme else bare._replace(scheme="http" if here else "https")
        address.port  # noqa: B018  # raises where it is no number
    except ValueError:
        raise BadValue(what="cluster", value=named, why=_WRITE) from None
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise BadValue(what="cluster", value=named, why=_WRITE)
    if address.scheme == "http" and not here:
        raise UsageError(detail=f"{named} is another machine, and the key would travel there in the clear. Write https:// instead.")
    return address


def awaited_head(home: Home) -> HeadFile | None:
    """Return the head under `home`; one that its supervisor is starting again is waited for, `RETURN_S` seconds at most.

    One that waits for room on a full disk, or whose supervisor stands still, is not waited for: that may take a user's hand.

    Without this a command in that moment would start a cluster of its own beside the supervisor's.
    """
    wait_until(lambda: current_head(home) is not None or not _works(supervisor_of(home)) or no_room(home.root), RETURN_S)
    head = current_head(home)
    if head is None and supervisor_of(home) is not None:
        raise no_head(home)
    return head


def no_head(home: Home) -> NoHead:
    """Return the error that no head runs under `home`: whether its supervisor starts it again, and what that waits for."""
    supervisor = supervisor_of(home)
    if supervisor is None:
        return NoHead(where=home.root)
    full = no_room(home.root)
    when = "as soon as its disk, which is full, has room (free some space)" if full else "soon"
    if not _works(supervisor):
        when = f"once it goes on: process {supervisor.pid} was stopped by a signal (`up` ends it and starts anew)"
    return HeadAway(where=home.root, when=when, full=full, logs=home.run / "logs")


def answering_head(home: Home) -> HeadFile | None:
    """Return the head under `home` once it has answered; one that is just ending, because its supervisor was killed, is waited out.

    One that stands still and has lost its supervisor would neither answer nor end: it is ended. So is a supervisor that stands still and has lost
    its head. Hold the `start_lock`.

    Raises
    ------
    NoHead
        If one runs and does not answer.
    """
    supervisor = supervisor_of(home)
    if current_head(home) is None and supervisor is not None and _stopped(supervisor):
        log.warning("the supervisor (process %d) was stopped and no head is left: it is ended", supervisor.pid)
        clear_remains(home)
        return None
    head = awaited_head(home)
    if head is not None and not head.embedded and supervisor_of(home) is None and _stopped(_process_of(head)):
        log.warning("the head (process %d) was stopped and has no supervisor: it is ended", head.pid)
        clear_remains(home)
        return None
    try:
        if head is not None:
            client_of(head).status()
    except NoHead:
        wait_until(lambda: current_head(home) != head, STOP_S)
        head = awaited_head(home)
        if head is not None:
            client_of(head).status()
    return head


def current_head(home: Home) -> HeadFile | None:
    """Return the head whose file lies under `home` if its process still runs, embedded or not."""
    head = read_head_file(home.head_file)
    if head is None or _process_of(head).process() is None:
        return None
    return head


def running_head(home: Home) -> HeadFile | None:
    """Return the head under `home` that outlives its commands, ``None`` without one."""
    head = current_head(home)
    return None if head is None or head.embedded else head


def client_of(head: HeadFile) -> ApiClient:
    """Return a client of `head`."""
    return ApiClient(head.api, head.key, embedded=head.embedded)


@contextlib.contextmanager
def start_lock(home: Home) -> Iterator[None]:
    """Hold the right to start or stop a cluster under `home`; waits for others. The system frees it when its holder ends."""
    home.ensure()
    with (home.run / "start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_remains(home: Home) -> list[Registered]:
    """End and remove what a killed head left behind; return the processes that were ended. Hold the `start_lock`."""
    ended = Register(home.run / "processes").end_all()
    for name in ("head.json", "scheduler.json", "fleet.json"):
        (home.run / name).unlink(missing_ok=True)
    home.agent_socket.unlink(missing_ok=True)
    return ended


def _held(home: Home, simulate: Path | None, say: Say) -> tuple[HeadFile, Lease]:
    """Return the head under `home` and a lease on it, starting an embedded one where there is none."""
    with start_lock(home):
        with contextlib.suppress(NoHead):
            return _found(home)
        if supervisor_of(home) is not None:
            raise no_head(home)
        clear_remains(home)
        with starting(home, simulate=simulate, embedded=True, say=say) as (process, head):
            lease = client_of(head).lease()
            process.release()
        return head, lease


def _found(home: Home) -> tuple[HeadFile, Lease]:
    """Return the head under `home` and a lease on it; one that is just ending is waited out, as its supervisor may start the next.

    Raises
    ------
    NoHead
        If none runs, or none has answered.
    """
    for _ in range(2):
        head = awaited_head(home)
        if head is None:
            break
        with contextlib.suppress(DgpunetError):
            return head, client_of(head).lease()
        _wait_for_end(head)  # its last user has left this moment, or it was killed
    raise NoHead(where=home.root)


def _wait_for_end(head: HeadFile) -> None:
    """Wait until the process of a stopping head is gone, `STOP_S` seconds at most."""
    wait_until(lambda: _process_of(head).process() is None, STOP_S)


@contextlib.contextmanager
def starting(
    home: Home, *, simulate: Path | None, embedded: bool, policy: Iterable[Path] = (), say: Say = quietly
) -> Iterator[tuple[OwnedProcess, HeadFile]]:
    """Start a cluster and give it once it answers: an embedded one is a head alone, any other has a supervisor above it.

    Release it inside the block; it ends with the block otherwise, and on any error.

    Raises
    ------
    DgpunetError
        What the head reports.
    StartFailed
        If it ends without a word.
    """
    words = ["--simulate", str(simulate.absolute())] if simulate else []
    words += [word for path in policy for word in ("--policy", str(path.absolute()))]
    process = _spawn_head(home, words) if embedded else _spawn_supervisor(home, words)
    try:
        _until_ready(process, home, say)
        head = read_head_file(home.head_file)
        if head is None:
            raise StartFailed(why="the head ended at once", logs=home.run / "logs")
        yield process, head
        process.release()
    except BaseException:
        _abort(process, home)
        raise


def _spawn_head(home: Home, words: Iterable[str]) -> OwnedProcess:
    return _spawn(home, "head", python_argv("dgpunet_dask.daemons.head", "--home", str(home.root), "--embedded", *words))


def _spawn_supervisor(home: Home, words: Iterable[str]) -> OwnedProcess:
    argv = python_argv("dgpunet_dask.daemons.supervisor", "--home", str(home.root), "--membership", "local", *words)
    return _spawn(home, SUPERVISOR, argv)


def _spawn(home: Home, what: str, argv: list[str]) -> OwnedProcess:
    log_file = home.run / "logs" / f"{what}.log"
    process = spawn(argv, env=child_env({"DGPUNET_HOME": str(home.root)}), log_file=log_file, cwd=home.run, stdout=subprocess.PIPE)
    Register(home.run / "processes").add(process.pid, what)
    return process


def _until_ready(process: OwnedProcess, home: Home, say: Say) -> None:
    """Say what the starting head tells, until it is ready. A supervisor tells why a head ended, and starts it again some times."""
    assert process.process.stdout is not None
    why = ""
    with process.process.stdout as lines:
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise error_from_wire(told["error"])
            if "ready" in told:
                return
            why = str(told.get("warning", why))
            say(str(told.get("progress") or told.get("warning")))
    status = process.process.wait()
    raise StartFailed(why=why or f"the head ended with status {status}", logs=home.run / "logs")


def _abort(process: OwnedProcess, home: Home) -> None:
    """End a cluster whose start went wrong or was interrupted, with everything it started."""
    process.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.process.wait(ABORT_S)
    process.kill()
    clear_remains(home)


def stop_cluster(home: Home) -> tuple[bool, list[Registered]]:
    """Stop what runs under `home`, head or a machine's part of a cluster, and end what a killed one left.

    Returns whether one ran, and what had to be ended.
    """
    with start_lock(home):
        head, supervisor = current_head(home), supervisor_of(home)
        if head is not None and not _stopped(_process_of(head)):
            with contextlib.suppress(DgpunetError):
                client_of(head).shutdown()
                _wait_for_end(head)
        if supervisor is not None:
            _stop_supervisor(supervisor)
        return head is not None or supervisor is not None, clear_remains(home)


def _process_of(head: HeadFile) -> Registered:
    return Registered(head.pid, head.created, "head")


def _stopped(daemon: Registered) -> bool:
    """Whether a daemon stands still (SIGSTOP, a debugger): a head takes connections then and answers none."""
    process = daemon.process()
    with contextlib.suppress(psutil.Error):
        return process is not None and process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
    return False


def _works(supervisor: Registered | None) -> bool:
    return supervisor is not None and not _stopped(supervisor)


def _stop_supervisor(supervisor: Registered) -> None:
    """Have a supervisor end its daemons in good order, and wait for its end."""
    process = supervisor.process()
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was stopped hears of it only when it goes on
    wait_until(lambda: supervisor.process() is None, SUPERVISOR_STOP_S)
