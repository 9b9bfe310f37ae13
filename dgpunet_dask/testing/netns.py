"""Hosts in network namespaces of one Linux machine: a LAN whose links can be slowed, cut and mended.

Each host sees the loopback interface and ``eth0``, 10.77.0.k/24, a veth whose other end is a port of a bridge in a namespace of its
own. So nothing touches the machine's own network, and any number of LANs stand side by side. Its host name is its own, though no
resolver knows it. Processes, files and Unix sockets are shared by all hosts; ``/sys`` is the host's own: its links are seen there,
control groups are not.

netem and nft are not needed: rates come from ``tbf``, and a link is cut by taking its port off the bridge, which drops everything
in silence, as a dead switch does. iperf3 reads 94 to 96% of the rates 1gbit, 2.5gbit and 10gbit: what headers leave.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

PREFIX: Final = "dgn"
FOLDER: Final = Path("/run/netns")
SUBNET: Final = "10.77.0"
MOST_HOSTS: Final = 250
_NAME: Final = re.compile(rf"{PREFIX}-(?P<pid>\d+)-(?P<start>\d+)-\d+-.+")
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RATE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[kmg]?)bit")
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
#: A bucket of 2 ms refills between two ticks of a 500 Hz clock; below 128 KiB, packets of 64 KiB (GSO) are cut up one by one.
_BUCKET_S: Final = 0.002
_BUCKET_LEAST: Final = 128 << 10
#: What may queue in front of the bucket, as a switch's buffers do, before packets are dropped.
_QUEUE: Final = "50ms"
_COMMAND_S: Final = 20.0
_KILL_S: Final = 10.0
_serial = count()


@cache
def permitted() -> str | None:
    """Return why hosts cannot be made here, ``None`` where they can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if missing := [name for name in ("ip", "tc", "unshare", "hostname") if shutil.which(name) is None]:
        return f"no {', '.join(missing)}: apt-get install iproute2 util-linux hostname"
    try:
        with Lan("a") as lan:
            lan.rate_limit("a", "1gbit")
            told = lan.host("a").run(["hostname"])
    except OSError as error:
        return str(error)
    return None if told.stdout.strip() == "a" else told.stderr.strip()


