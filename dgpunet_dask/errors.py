"""The whole error tree.

A class's docstring is its message; the braces are filled from the keyword arguments, and the last sentence names the cure.
`exit_code` is the documented status of the command line (design: 2 usage, 3 check, 100-105 jobs, 130 interrupted)::

    DgpunetError (1)
    ├── UsageError (2)
    │   ├── BadValue, BadName, MissingPath, UnreadablePath, UnknownParameter, MissingParameter
    │   ├── MalformedFile           every mistake of a file at once, as file:line:col
    │   ├── NewerFormat, ModelUnavailable, BadWorkload, NeedsHead, OtherFleetRunning, OtherPolicyRunning, NoCases,
    │   │   NoRecordedFleet, LoopbackOnly
    │   ├── BadToken, TokenRefused, CertificateRefused, JoinRefused, TooManyAttempts
    │   ├── NoIdentity, NotAllowed
    ├── StartFailed (1)
    ├── CheckFailed (3)
    │   ├── PolicyCasesFailed
    ├── JobFailed (100)
    │   ├── StageFailed, StageHostLost, StageHung, EnvironmentFailed, DiskFull, DamagedFile
    │   ├── StageOutOfMemory, ForeignMemory, FolderMissing
    ├── PeerFailed (1)
    │   ├── PeerBusy
    ├── StillRunning (101), StillDraining (101)
    ├── NotFound (102)
    │   ├── NoSuchWorkload, NoSuchJob, NoSuchIndex, NoHead, NoSuchNode
    ├── JobCancelled (103)
    ├── JobLost (104)
    ├── Unplaceable (105)
    └── Interrupted (130)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


class DgpunetError(Exception):
    """Something went wrong that has no name yet: {detail}. Please report it with `-v` output."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "unexpected"

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The docstring's first paragraph with its braces filled in."""
        text = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())
        return text.format(**self.fields)

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """Details for machines: one mapping per cause, empty where the message says all."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the `error` object of the JSON results: code, message, reasons."""
        return {"code": self.code, "message": self.message, "reasons": self.reasons}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[DgpunetError], fields: dict[str, Any]) -> DgpunetError:
    return kind(**fields)


class UsageError(DgpunetError):
    """{detail}"""

    exit_code = 2
    code = "usage"


class BadValue(UsageError):
    """{what} {value!r} is not valid: {why}."""

    code = "bad_value"


class BadName(UsageError):
    """The name {name!r} is not allowed for {what}: use letters, digits, dot, underscore and hyphen, starting with a letter or digit,
    at most 200 of them.
    """

    code = "bad_name"


class MissingPath(UsageError):
    """{path}: there is no such file or directory. Check the spelling; relative paths are taken from where you call."""

    code = "missing_path"


class UnreadablePath(UsageError):
    """{path}: cannot be read ({why}). Give the calling user permission or choose another path."""

    code = "unreadable_path"


class UnknownParameter(UsageError):
    """Workload {workload} has no parameter {name!r}{hint}. Its parameters: {known}."""

    code = "unknown_parameter"


class MissingParameter(UsageError):
    """Workload {workload} needs {name!r}. Add `--set {name}=...`."""

    code = "missing_parameter"


class NewerFormat(UsageError):
    """{path} has format version {found}, and this release reads up to {known}. Upgrade dgpunet-dask, or remove the file."""

    code = "newer_format"


class NoCases(UsageError):
    """No test case was found in {where}{text}. Name a policy test file, or a folder that holds some."""

    code = "no_cases"


class NoRecordedFleet(UsageError):
    """The trace {where} does not say on which machines its work ran. Name a fleet file with --fleet."""

    code = "no_recorded_fleet"


class ModelUnavailable(UsageError):
    """The model {model!r} cannot be loaded: {why}. Use a hub name, a local sentence-transformers folder, or `minilm`."""

    code = "model_unavailable"


class BadWorkload(UsageError):
    """Workload {workload} cannot be used: {why}."""

    code = "bad_workload"


class NeedsHead(UsageError):
    """{what} needs a running head. Start one with `dgpunet-dask up`, then repeat the command."""

    code = "needs_head"


class OtherFleetRunning(UsageError):
    """A cluster with another fleet is running ({running}). Run `dgpunet-dask down` first, then `up` again."""

    code = "other_fleet"


class OtherPolicyRunning(UsageError):
    """A cluster with other policies is running ({running}). Edit those files, which are read again at once, or run `dgpunet-dask down`
    first, then `up` again.
    """

    code = "other_policy"


