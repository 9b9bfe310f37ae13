"""What a caller got wrong: values, files, names, commands that do not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from dgpunet_dask.errors.base import DgpunetError


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


class SlowPaths(UsageError):
    """The paths of this submission were not looked at within {seconds} s. Name folders in place of many files, submit it in parts, or try again
    once the disk that they are on answers sooner.
    """

    code = "slow_paths"


class MissingPath(UsageError):
    """{path}: there is no such file or directory. Check the spelling; relative paths are taken from where you call."""

    code = "missing_path"


class UnreadablePath(UsageError):
    """{path}: cannot be read ({why}). Give the calling user permission or choose another path."""

    code = "unreadable_path"


class UnknownParameter(UsageError):
    """Workload {workload} has no parameter {name!r}{hint} Its parameters: {known}."""

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


class RerankerUnavailable(ModelUnavailable):
    """The reranker {model!r} cannot be used: {why}. Name one that stands under `rerankers` in config.yaml; where the index's files are read, its folder will do."""

    code = "reranker_unavailable"


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


class ResultsElsewhere(UsageError):
    """The results of job {job_id} are not in {folder}: they are files of its head's host, and are read there. Run this on that host, with
    $DGPUNET_HOME as its head has it; if it was that, the job was tidied up, and is to be submitted again.
    """

    code = "results_elsewhere"


class KeyReused(UsageError):
    """The idempotency key {key!r} has been used for another submission ({job_id}). Use a new key for new work; the same key only to send
    the same submission again.
    """

    code = "key_reused"
