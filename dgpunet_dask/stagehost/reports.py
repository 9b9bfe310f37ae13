"""Errors as they cross a process border: by class name and fields, so that the receiver raises the same class. Standard library only."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dgpunet_dask import errors
from dgpunet_dask.errors import DgpunetError, DiskFull, JobFailed, MalformedFile, Problem, StageDiskFull, StageFailed
from dgpunet_dask.errors.fullness import full_in, says_full
from dgpunet_dask.stagehost.oom import Shortage, oom_in, out_of_memory, parse_shortage
from dgpunet_dask.stagehost.spec import StageCallSpec

#: A traceback is cut to its last characters: what raised stands there.
_TRACEBACK_LETTERS: Final = 20_000
#: Of a message the first ones; Dask replaces an exception whose text is longer than 10,000 by one that has lost its class.
_MESSAGE_LETTERS: Final = 2_000


def failure_of(error: BaseException, stage: str, card: StageCallSpec | None = None, measured: Shortage | None = None) -> DgpunetError:
    """Return the product's error for what a stage's code raised.

    An error of our own tree stays what it is, a full disk becomes `DiskFull` (``fields["free_disk_bytes"]``) or, where the system names no
    file, `StageDiskFull`, out of memory on a `card`
    that the stage was called on `StageOutOfMemory` or `ForeignMemory`, anything else `StageFailed`; ``fields["traceback"]`` says where it
    was raised, ``fields["error_kind"]`` and ``fields["errno"]`` what the interpreter and the system call it.
    """
    if isinstance(error, DgpunetError) and _known(type(error).__name__) is type(error):
        return error
    if says_full(error):  # what it has met and dealt with is its own affair
        path = _file_of(error)
        return StageDiskFull(stage=stage, path=None, why=_text_of(error)) if path is None else disk_full(path)
    text = _traceback_of(error)
    oom = None if card is None else oom_in(error)
    if card is not None and oom is not None:
        why = _text_of(oom)
        found = parse_shortage(why).filled(measured or Shortage())
        return out_of_memory(found, stage=stage, device=card.device, charge_mib=card.vram_mib, why=why, traceback=text)
    known = {"error_kind": builtin_kind(error), "errno": errno_of(error)}
    return StageFailed(stage=stage, kind=type(error).__name__, why=_text_of(error), traceback=text, **known)


def builtin_kind(error: BaseException) -> str:
    """Return the nearest class of `error` that is the interpreter's own: NumPy's error for want of memory is a ``MemoryError``."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def errno_of(error: BaseException) -> int | None:
    """Return the system's number of an `OSError`; where a library wrapped it in one without a number, that of what lies behind it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while isinstance(error, OSError) and one is not None and id(one) not in seen:
        if isinstance(one, OSError) and isinstance(one.errno, int):
            return one.errno
        seen.add(id(one))
        one = one.__cause__ or one.__context__
    return None


def _traceback_of(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except SystemError as failure:  # Python 3.11 parses code to do it, which fails where another thread does so too (gh-106905)
        text = f"{type(error).__name__}: {error}\n(its traceback could not be formatted: {failure})"
    return text[-_TRACEBACK_LETTERS:]


def error_to_json(error: DgpunetError) -> dict[str, Any]:
    """Return `error` as JSON values."""
    if isinstance(error, MalformedFile):
        return {"class": "MalformedFile", "fields": {"problems": [list(p) for p in error.problems]}}
    return {"class": type(error).__name__, "fields": {name: _plain(value) for name, value in error.fields.items()}}


def error_from_json(raw: Mapping[str, Any]) -> DgpunetError:
    """Return the error that `error_to_json` wrote down."""
    kind, fields = _known(raw["class"]), dict(raw["fields"])
    if kind is MalformedFile:
        return MalformedFile(Problem(*problem) for problem in fields["problems"])
    if kind is None:
        return JobFailed(why=f"{raw['class']}: {fields}")
    return kind(**fields)


def _known(name: str) -> type[DgpunetError] | None:
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, DgpunetError) else None


def _text_of(error: BaseException) -> str:
    try:
        text = str(error) or "no message"
    except Exception as broken:  # a user's __str__ may fail, and the failure must still be reported
        return f"its message cannot be shown ({type(broken).__name__})"
    return text if len(text) <= _MESSAGE_LETTERS else f"{text[:_MESSAGE_LETTERS]}… ({len(text)} letters in all)"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)


def full_disk(error: BaseException) -> DgpunetError | None:
    """Return the error to tell where `is_full` says that the system has no room left, whoever met it first; ``None`` for anything else."""
    found = full_in(error)
    if found is None or isinstance(found, DgpunetError):
        return found
    return disk_full(_file_of(found) or os.environ.get("DGPUNET_HOME") or "$DGPUNET_HOME")


def _file_of(error: BaseException) -> str | None:
    name = error.filename if isinstance(error, OSError) else None
    return os.fsdecode(name) if isinstance(name, str | bytes) else None  # a number where it was a file that is open


def disk_full(path: Path | str) -> DiskFull:
    """Return the error that the disk of `path` is full, with the bytes that are free there (``None`` where that is not told)."""
    try:
        found = os.statvfs(path)
        free = found.f_bavail * found.f_frsize
    except OSError:
        free = None
    return DiskFull(path=path, free_disk_bytes=free)