class LoopbackOnly(UsageError):
    """{what} needs a cluster that other machines can join, and this one answers on this machine alone. Start one with `dgpunet-dask head`."""

    code = "loopback_only"


class BadToken(UsageError):
    """The {kind} is not whole: {why}. Give all of it, from its first sign to its last."""

    code = "bad_token"


class TokenRefused(UsageError):
    """The token was refused: {why}. Make one for this host with `dgpunet-dask token create` on the head."""

    code = "token_refused"

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """One mapping with the reason in one word."""
        return [{"code": self.fields.get("reason")}]


class CertificateRefused(UsageError):
    """A certificate was refused: {why}."""

    code = "certificate_refused"


class NotAllowed(UsageError):
    """{what} is not allowed: {why}. Use a key that may, or ask an operator of the cluster for one (`dgpunet-dask key create`)."""

    code = "not_allowed"


class JoinRefused(UsageError):
    """Host {host} cannot join: {why}."""

    code = "join_refused"


class TooManyAttempts(UsageError):
    """Too many keys or tokens that are none came from this address. Wait {wait_s:.0f} s, then use one that is good."""

    code = "too_many_attempts"


class NoIdentity(UsageError):
    """{folder} holds no certificate of a cluster ({why}). Run `dgpunet-dask join TOKEN` with a token of its head."""

    code = "no_identity"


class Problem(NamedTuple):
    """One mistake in a file; `line` and `col` are 1-based."""

    file: str
    line: int
    col: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}: {self.what}"


class MalformedFile(UsageError):
    """{text}"""

    code = "malformed_file"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.file, p.line, p.col, p.what))
        super().__init__(text="\n".join(map(str, self.problems)))

    @property
    def message(self) -> str:
        """One `file:line:col: what` line per mistake."""
        return str(self.fields["text"])

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """The mistakes as mappings with file, line, col, what."""
        return [p._asdict() for p in self.problems]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class StartFailed(DgpunetError):
    """The cluster did not start: {why}. Its logs are in {logs}."""

    code = "start_failed"


class CheckFailed(DgpunetError):
    """The check {what} found {count} fault(s). They are listed above."""

    exit_code = 3
    code = "check_failed"


class PolicyCasesFailed(CheckFailed):
    """{count} case(s) fail with the changed policy files: {names}. `dgpunet-dask policy test {where}` tells why; mend the files or the cases."""

    code = "policy_cases"


class JobFailed(DgpunetError):
    """The job failed: {why}"""

    exit_code = 100
    code = "job_failed"


class StageFailed(JobFailed):
    """Stage {stage} raised {kind}: {why}. The traceback is in `dgpunet-dask jobs logs`."""

    code = "stage_failed"


class StageHostLost(JobFailed):
    """The process of stage {stage} on {device} ended ({how}) during {attempts} attempt(s). Its last words are in {log}."""

    code = "stage_host_lost"


class StageHung(JobFailed):
    """Stage {stage} on {device} reported no progress for {deadline_s:g} s and was killed. Raise `deadline:` in job.yaml if it needs longer."""

    code = "stage_hung"


class StageOutOfMemory(JobFailed):
    """Stage {stage} ran out of GPU memory: its peak was {peak} where {charge} were charged, on {cards}, after {attempts} attempt(s). Make
    its batches smaller, state a larger `vram` in its demand, or add a larger card; `on_oom` in a policy says how far the demand may grow.
    """

    code = "out_of_memory"


class ForeignMemory(JobFailed):
    """Other processes fill {device}: {free} were free where stage {stage} was promised {charge}, after {attempts} attempt(s). End them
    (`nvidia-smi` lists them), or keep room for them with `reserve` of that card in the fleet file.
    """

    code = "foreign_memory"


class EnvironmentFailed(JobFailed):
    """The environment {lock} of stage {stage} could not be built: {why}. Check the lock file by hand with `pip install -r {lock}`."""

    code = "environment_failed"


class DiskFull(JobFailed):
    """No space left on the disk of {path}. Nothing was published and the old state stays; free some space and submit again."""

    code = "disk_full"


class DamagedFile(JobFailed):
    """{path} is damaged: {why}. Remove it and submit again; what it held is computed anew."""

    code = "damaged_file"


class FolderMissing(JobFailed):
    """The {kind} {digest} is not on this machine, and no other gave it: {why}. Submit again; `dgpunet-dask doctor` tells who reaches whom."""

    code = "folder_missing"


