"""``run/head.json``: where the running head answers, and the key that it asks for. Mode 0600, replaced in one step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import NewerFormat
from dgpunet_dask.security.files import write_private

VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class HeadFile:
    """One running head.

    Parameters
    ----------
    pid, created
        The daemon's process id and its creation time (seconds since 1970): together they name one process for ever.
    api, key
        Base address of its HTTP API, and the bearer key.
    scheduler, dashboard
        Addresses of the Dask scheduler and of its dashboard (``None`` without one).
    fleet, fleet_digest
        What the fleet was read from (``local`` or a file), and the digest of what it says.
    embedded
        Whether it ends with the last command that uses it.
    policy
        The policy files that it was started with; empty where those of its home count.
    """

    pid: int
    created: float
    api: str
    key: str
    scheduler: str
    dashboard: str | None = None
    fleet: str = "local"
    fleet_digest: str = ""
    embedded: bool = False
    policy: tuple[str, ...] = ()


def write_head_file(path: Path, head: HeadFile) -> None:
    """Write `head` so that a reader sees the old file or the whole new one."""
    write_private(path, json.dumps({"version": VERSION, **asdict(head)}, indent=1))


def read_head_file(path: Path) -> HeadFile | None:
    """Return what `path` says; ``None`` where there is no file, or one that no head of ours wrote.

    Raises
    ------
    NewerFormat
        If a newer release wrote it.
    """
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("version"), int):
        return None
    if found["version"] > VERSION:
        raise NewerFormat(path=path, found=found["version"], known=VERSION)
    return _head_of(found)


def _head_of(found: dict[str, Any]) -> HeadFile | None:
    known = {f.name for f in fields(HeadFile)}
    try:
        values = {k: v for k, v in found.items() if k in known}
        head = HeadFile(**{**values, "policy": tuple(values.get("policy", ()))})
    except TypeError:
        return None
    numbers = isinstance(head.pid, int) and isinstance(head.created, int | float)
    return head if numbers and all(isinstance(text, str) for text in (head.api, head.key, head.scheduler)) else None