@dataclass(frozen=True)
class NetHost:
    """One host: its name, its namespace, its address, and the port of the bridge that it hangs on."""

    name: str
    namespace: str
    address: str
    port: str
    started: list[subprocess.Popen[str]] = field(default_factory=list, repr=False, compare=False)

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = 60.0,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` on this host to its end and return it with what it wrote.

        Parameters
        ----------
        env
            The whole environment, as for `subprocess.run`; ``None`` is ours.

        Raises
        ------
        subprocess.TimeoutExpired
            If it, or a child that holds its output open, runs for longer; the command itself is killed.
        subprocess.CalledProcessError
            With `check`, if it exits with another code than 0.
        """
        return subprocess.run(
            self._inside(command), timeout=timeout_s, check=check, env=env, cwd=cwd, input=stdin, capture_output=True, text=True
        )

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Start `command` on this host, in a session of its own, and return it: its pid is the command's. Killed with the LAN."""
        process = subprocess.Popen(
            self._inside(command),
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def pids(self) -> list[int]:
        """Return every process that runs on this host, whoever started it."""
        return _pids([self.namespace])

    def _inside(self, command: Sequence[str]) -> list[str]:
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named, *command]  # each becomes the next: no process stands between


class Lan:
    """Hosts on one bridge, for the length of a ``with``; whatever still runs on them at its end is killed.

    Parameters
    ----------
    names
        The hosts; their addresses are 10.77.0.1 and up, in this order.

    Raises
    ------
    OSError
        On entering, if the kernel refuses a part of it; what was made is removed.
    ValueError
        If two hosts have one name, a name cannot be a host's, or there are more than 250.
    """

    def __init__(self, *names: str) -> None:
        if bad := [name for name in names if not _HOST.fullmatch(name)]:
            raise ValueError(f"not names of hosts: {bad}")
        if len(set(names)) != len(names) or len(names) > MOST_HOSTS:
            raise ValueError(f"one to {MOST_HOSTS} different names, not {names}")
        own = f"{PREFIX}-{os.getpid()}-{_start_of(os.getpid()) or 0}-{next(_serial)}"
        self.bridge = f"{own}-bridge"
        self.hosts = {
            name: NetHost(name, f"{own}-host-{name}", f"{SUBNET}.{k}", f"port{k}") for k, name in enumerate(names, start=1)
        }

    def host(self, name: str) -> NetHost:
        """Return the host of this name."""
        return self.hosts[name]

    def rate_limit(self, name: str, rate: str | None) -> None:
        """Let a host send and receive at most at `rate`, such as ``2.5gbit``; ``None`` lifts the limit.

        Raises
        ------
        ValueError
            If `rate` is not a number with ``bit``, ``kbit``, ``mbit`` or ``gbit``.
        """
        host = self.hosts[name]
        for namespace, device in ((host.namespace, "eth0"), (self.bridge, host.port)):
            if rate is None:
                with contextlib.suppress(OSError):  # there was no limit
                    _run(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"])
            else:
                shape = ["tbf", "rate", rate, "burst", str(bucket_bytes(rate)), "latency", _QUEUE]
                _run(["tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *shape])

    def cut(self, name: str) -> None:
        """Take a host off the bridge: its packets, and those to it, are lost without a word; its own interfaces stay up."""
        _batch(self.bridge, [f"link set {self.hosts[name].port} nomaster"])

    def mend(self, name: str) -> None:
        """Put a host back on the bridge."""
        _batch(self.bridge, [f"link set {self.hosts[name].port} master lan0"])

    def pids(self) -> list[int]:
        """Return every process that runs on one of the hosts."""
        return _pids(self._namespaces())

    def __enter__(self) -> Self:
        sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _build(self) -> None:
        for namespace in self._namespaces():
            _run(["ip", "netns", "add", namespace])
        # without a forwarding delay a port learns for 15 s before it lets anything through
        _batch(self.bridge, ["link add name lan0 type bridge forward_delay 0", "link set lan0 up"])
        for host in self.hosts.values():
            veth = f"link add name eth0 type veth peer name {host.port} netns {self.bridge}"
            _batch(host.namespace, ["link set lo up", veth, f"address add {host.address}/24 dev eth0", "link set eth0 up"])
        _batch(self.bridge, [f"link set {host.port} {how}" for host in self.hosts.values() for how in ("master lan0", "up")])

    def _remove(self) -> None:
        try:
            _end(self._namespaces())
        finally:
            for process in (p for host in self.hosts.values() for p in host.started):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_KILL_S)

    def _namespaces(self) -> list[str]:
        return [self.bridge, *(host.namespace for host in self.hosts.values())]


def bucket_bytes(rate: str) -> int:
    """Return the size of the bucket under which `tbf` gives `rate`.

    Raises
    ------
    ValueError
        If `rate` is not a number with ``bit``, ``kbit``, ``mbit`` or ``gbit``.
    """
    found = _RATE.fullmatch(rate)
    if found is None:
        raise ValueError(f"not a rate: {rate!r}; write 100mbit, 2.5gbit")
    bits_per_s = float(found["number"]) * _UNITS[found["unit"]]
    return max(_BUCKET_LEAST, int(bits_per_s * _BUCKET_S / 8))


def sweep() -> list[str]:
    """Remove the hosts of owners that are gone, with what runs on them; return the namespaces that were removed."""
    dead = [name for name in _listed() if (found := _NAME.fullmatch(name)) and _start_of(int(found["pid"])) != int(found["start"])]
    _end(dead)
    return dead


def _end(namespaces: Sequence[str]) -> None:
    """Kill what runs in the namespaces, and remove them. Those that are gone already are no fault."""
    deadline = time.monotonic() + _KILL_S
    while left := _pids(namespaces):  # again: a process may have forked between the look and the blow
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise OSError(f"these processes survive SIGKILL: {left}")
        time.sleep(0.01)
    for namespace in namespaces:
        try:
            _run(["ip", "netns", "delete", namespace])
        except OSError:
            if namespace in _listed():  # else it was never made, or another sweep was quicker
                raise


def _listed() -> set[str]:
    return {path.name for path in FOLDER.iterdir()} if FOLDER.is_dir() else set()


def _pids(namespaces: Iterable[str]) -> list[int]:
    wanted = set()
    for namespace in namespaces:
        with contextlib.suppress(OSError):
            wanted.add(_identity(FOLDER / namespace))
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()) if wanted else ():
        with contextlib.suppress(OSError):  # gone, a zombie, or another user's
            if _identity(Path(f"/proc/{pid}/ns/net")) in wanted:
                found.append(pid)
    return found


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; ``None`` where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # field 22; the second, the name, may hold anything


def _batch(namespace: str, lines: Sequence[str]) -> None:
    _run(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: Sequence[str], given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