class StillRunning(DgpunetError):
    """Job {job_id} is still running after {timeout_s:g} s. `dgpunet-dask jobs wait {job_id}` waits on."""

    exit_code = 101
    code = "still_running"


class PeerFailed(DgpunetError):
    """Host {host} did not answer {request!r} on its peer port {address}: {why}. `dgpunet-dask doctor` tells whether it is up and reachable."""

    code = "peer_failed"


class PeerBusy(PeerFailed):
    """Host {host} did not answer {request!r} on its peer port {address}: {why}. Wait a few seconds, then ask again."""

    code = "peer_busy"


class NotFound(DgpunetError):
    """{what} was not found."""

    exit_code = 102
    code = "not_found"


class NoSuchWorkload(NotFound):
    """There is no workload {name!r}{hint}. Give a shipped name ({known}) or the path of a folder with a job.yaml."""

    code = "no_workload"


class NoSuchJob(NotFound):
    """There is no job {job_id!r} on this cluster. `dgpunet-dask jobs list` shows those there are."""

    code = "no_job"


class NoSuchIndex(NotFound):
    """There is no index {name!r}{hint}. `dgpunet-dask index list` shows those there are; `submit embed-codebase` makes one."""

    code = "no_index"


class NoHead(NotFound):
    """No head answers at {where}. Start one with `dgpunet-dask up` (`head` for several machines), or check `--cluster` and $DGPUNET_CLUSTER."""

    code = "no_head"


class NoSuchNode(NotFound):
    """There is no host {name!r} in this cluster; it has {known}. `dgpunet-dask nodes` shows them."""

    code = "no_node"


class JobCancelled(DgpunetError):
    """Job {job_id} was cancelled. Submit it again to continue; finished work is reused."""

    exit_code = 103
    code = "cancelled"


class JobLost(DgpunetError):
    """The head that ran job {job_id} is gone and none took over. Start one with `dgpunet-dask up` and submit again."""

    exit_code = 104
    code = "lost"


class Unplaceable(DgpunetError):
    """No device of this fleet can ever hold {what}: {summary}. Lower the demand or add a device that fits."""

    exit_code = 105
    code = "unplaceable"

    @property
    def message(self) -> str:
        """The docstring, and the nearest change that would help where one is known."""
        fix = self.fields.get("fix")
        return f"{super().message} Nearest: {fix}." if fix else super().message

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """One mapping per device: device, code, need, have."""
        return list(self.fields.get("verdicts", ()))


class StillDraining(DgpunetError):
    """Host {host} is still draining after {timeout_s:g} s and its grace. `dgpunet-dask nodes` shows what runs there."""

    exit_code = 101
    code = "still_draining"


class Interrupted(DgpunetError):
    """Interrupted. Nothing half-done was published."""

    exit_code = 130
    code = "interrupted"


@dataclass(frozen=True)
class ReportedError:
    """An error as it crosses a process border: what `to_json` gave, and the exit code it had."""

    exit_code: int
    code: str
    message: str
    reasons: list[dict[str, Any]]


class _Told:
    """Makes an error say what another process said, word for word, while it stays an instance of its class."""

    exit_code: ClassVar[int]
    code: ClassVar[str]
    fields: dict[str, Any]

    def __init__(self, told: ReportedError) -> None:
        self.fields = {"told": told}
        Exception.__init__(self, told.message)  # type: ignore[arg-type]  # always mixed into an exception

    @property
    def message(self) -> str:
        """What was said."""
        return str(self.fields["told"].message)

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """The reasons that were given."""
        return list(self.fields["told"].reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (self.fields["told"],)


def rebuild_error(told: ReportedError) -> DgpunetError:
    """Return an error of the class that has the code of `told`, with its message, reasons and exit code."""
    kind = next((k for k in _classes(DgpunetError) if k.code == told.code), DgpunetError)
    named = {"exit_code": told.exit_code, "code": told.code, "__doc__": kind.__doc__, "__module__": kind.__module__}
    error = type(kind.__name__, (_Told, kind), named)(told)
    assert isinstance(error, DgpunetError)
    return error


def _classes(root: type[DgpunetError]) -> Iterable[type[DgpunetError]]:
    """Yield `root` and everything below it, except what `rebuild_error` made."""
    if not issubclass(root, _Told):
        yield root
        for kind in root.__subclasses__():
            yield from _classes(kind)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
