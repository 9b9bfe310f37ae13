"""Whose fault a failed attempt is: from what is known of it, and from what became of other attempts. Pure.

What the system itself says goes first (a full disk, an Xid, a process that the kernel killed for want of memory). Where only a process died
or a stage raised, others tell: a unit that failed on two hosts is to blame itself; a host where several units died is to blame instead, if
units passed where it is otherwise: a mistake in the code ends every unit's process, on whatever host.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from dgpunet_dask.errors.fullness import NO_FILES, NO_ROOM
from dgpunet_dask.hardware.xids import meaning_of

CauseCode = Literal["user", "data", "gpu-oom", "host-oom", "gpu-hardware", "thermal", "network", "disk", "version", "system"]
CAUSES: Final[tuple[str, ...]] = get_args(CauseCode)
Confidence = Literal["certain", "likely", "guess"]

_DISK_CODES: Final = frozenset({"disk_full", "stage_disk_full", "low_disk"})
_OOM_CODES: Final = frozenset({"out_of_memory", "foreign_memory"})
_NETWORK_CODES: Final = frozenset({"peer_failed", "peer_busy", "folder_missing"})
_VERSION_CODES: Final = frozenset({"environment_failed", "newer_format"})
#: A process ended, or had to be ended, without a word of its own.
_DEATHS: Final = frozenset({"stage_host_lost", "stage_hung", "worker_killed"})
_IMPORT_ERRORS: Final = frozenset({"ImportError", "ModuleNotFoundError"})
#: Raised without a number, they say by their class that it was a connection.
_CONNECTION_ERRORS: Final = frozenset({"ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError"})
#: The same of classes that are not the interpreter's: of its `socket`, requests, urllib3, httpx, aiohttp, botocore. No name that others have for
#: something else: a ``ReadError`` is an archive's too, a ``Timeout`` a lock's.
_CONNECTION_KINDS: Final = _CONNECTION_ERRORS | frozenset({
    "gaierror", "herror", "ReadTimeout", "WriteTimeout", "ConnectTimeout", "ConnectError", "ProxyError", "ReadTimeoutError", "ConnectTimeoutError",
    "NewConnectionError", "MaxRetryError", "NameResolutionError", "ClientConnectorError", "ClientConnectorDNSError", "ServerDisconnectedError",
    "ServerTimeoutError", "ConnectionTimeoutError", "SocketTimeoutError", "EndpointConnectionError", "ConnectionClosedError",
})  # fmt: skip
_UNREACHED: Final = frozenset({
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN,
    errno.ETIMEDOUT, errno.EPIPE,
})  # fmt: skip
#: What libraries print, or raise, when they do not fit the machine, in small letters.
_MISFITS: Final = (
    "no kernel image is available", "driver version is insufficient", "driver on your system is too old", "driver/library version mismatch",
    "undefined symbol", "glibc_", "cannot import name", "no module named",
)  # fmt: skip
_OOM_WORDS: Final = ("cuda out of memory", "cuda_error_out_of_memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class Cause:
    """Whose fault it is, how sure that is, and what it is known from."""

    code: CauseCode
    confidence: Confidence
    why: str


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another attempt that has ended.

    Parameters
    ----------
    same_unit
        Whether it was of the same unit.
    host, device
        Where it ran, as far as that is known.
    error_code
        What it failed with; ``None``: it went well.
    exit_signal
        The signal that ended its process, where one did.
    """

    same_unit: bool
    host: str | None = None
    device: str | None = None
    error_code: str | None = None
    exit_signal: str | None = None


