"""Vectors that were made before, by what made them and the text: for all indexes and branches, and for texts that move between files.

``cache/vectors/SPACE/*.pack``: immutable files, each with the sorted digests of its texts and their vectors as float16, which keeps a vector of
length 1 within a cosine of 1e-6. A publication adds one pack; small ones are merged along, as segments are. A pack that is cut short or
garbled is removed when it is opened: the cache is worth nothing but time. Whoever reads a pack has it mapped, and may go on after it was removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.compaction import Held, along

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Digests = NDArray[np.uint8]

log = logging.getLogger(__name__)

_HEADER: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"DGPUVEC1"
_DIGEST: Final = 16


@dataclass(frozen=True)
class Pack:
    """One mapped file: sorted digests ``(rows,)`` as 16-byte strings, and float16 vectors ``(rows, dimension)``."""

    path: Path
    digests: NDArray[np.void]
    vectors: NDArray[np.float16]

    def find(self, wanted: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return for each digest its row, and whether it is there."""
        import numpy as np

        at = np.minimum(np.searchsorted(self.digests, wanted), len(self.digests) - 1)
        return at, self.digests[at] == wanted


class VectorCache:
    """The known vectors of one space. Making the value touches nothing.

    Parameters
    ----------
    space
        What makes the vectors (`rows.space_of`).
    """

    def __init__(self, home: Home, space: str) -> None:
        self.folder = home.vectors / space
        self._packs: dict[str, Pack] = {}

    def look_up(self, digests: Sequence[bytes]) -> list[Vectors | None]:
        """Return the float32 vector ``(dimension,)`` of each text, by its digest; ``None`` where it is not known."""
        import numpy as np

        with contextlib.suppress(OSError):
            os.utime(self.folder)  # what was used last is removed last
        found: list[Vectors | None] = [None] * len(digests)
        wanted = _as_keys(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST))
        for pack in self._opened() if digests else ():
            at, there = pack.find(wanted)
            for position in np.flatnonzero(there).tolist():
                if found[position] is None:
                    found[position] = _unit_length(pack.vectors[at[position]])
        return found

    def add(self, digests: Digests, vectors: Vectors) -> int:
        """Keep the vectors ``(rows, dimension)`` of texts by their digests ``(rows, 16)``; return how many were not known before."""
        import numpy as np

        if not len(digests):
            return 0
        keys, first = np.unique(_as_keys(digests), return_index=True)
        with self._lock():
            new = np.ones(len(keys), bool)
            packs = list(self._opened())
            for pack in packs:
                new &= ~pack.find(keys)[1]
            if new.any():
                self._write(keys[new], vectors[first[new]].astype(np.float16), packs)
        return int(new.sum())

    def _write(self, keys: NDArray[np.void], vectors: NDArray[np.float16], packs: list[Pack]) -> None:
        """Write a pack of new rows and of the small packs beside it, which then go."""
        import numpy as np

        merged = [packs[n] for n in along([Held(len(p.digests), len(p.digests)) for p in packs], len(keys)) if _fits(packs[n], vectors)]
        keys = np.concatenate([keys, *(p.digests for p in merged)])
        vectors = np.concatenate([vectors, *(p.vectors for p in merged)])
        keys, first = np.unique(keys, return_index=True)
        temporary = self.folder / f"{uuid.uuid4().hex}.tmp"
        with temporary.open("xb") as opened:
            opened.write(_HEADER.pack(_MAGIC, len(keys), vectors.shape[1]))
            opened.write(keys.tobytes())
            opened.write(vectors[first].tobytes())
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(temporary.with_suffix(".pack"))
        for pack in merged:
            pack.path.unlink(missing_ok=True)

    def _opened(self) -> Iterator[Pack]:
        """Yield the packs that are there now, each opened once."""
        names = sorted(path.name for path in self.folder.glob("*.pack"))
        self._packs = {name: pack for name, pack in self._packs.items() if name in names}
        for name in names:
            pack = self._packs.get(name) or _read(self.folder / name)
            if pack is not None:
                self._packs[name] = pack
                yield pack

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for leftover in self.folder.glob("*.tmp"):  # of a writer that was killed: there is no other while this lock is held
                leftover.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)


class Filler:
    """Takes in new vectors a unit at a time, and adds them to the cache many at a time. `flush` adds the rest."""

    def __init__(self, home: Home, most: int = 16_384) -> None:
        self._home = home
        self._most = most
        self._pending: dict[str, list[tuple[Digests, Vectors]]] = {}
        self._rows = 0

    def add(self, space: str, digests: Digests, vectors: Vectors) -> None:
        """Take in the vectors of texts, as `VectorCache.add` does."""
        if len(digests):
            self._pending.setdefault(space, []).append((digests, vectors))
            self._rows += len(digests)
            if self._rows >= self._most:
                self.flush()

    def flush(self) -> None:
        """Add what was taken in. Where there is no room for it the cache stays as it is: it is worth nothing but time."""
        import numpy as np

        for space, parts in self._pending.items():
            try:
                VectorCache(self._home, space).add(np.concatenate([d for d, _ in parts]), np.concatenate([v for _, v in parts]))
            except OSError as error:
                log.warning("new vectors are not kept for others: %s", error)
        self._pending, self._rows = {}, 0


def _fits(pack: Pack, vectors: NDArray[np.float16]) -> bool:
    """Whether a pack's vectors have as many numbers as these."""
    return pack.vectors.shape[1] == vectors.shape[1]


def _as_keys(digests: Digests) -> NDArray[np.void]:
    """Return digests ``(rows, 16)`` as one 16-byte value a row, which sort and compare as bytes."""
    import numpy as np

    return np.ascontiguousarray(digests).view(f"V{_DIGEST}").ravel()


def _unit_length(vector: NDArray[np.float16]) -> Vectors:
    import numpy as np

    exact = vector.astype(np.float32)
    return np.asarray(exact / max(float(np.linalg.norm(exact)), 1e-12), np.float32)


def _read(path: Path) -> Pack | None:
    """Map a pack; one that is not whole is removed."""
    import numpy as np

    try:
        with path.open("rb") as opened:
            magic, rows, dimension = _HEADER.unpack(opened.read(_HEADER.size))
            size = os.fstat(opened.fileno()).st_size
        if magic != _MAGIC or rows == 0 or size != _HEADER.size + rows * (_DIGEST + 2 * dimension):
            raise ValueError("it is not whole")
        after = _HEADER.size + rows * _DIGEST
        digests = np.memmap(path, f"V{_DIGEST}", "r", offset=_HEADER.size, shape=(rows,))
        return Pack(path, digests, np.memmap(path, np.float16, "r", offset=after, shape=(rows, dimension)))
    except FileNotFoundError:  # merged into another one meanwhile
        return None
    except (OSError, ValueError, struct.error) as error:
        log.warning("%s is removed from the cache of vectors: %s", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
