"""What of a tree may have changed since a version of its index, so that the rest need not be looked at. Pure.

Whoever follows a tree hears of paths. At or below each of them anything may be different: a folder that was moved is told as one path.
What decides about files elsewhere (ignore files, what git has of a folder) makes the whole tree count as changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.rules import MACHINERY
from dgpunet_dask.retrieval.skips import Skip

if TYPE_CHECKING:
    import pyarrow as pa

#: More paths than these are looked for no faster than the whole tree; and where so many come at once, some may have been lost.
PATHS_MAX: Final = 1000
#: Names that decide about more than themselves: about the whole tree, or about the folder that they lie in.
_OF_ALL: Final = frozenset((b".gitignore", b".dgpunetignore"))
_MACHINERY: Final = frozenset(name.encode() for name in MACHINERY)
_OF_FOLDER: Final = _MACHINERY | {b"pyvenv.cfg"}
_EXCLUDE: Final = b"/.git/info/exclude"


@dataclass(frozen=True)
class Changes:
    """Paths of the trees at or below which anything may differ from the version `since` of the index; nothing else does.

    Parameters
    ----------
    since
        The version's id, as the metric ``version`` of the job that made it told.
    paths
        Absolute, without links in their folders.
    """

    since: str
    paths: tuple[bytes, ...]


def changes_of(changed: Sequence[str], since: str | None) -> Changes | None:
    """Return what the parameters of a job say has changed; ``None`` where they say nothing, and all is to be looked at.

    Raises
    ------
    BadValue
        If a path is not absolute.
    """
    for path in changed:
        if not path.startswith("/"):
            raise BadValue(what="changed", value=path, why="write the whole path")
    return None if since is None or not changed else Changes(since, tuple(path.encode("utf-8", "surrogateescape") for path in changed))


@dataclass(frozen=True)
class Below:
    """The changed paths of one root, relative to it, and the folders that lead to them (the root is empty)."""

    paths: frozenset[bytes] = frozenset()
    above: frozenset[bytes] = field(default_factory=frozenset)

    def leads_to(self, path: bytes) -> bool:
        """Whether `path` is one of them, or a folder above one."""
        return path in self.paths or path in self.above


def below(root: bytes, paths: Iterable[bytes]) -> Below | None:
    """Return what of `paths` lies below `root`, both absolute; ``None`` where all of the root may have changed."""
    found = set()
    for path in paths:
        if path == root or root.startswith(path.rstrip(b"/") + b"/") or path.endswith(_EXCLUDE):
            return None
        if not path.startswith(root.rstrip(b"/") + b"/"):
            continue
        relative = _of_interest(path[len(root.rstrip(b"/")) + 1 :])
        if relative == b"":
            return None
        if relative is not None:
            found.add(relative)
    kept = frozenset(path for path in found if not any(parent in found for parent in parents(path)))
    return Below(kept, frozenset(parent for path in kept for parent in (*parents(path), b"")))


def _of_interest(path: bytes) -> bytes | None:
    """Return the path that `path` decides about: empty where that is the root, ``None`` where it decides about nothing."""
    *folders, name = path.split(b"/")
    if not _MACHINERY.isdisjoint(folders):
        return None
    if name in _OF_ALL:
        return b""
    return b"/".join(folders) if name in _OF_FOLDER else path


def parents(path: bytes) -> Iterator[bytes]:
    """Yield the folders above a relative path, the nearest first, without the root."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def covered(paths: pa.ChunkedArray, changed: Sequence[str]) -> pa.ChunkedArray:
    """Return for each of `paths`, as shown, whether it is one of `changed` or lies below one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.is_in(paths, value_set=pa.array(changed, pa.string()))
    for path in changed:
        found = pc.or_(found, pc.starts_with(paths, f"{path}/"))
    return found


def split_skips(skips: Iterable[Skip], changed: Collection[str], above: Collection[str]) -> tuple[list[Skip], list[Skip], list[Skip]]:
    """Return of what was left out what stays so, what is at or below `changed`, and what is one of the folders above."""
    stay, inside, over = [], [], []
    for skip in skips:
        if skip.path in above:
            over.append(skip)
        elif skip.path in changed or any(parent in changed for parent in _shown_parents(skip.path)):
            inside.append(skip)
        else:
            stay.append(skip)
    return stay, inside, over


def _shown_parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