@dataclass(frozen=True)
class _Case:
    """The evidence, with what it does not say as ``None``."""

    evidence: Mapping[str, Any]
    others: Sequence[Other]

    def __getattr__(self, name: str) -> Any:
        return self.evidence.get(name)

    @property
    def text(self) -> str:
        """What was printed last, in small letters."""
        return str(self.log_tail or "").lower()

    @property
    def raised(self) -> str:
        """What the exception said that the stage raised, in small letters."""
        return str(self.why or "").lower() if self.error_code == "stage_failed" else ""

    @property
    def died(self) -> bool:
        return self.error_code in _DEATHS or self.exit_signal is not None

    @property
    def unit_hosts(self) -> set[str]:
        """Hosts where this unit failed."""
        told = {o.host for o in self.others if o.same_unit and o.error_code is not None} | {self.host}
        return {host for host in told if host is not None}

    @property
    def host_deaths(self) -> int:
        """How many attempts of other units died on this host."""
        return sum(not o.same_unit and o.error_code in _DEATHS and o.host == self.host for o in self.others) if self.host else 0

    @property
    def singled_out(self) -> bool:
        """Whether deaths tell its host from others: units passed on one without deaths and none here, or some passed and no other host has deaths.

        The latter not where its process ended by itself, with a status: the code did that, which has done others well, here maybe too.
        """
        passed = {o.host for o in self.others if not o.same_unit and o.error_code is None and o.host is not None}
        elsewhere = {o.host for o in self.others if o.error_code in _DEATHS and o.host is not None} - {self.host}
        told = bool(passed - elsewhere) and not self.passed_here
        return told or (self.exit_status is None and self.others_passed and not elsewhere)

    @property
    def failed_here(self) -> list[Other]:
        """Earlier attempts of this unit that failed on this host."""
        return [o for o in self.others if o.same_unit and o.error_code is not None and self._was_here(o)]

    @property
    def passed_here(self) -> bool:
        return any(not o.same_unit and o.error_code is None and self._was_here(o) for o in self.others)

    @property
    def passed_on_device(self) -> bool:
        return self.device is not None and any(not o.same_unit and o.error_code is None and o.device == self.device for o in self.others)

    def _was_here(self, other: Other) -> bool:
        """Whether it ran on the same host: of one that ended at once only its device may be known."""
        return (other.host is not None and other.host == self.host) or (other.device is not None and other.device == self.device)

    @property
    def others_passed(self) -> bool:
        return any(not o.same_unit and o.error_code is None for o in self.others)


def attribute(evidence: Mapping[str, Any], *, elsewhere: Sequence[Other] = ()) -> Cause:
    """Return the cause of one failed attempt.

    Parameters
    ----------
    evidence
        What is known; whatever is missing or ``None`` was not reported. ``error_code`` (of our errors), ``kind`` (the class that a stage
        raised), ``error_kind`` (that of the interpreter which it is one of), ``errno``, ``exit_signal`` (``SIGKILL``), ``exit_status``,
        ``cgroup_oom_kills`` (since the call began), ``xid`` (numbers), ``thermal`` (whether the card was slowed by heat), ``usage`` (it is a
        `UsageError`), ``device``, ``host``, ``log_tail``, ``why`` (the text of what a stage raised).
    elsewhere
        Earlier attempts of the same unit, and what became of other units of the job and of that host.
    """
    case = _Case(evidence, elsewhere)
    for rule in _RULES:
        if (found := rule(case)) is not None:
            return found
    return Cause("system", "guess", f"nothing tells more than {case.error_code or 'that it ended'}")


def _files(case: _Case) -> Cause | None:
    return Cause("system", "certain", "no more files could be opened") if case.errno in NO_FILES else None


def _disk(case: _Case) -> Cause | None:
    if case.errno in NO_ROOM or case.error_code in _DISK_CODES:
        return Cause("disk", "certain", "no space was left on a disk")
    return Cause("disk", "likely", "a file was damaged") if case.error_code == "damaged_file" else None


def _host_oom(case: _Case) -> Cause | None:
    if case.exit_signal == "SIGKILL" and (case.cgroup_oom_kills or 0) > 0:
        return Cause("host-oom", "certain", f"the kernel killed {case.cgroup_oom_kills} process(es) for want of memory")
    if case.error_kind == "MemoryError" or case.errno == errno.ENOMEM:
        return Cause("host-oom", "likely", "the host gave no more memory")
    return None


def _gpu_hardware(case: _Case) -> Cause | None:
    bad = [x for x in case.xid or () if meaning_of(x).cause == "hardware" and meaning_of(x).severity != "silent"]
    if not bad:
        return None
    sure: Confidence = "certain" if any(meaning_of(x).severity == "critical" for x in bad) else "likely"
    return Cause("gpu-hardware", sure, "; ".join(f"Xid {x}: {meaning_of(x).meaning}" for x in bad))


def _gpu_oom(case: _Case) -> Cause | None:
    if case.error_code in _OOM_CODES:
        return Cause("gpu-oom", "certain", "the card had no memory left")
    found = next((words for words in _OOM_WORDS if words in case.text), None)
    return Cause("gpu-oom", "likely", f"it printed {found!r}") if found and case.died else None


