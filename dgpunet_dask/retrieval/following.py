"""What a process that follows a tree says of an index: that it does, and what it has heard of that is not in the index yet.

It holds a file under a lock that the kernel frees when it ends, however it ends; what the file says counts only as long.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from dgpunet_dask.config.home import Home

#: What is told is written at once, in as many bytes each time, so that a reader never sees half of it.
_BYTES: Final = 128


@dataclass(frozen=True)
class Followed:
    """An index whose trees are followed.

    Parameters
    ----------
    paths
        How many changed paths are not in the index yet; 0 where all were, and 1 at least where it is not known which.
    since_s
        When the first of them was heard of, in seconds since 1970 UTC; ``None`` without any.
    """

    paths: int
    since_s: float | None

    def behind_s(self, now: float) -> float:
        """Return for how long the index has been behind."""
        return 0.0 if self.since_s is None else max(0.0, now - self.since_s)


class Follower:
    """Tells that an index is followed, from entering to leaving. Of several at once the first one tells.

    Making the value touches nothing.
    """

    def __init__(self, home: Home, name: str) -> None:
        self._file = home.root / "locks" / f"watch-{name}"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        self.tell(1, None)
        return self

    def _hold(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another one does, or somebody looks at this moment: it is tried again with what is told next
            os.close(descriptor)
        else:
            self._descriptor = descriptor

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def tell(self, paths: int, since_s: float | None) -> None:
        """Say what is not in the index yet, as `Followed` has it."""
        if self._descriptor is None:
            self._hold()
        if self._descriptor is not None:
            os.pwrite(self._descriptor, json.dumps({"paths": paths, "since_s": since_s}).ljust(_BYTES).encode(), 0)


def followed(home: Home, name: str) -> Followed | None:
    """Return what is told of an index; ``None`` where nothing follows its trees."""
    try:
        descriptor = os.open(home.root / "locks" / f"watch-{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it
        told = json.loads(os.pread(descriptor, _BYTES, 0))
        return Followed(int(told["paths"]), told["since_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(descriptor)
