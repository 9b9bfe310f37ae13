"""The worker's side of shards: ranges of very large segments' vectors that lie in its memory, and are scanned when the head asks.

RPC handlers of the worker (called with ``client.rpc(address).NAME(...)``):

========================  ========================================================================================
``dgpunet_shards``        the host, its cores and memory, and what is held: bytes by key
``dgpunet_shard_hold``    takes a shard: from a file of this host, or as codes; compares them with their digest
``dgpunet_shard_drop``    takes keys that need not be held any more
``dgpunet_shard_search``  takes a vector and keys: the best rows of each, and which of them are not held
========================  ========================================================================================

Scans run in threads of their own, one for each core: a unit of work that keeps all threads of the worker's pool delays none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from distributed.diagnostics.plugin import WorkerPlugin

from dgpunet_dask.hardware.cpu import usable_cpus

if TYPE_CHECKING:
    import numpy as np
    from distributed.worker import Worker
    from numpy.typing import NDArray

    from dgpunet_dask.model.fleet import Host

    Codes = NDArray[np.uint16]

log = logging.getLogger(__name__)

NAME: Final = "dgpunet-shards"
#: How long shards stay after the head has last spoken: a head that is started again within that finds them.
LEASE_S: Final = 120.0
#: Rows that are read at once.
_ROWS: Final = 4096

#: What `dgpunet_shard_hold` answers.
HELD: Final = "held"
FULL: Final = "full"
UNREADABLE: Final = "unreadable"
DIFFERENT: Final = "different"


def digest_of(codes: Codes) -> str:
    """Return the digest of float16 vectors, by which a worker knows that it holds the right ones."""
    return hashlib.blake2b(codes.reshape(-1).data, digest_size=16).hexdigest()


def encoded(vectors: NDArray[np.float32]) -> Codes:
    """Return float32 vectors ``(rows, dimension)``, which may be mapped, as the bits of float16."""
    import numpy as np

    found = np.empty(vectors.shape, "<f2")
    for first in range(0, len(vectors), _ROWS):
        found[first : first + _ROWS] = vectors[first : first + _ROWS]
    return found.view(np.uint16)


@dataclass(frozen=True)
class ShardCall:
    """What the head says of a shard.

    Parameters
    ----------
    key
        Its name.
    rows, dimension
        Its shape.
    digest
        Of its codes (`digest_of`).
    """

    key: str
    rows: int
    dimension: int
    digest: str

    @property
    def size_bytes(self) -> int:
        """What it takes to hold it."""
        return self.rows * self.dimension * 2


class _Scan:
    """The vectors of one shard, in FAISS's form for a flat scan of float16."""

    def __init__(self, codes: Codes, size_bytes: int) -> None:
        import faiss
        import numpy as np

        self.size_bytes = size_bytes
        self._index = faiss.IndexScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(codes.reshape(-1).view(np.uint8), self._index.codes)
        self._index.ntotal, self._index.is_trained = len(codes), True

    def search(self, vector: bytes, count: int) -> tuple[bytes, bytes]:
        """Return float32 scores, best first, and int64 rows of the best `count`, of all where there are fewer."""
        import faiss
        import numpy as np

        faiss.omp_set_num_threads(1)  # of this thread: the cores are shared out among shards
        scores, rows = self._index.search(np.frombuffer(vector, np.float32)[None, :], min(count, self._index.ntotal))
        return scores[0].tobytes(), rows[0].astype(np.int64).tobytes()


class ShardWorker(WorkerPlugin):
    """Holds shards on the worker of a host's CPU. It holds none, and has loaded no library for it, until a head asks for that.

    Parameters
    ----------
    host
        The machine. As many shards are scanned at once as it has cores that this process may use.
    """

    name = NAME

    def __init__(self, host: Host) -> None:
        self.host, total = host.name, psutil.virtual_memory().total
        self.cores = min(host.cpus or usable_cpus(), usable_cpus())
        self.ram_bytes = total if host.ram_mib is None else min(total, host.ram_mib << 20)
        self.held: dict[str, _Scan] = {}
        self._coming: dict[str, int] = {}
        self._lease: asyncio.TimerHandle | None = None
        self._pool: ThreadPoolExecutor | None = None

    def setup(self, worker: Worker) -> None:
        """Let the head ask."""
        asked: tuple[Callable[..., Any], ...] = (self.dgpunet_shards, self.dgpunet_shard_hold, self.dgpunet_shard_drop, self.dgpunet_shard_search)
        worker.handlers.update({f.__name__: f for f in asked})

    def teardown(self, worker: Worker) -> None:
        """Let go of all."""
        self._expire()
        if self._lease is not None:
            self._lease.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _expire(self) -> None:
        self.held.clear()

    def _spoken(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
        self._lease = asyncio.get_running_loop().call_later(LEASE_S, self._expire) if self.held or self._coming else None

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.cores, thread_name_prefix="shards")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def dgpunet_shards(self) -> dict[str, Any]:
        """Tell what is here."""
        self._spoken()
        return {"host": self.host, "cores": self.cores, "ram_bytes": self.ram_bytes, "held": {key: scan.size_bytes for key, scan in self.held.items()}}

    async def dgpunet_shard_hold(
        self, key: str, rows: int, dimension: int, digest: str, room_bytes: int, file: str | None = None, offset: int = 0, codes: Any = None
    ) -> str:
        """Hold a shard, unless all of them would then take more than `room_bytes`.

        `file`: float32 vectors from `offset` on, mapped and converted here; else `codes`, an array ``(rows, dimension)`` of float16's bits.
        """
        call = ShardCall(key, rows, dimension, digest)
        if key in self.held:
            return HELD
        taken = sum(scan.size_bytes for scan in self.held.values()) + sum(self._coming.values())
        if key in self._coming or taken + call.size_bytes > room_bytes:
            return FULL
        self._coming[key] = call.size_bytes
        try:
            found = await self._in_thread(_loaded, call, file, offset, codes)
            if isinstance(found, _Scan):
                self.held[key] = found
        finally:
            del self._coming[key]
            self._spoken()
        return HELD if isinstance(found, _Scan) else str(found)

    def dgpunet_shard_drop(self, keys: Sequence[str]) -> None:
        """Let go of shards; a scan that is under way ends in peace."""
        for key in keys:
            self.held.pop(key, None)
        self._spoken()

    async def dgpunet_shard_search(self, keys: Sequence[str], vector: bytes, count: int) -> dict[str, Any]:
        """Return of each shard that is held its best `count`: ``{"found": {key: (float32 scores, int64 rows)}, "missing": [key, ...]}``."""
        self._spoken()
        asked = {key: self.held[key] for key in keys if key in self.held}
        found = await asyncio.gather(*(self._in_thread(scan.search, vector, count) for scan in asked.values()))
        return {"found": dict(zip(asked, found, strict=True)), "missing": [key for key in keys if key not in asked]}


def _loaded(call: ShardCall, file: str | None, offset: int, codes: Any) -> _Scan | str:
    import numpy as np

    if file is not None:
        try:
            mapped = np.memmap(Path(file), np.float32, "r", offset, (call.rows, call.dimension))
        except (OSError, ValueError) as error:
            log.info("the shard %s is not read here: %s", call.key, error)
            return UNREADABLE
        codes = encoded(mapped)
    if codes.shape != (call.rows, call.dimension) or digest_of(codes) != call.digest:
        log.warning("what came as the shard %s is something else", call.key)
        return DIFFERENT
    return _Scan(codes, call.size_bytes)
