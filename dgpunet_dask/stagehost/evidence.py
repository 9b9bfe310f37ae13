"""What is known of a call that failed, beside what the error says: facts from which its cause can be told. Never the items themselves.

Each is ``None`` where the system does not tell it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import MalformedFile

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The facts of one failed call.

    Parameters
    ----------
    pid, device
        The process that served it, and what for.
    seconds
        How long the call had taken.
    exit_signal, exit_status
        How the process ended: the signal's name, or the status. Both ``None`` if it has not ended by itself.
    cgroup_oom_kills
        How many processes the kernel has killed for want of memory since the call began: in the process's cgroup, else on the machine.
    log_tail
        The last of what was printed since the call began.
    """

    pid: int
    device: str
    seconds: float
    exit_signal: str | None = None
    exit_status: int | None = None
    cgroup_oom_kills: int | None = None
    log_tail: str = ""

    def fields(self) -> dict[str, Any]:
        """Return the facts as fields of an error."""
        return asdict(self)


def with_evidence(raw: Mapping[str, Any], evidence: Evidence) -> dict[str, Any]:
    """Return the error `raw`, which a stage host has told as `reports.error_to_json` gives it, with what the agent knows of the call."""
    return with_facts(raw, evidence.fields())


def with_facts(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error `raw`, with those facts that are `known` beside its own."""
    if raw["class"] == MalformedFile.__name__:  # all that it has is its list of mistakes
        return dict(raw)
    return {**raw, "fields": {**known, **raw["fields"]}}


def exit_of(returncode: int | None) -> tuple[str | None, int | None]:
    """Return the name of the signal, and the exit status, that `returncode` of an ended process stands for: one of them, or none."""
    if returncode is None or returncode >= 0:
        return None, returncode
    try:
        return signal.Signals(-returncode).name, None
    except ValueError:
        return f"signal {-returncode}", None


def oom_counter(pid: int, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Path | None:
    """Return the file that counts what the kernel kills for want of memory in the cgroup of `pid`, else on the whole machine.

    Both kinds of cgroups are known. In a container their paths may be those of its host; its own root stands for them.
    """
    found = []
    for unified, path in _memory_cgroups(proc / str(pid) / "cgroup"):
        root = cgroups if unified else cgroups / "memory"
        found += [folder / ("memory.events" if unified else "memory.oom_control") for folder in (root / path.lstrip("/"), root)]
    return next((file for file in [*found, proc / "vmstat"] if oom_kills(file) is not None), None)


def _memory_cgroups(file: Path) -> list[tuple[bool, str]]:
    """Return whether it is of the unified hierarchy, and the path, of each cgroup in `file` that may count memory."""
    try:
        lines = [line.split(":", 2) for line in file.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return []
    return [(number == "0", path) for number, names, path in lines if number == "0" or "memory" in names.split(",")]


def oom_kills(counter: Path | None) -> int | None:
    """Return what a file of `oom_counter` counts."""
    if counter is None:
        return None
    try:
        pairs = [line.split() for line in counter.read_text().splitlines()]
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None