def _version(case: _Case) -> Cause | None:
    # Others have passed on that very device: then it fits, and the words are those of the unit's own input.
    told = case.text if case.died else "" if case.passed_on_device else case.raised
    misfit = next((words for words in _MISFITS if words in told), None)
    if case.error_kind in _IMPORT_ERRORS or case.error_code in _VERSION_CODES or misfit:
        why = f"{case.error_kind or case.error_code}: {misfit or 'what is installed there does not fit'}"
        return Cause("version", "likely", why)
    return Cause("version", "likely", "it used an instruction that the processor does not have") if case.exit_signal == "SIGILL" else None


def _network(case: _Case) -> Cause | None:
    if case.error_code in _NETWORK_CODES:
        return Cause("network", "likely", "its host could not be reached")
    if case.errno in _UNREACHED:
        return Cause("network", "likely", f"a connection ended ({errno.errorcode[case.errno]})")
    # urllib's one class is a malformed address's too: a name server's numbers are negative, and a socket says that its time is over.
    unopened = case.kind == "URLError" and ((case.errno or 0) < 0 or "timed out" in case.raised)
    if unopened or case.kind in _CONNECTION_KINDS or case.error_kind in _CONNECTION_ERRORS:
        return Cause("network", "likely", f"a connection ended ({case.kind or case.error_kind})")
    # A socket's has no number; one of a class derived from it is no socket's: a lock that was not to be had, a user's own bound.
    if case.error_kind == "TimeoutError" and case.kind in (None, "TimeoutError") and case.errno is None:
        return Cause("network", "likely", "something that it waited for did not answer (TimeoutError)")
    return None


def _unit(case: _Case) -> Cause | None:
    """The same unit on two hosts: it is the unit, its input where the same code did others well."""
    if len(case.unit_hosts) < 2:
        return None
    hosts = ", ".join(sorted(case.unit_hosts))
    return Cause("data" if case.others_passed else "user", "certain", f"it failed on {hosts} alike")


def _thermal(case: _Case) -> Cause | None:
    if not case.thermal or not case.died or _again(case) is not None:  # others have done well on the same hot card
        return None
    return Cause("thermal", "likely", "its card was slowed down by heat")


def _host(case: _Case) -> Cause | None:
    """Other units died on the same host, unlike elsewhere: it is the host. What a stage raises is no death: the same mistake meets every unit."""
    if not case.died or not case.host_deaths or not case.singled_out:
        return None
    on_card = case.device is not None and not str(case.device).endswith("cpu")
    return Cause("gpu-hardware" if on_card else "system", "likely", f"{case.host_deaths} other unit(s) died on {case.host}")


def _again(case: _Case) -> Cause | None:
    """The unit's own process died each time on a host where others passed: whoever killed it, it is the unit."""
    if not case.died or not case.failed_here or not case.passed_here or any(o.error_code not in _DEATHS for o in case.failed_here):
        return None
    signals = {case.exit_signal, *(o.exit_signal for o in case.failed_here)}
    how = f"was killed by {case.exit_signal}" if signals == {case.exit_signal} != {None} else "ended"
    return Cause("data", "likely", f"its own process {how} each of {len(case.failed_here) + 1} times on {case.host or case.device}, where other units passed")


def _code(case: _Case) -> Cause | None:
    workload = [x for x in case.xid or () if meaning_of(x).severity == "job" and x != _KILLED_XID]
    if workload:
        return Cause("user", "likely", "; ".join(f"Xid {x}: {meaning_of(x).meaning}" for x in workload))
    if case.error_code == "stage_failed":
        told = f"its code raised {case.kind or case.error_kind or 'an exception'}"
        return Cause("data", "likely", f"{told}, and not for other units") if case.others_passed else Cause("user", "likely", told)
    if case.usage:
        return Cause("user", "likely", "what it was asked for will not do")
    if (found := _again(case)) is not None:
        return found
    if case.exit_signal == "SIGKILL":
        return Cause("system", "guess", "somebody killed its process; the kernel did not, for want of memory")
    if case.died:
        how = case.exit_signal or (f"status {case.exit_status}" if case.exit_status is not None else case.error_code)
        return Cause("data" if case.others_passed else "user", "guess", f"its process ended ({how}), and nothing else is wrong there")
    return None


#: What a program had on a card was cleared away: seen whenever one is killed, so it says nothing of why.
_KILLED_XID: Final = 45
_RULES: Final[tuple[Callable[[_Case], Cause | None], ...]] = (
    _disk, _files, _host_oom, _gpu_hardware, _gpu_oom, _version, _network, _unit, _thermal, _host, _code,
)  # fmt: skip
