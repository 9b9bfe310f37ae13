"""Which paths of the head's host a submitter's job may read: those that really lie below one of the owner's roots.

A job gets the real path that was looked at, without any link in it, and not the one that was named: what a link leads to afterwards
changes nothing. What is refused is told alike whether it exists or not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import BadValue, PathNotAllowed
from dgpunet_dask.model.pipeline import Workload

#: The form of a model's name on a hub: it can name no folder outside of where it is looked up.
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_LETTERS: Final = 200
#: Where there is a loop of links the system resolves what it can; after so many rounds nothing may be left to resolve.
_ROUNDS: Final = 8

Real = Callable[[str], str]
Look = Callable[[str, Sequence[Path], Sequence[Path]], Path]


def allowed(path: str, roots: Sequence[Path], private: Sequence[Path] = (), *, real: Real = os.path.realpath) -> Path:
    """Return the real path of `path`, which lies in one of `roots` or is one.

    Parameters
    ----------
    path
        Whole, from ``/`` on. It need not exist.
    roots
        Whole paths. One that is a link stands for what it leads to.
    private
        Folders that stay closed even where a root holds them: nothing in them may be read, nor what holds them.
    real
        Resolves links: `os.path.realpath`.

    Raises
    ------
    PathNotAllowed
    BadValue
        If it is not a whole path.
    """
    if not path.startswith(os.sep) or "\0" in path:
        raise BadValue(what="path", value=path, why="write the whole path, as it is on the head's host")
    found = _settled(path, real)
    opened = [Path(real(str(root))) for root in roots]
    closed = [Path(real(str(folder))) for folder in private]
    if found is None or not any(_holds(root, found) for root in opened) or any(_holds(one, found) or _holds(found, one) for one in closed):
        raise PathNotAllowed(path=path, roots=", ".join(map(str, roots)) or "none")
    return found


def _settled(path: str, real: Real) -> Path | None:
    """Return the path with nothing left to resolve; ``None`` where that has no end, or the system can have no such path."""
    try:
        for _ in range(_ROUNDS):
            before, path = path, real(path)
            if path == before:
                return Path(path)
    except (OSError, ValueError, RecursionError):  # too long, with signs that no name may have, or a chain of links without an end
        pass
    return None


def _holds(folder: Path, path: Path) -> bool:
    return path == folder or folder in path.parents


def bounded(
    workload: Workload, values: Mapping[str, Any], roots: Sequence[Path], private: Sequence[Path] = (), look: Look = allowed
) -> dict[str, Any]:
    """Return the values of a submitter's parameters with every path and local model folder as the real path that is allowed.

    To be called with what the submitter sent, before anything else looks whether a path exists. `look` is `allowed`, or remembers what
    that has said.

    Raises
    ------
    PathNotAllowed
    BadValue
        Where a path is not whole, or a model's name neither a whole path nor a name on a hub.
    """
    return {name: _bounded(workload, name, value, lambda path: look(path, roots, private)) for name, value in values.items()}


def _bounded(workload: Workload, name: str, value: Any, look: Callable[[str], Path]) -> Any:
    param = workload.params.get(name)
    if param is None or param.type not in {"path", "model"} or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_bounded(workload, name, item, look) for item in value]
    if not isinstance(value, str):
        raise BadValue(what=name, value=value, why="write it as text")
    if param.type == "model" and not value.startswith(os.sep):
        if len(value) > _HUB_LETTERS or not _HUB_NAME.fullmatch(value):
            raise BadValue(what=name, value=value, why="write a name on a hub, or the whole path of a folder on the head's host")
        return value
    try:
        return str(look(value))
    except BadValue as error:
        raise BadValue(**error.fields | {"what": name}) from None
