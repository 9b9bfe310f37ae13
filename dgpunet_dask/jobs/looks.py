"""What one request names, looked at once: the sets of an array mostly name the same, and each look costs calls of the system."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import SlowPaths
from dgpunet_dask.jobs.params import cast_value
from dgpunet_dask.jobs.roots import allowed

#: So long one request is looked at. A second or two is much; a disk that is away may take for ever.
LOOK_S: Final = 20.0


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


class Looks:
    """The looks of one request: under one list of roots, each value once. Used in one thread, stopped from any.

    Parameters
    ----------
    gone
        Whether nobody waits for the answer any more. Asked before each look.
    now, most_s
        A clock that never goes back, in seconds, and how long all looks may take from now on.
    """

    def __init__(self, gone: Callable[[], bool] = lambda: False, now: Callable[[], float] = time.monotonic, most_s: float = LOOK_S) -> None:
        self._gone, self._now, self._most_s = gone, now, most_s
        self._ends, self._stopped = now() + most_s, False
        self._real: dict[str, str] = {}
        self._allowed: dict[str, Path] = {}
        self._cast: dict[tuple[str, str, str, Path | None], Any] = {}

    def stop(self) -> None:
        """End the next look with `Abandoned`."""
        self._stopped = True

    def allowed(self, path: str, roots: Sequence[Path], private: Sequence[Path]) -> Path:
        """Return what `roots.allowed` does.

        Raises
        ------
        Abandoned
        SlowPaths, PathNotAllowed, BadValue
        """
        if path not in self._allowed:
            self._check()
            self._allowed[path] = allowed(path, roots, private, real=self._resolved)
        return self._allowed[path]

    def cast(self, kind: str, name: str, text: str, cwd: Path | None) -> Any:
        """Return what `params.cast_value` does.

        Raises
        ------
        Abandoned
        SlowPaths, BadValue, BadName, MissingPath, UnreadablePath
        """
        asked = (kind, name, text, cwd)
        if asked not in self._cast:
            self._check()
            self._cast[asked] = cast_value(kind, name, text, cwd)
        return self._cast[asked]

    def _resolved(self, path: str) -> str:
        """Return the real path; the roots' are asked for with each path."""
        if path not in self._real:
            self._real[path] = os.path.realpath(path)
        return self._real[path]

    def _check(self) -> None:
        if self._stopped or self._gone():
            raise Abandoned
        if self._now() > self._ends:
            raise SlowPaths(seconds=f"{self._most_s:g}")
