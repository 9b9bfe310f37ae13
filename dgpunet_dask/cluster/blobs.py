"""Folders by digest, brought here from other hosts of the cluster: workloads and models, so that nothing comes twice from outside.

What comes is written to ``.part-<digest>`` in the store, under a lock that other processes keep too; a fetch that ended in the middle goes
on where it was, with the same peer or another. Each file is checked against its SHA-256 as it comes, the whole against its digest, and only
then the folder takes its name, in one step. A peer that gave wrong bytes is not asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.peer_client import LISTING_S, Peer, PeerClient, PeerLink
from dgpunet_dask.cluster.peer_wire import CHUNK
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, DiskFull, FolderMissing, PeerFailed
from dgpunet_dask.errors.fullness import NO_ROOM
from dgpunet_dask.security.files import sync_folder
from dgpunet_dask.stagehost import folders
from dgpunet_dask.stagehost.environments import locked
from dgpunet_dask.stagehost.fetching import find_folder, listed_files, store_of, write_note
from dgpunet_dask.stagehost.folders import FileEntry, Kind

log = logging.getLogger(__name__)

#: How long a peer that gave wrong bytes is not asked.
BAN_S: Final = 60.0
#: How long a peer may send nothing in the middle of a file.
STALL_S: Final = 30.0
#: Free space that a fetch leaves.
SPARE_BYTES: Final = 256 << 20
#: Unfinished fetches that nobody went on with are removed after so long.
ABANDONED_S: Final = 86_400.0
_LISTINGS_KEPT: Final = 32


class WrongBytes(ValueError):
    """A peer gave what does not have the digest that was asked for."""


class Blobs:
    """The folders of one host, given to others (`peer.Shelf`) and fetched from them (`ensure`). Making the value touches nothing."""

    def __init__(self, home: Home, client: PeerClient, *, clock: Clock | None = None) -> None:
        self.home = home
        self._client = client
        self._clock = clock or SystemClock()
        self._banned: dict[str, float] = {}
        self._listings: dict[tuple[str, str], list[FileEntry]] = {}
        self._guard = threading.Lock()  # the peer port looks things up in several threads

    # Given to others

    def has(self, kind: str, digest: str) -> bool:
        """Whether a folder is here."""
        return find_folder(self.home, kind, digest) is not None

    def files(self, kind: str, digest: str) -> list[FileEntry] | None:
        """Return the files of a folder; ``None`` where it is not here."""
        known, digest = folders.checked(kind, digest)
        if not self.has(known, digest):
            with self._guard:
                self._listings.pop((known, digest), None)
            return None
        listed = self._listings.get((known, digest))
        if listed is None:
            listed = listed_files(self.home, known, digest)
            if listed is None or not self._is_whole(known, digest, listed):
                return None
            with self._guard:
                while len(self._listings) >= _LISTINGS_KEPT:
                    self._listings.pop(next(iter(self._listings)))
                self._listings[known, digest] = listed
        return listed

    def _is_whole(self, kind: Kind, digest: str, listed: Sequence[FileEntry]) -> bool:
        """Whether the folder still has its digest: one that the disk, or somebody, has changed is not given to others."""
        folder = find_folder(self.home, kind, digest)
        if folder is None:
            return False
        found = folders.workload_digest(folder) if kind == "workload" else folders.tree_digest(listed)
        if found != digest:
            log.error("%s is damaged: its files have another digest than its name; remove it, and it is fetched again", folder)
        return found == digest

    def file(self, kind: str, digest: str, name: str) -> Path | None:
        """Return the path of one of the folder's files, ``None`` for any other name."""
        folder, listed = find_folder(self.home, kind, digest), self.files(kind, digest)
        if folder is None or listed is None or not any(entry.name == name for entry in listed):
            return None
        return folder / name if folders.is_inner(name) else None

    # Fetched from others

    async def ensure(self, kind: str, digest: str, peers: Sequence[Peer]) -> Path:
        """Return the folder of that kind and digest, copied from one of `peers` where it is not here; the head's host is asked last.

        Raises
        ------
        FolderMissing
            If no peer gives it; it says why for each.
        DiskFull
            If there is no room for it.
        ValueError
            If there is no such kind, or `digest` is none.
        """
        known, digest = folders.checked(kind, digest)
        found = find_folder(self.home, known, digest)
        if found is not None:
            return found
        store = store_of(self.home, known)
        async with locked(store / f".{digest}.lock"):
            found = find_folder(self.home, known, digest)
            return found if found is not None else await self._fetch(known, digest, peers)

    async def _fetch(self, kind: Kind, digest: str, peers: Sequence[Peer]) -> Path:
        whys: dict[str, str] = {}
        full: OSError | None = None
        for peer in await self._holders(kind, digest, peers, whys):
            try:
                return await self._persist(kind, digest, peer)
            except WrongBytes as error:
                log.error("%s gave a wrong %s %s: %s", peer.host, kind, digest[:16], error)
                self._banned[peer.host] = self._clock.monotonic() + BAN_S
                whys[peer.host] = f"it gave wrong bytes ({error})"
            except PeerFailed as error:
                whys[peer.host] = str(error.fields["why"])
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                full = error  # or this peer lists sizes that are not so
        if full is not None:
            raise DiskFull(path=store_of(self.home, kind)) from full
        told = "; ".join(f"{host}: {why}" for host, why in sorted(whys.items())) or "no other host is known"
        raise FolderMissing(kind=kind, digest=digest[:16], why=told)

    async def _holders(self, kind: Kind, digest: str, peers: Sequence[Peer], whys: dict[str, str]) -> list[Peer]:
        """Return the peers that have it: other hosts before the head's, in the order given."""
        now, asked = self._clock.monotonic(), []
        for peer in peers:
            if self._banned.get(peer.host, now) > now:
                whys[peer.host] = "it gave wrong bytes a short while ago"
            else:
                asked.append(peer)
        answers = await asyncio.gather(*(self._client.has(peer, kind, digest) for peer in asked), return_exceptions=True)
        holders = []
        for peer, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, DgpunetError):
                    raise answer
                whys[peer.host] = str(answer.fields["why"])
            elif answer:
                holders.append(peer)
            else:
                whys[peer.host] = "it does not have it"
        return sorted(holders, key=lambda peer: peer.is_head)

    async def _persist(self, kind: Kind, digest: str, peer: Peer) -> Path:
        """Copy from `peer`, on a new connection where one ended, as long as each brings something."""
        part = store_of(self.home, kind) / f".part-{digest}"
        while True:
            before = await asyncio.to_thread(_size_of, part)
            try:
                return await self._copy(kind, digest, peer)
            except PeerFailed:
                if await asyncio.to_thread(_size_of, part) < before + CHUNK:
                    raise

    async def _copy(self, kind: Kind, digest: str, peer: Peer) -> Path:
        """Copy the folder from `peer`; what an earlier try has brought is kept where it is what the peer has."""
        store = store_of(self.home, kind)
        part, final = store / f".part-{digest}", store / digest
        async with self._client.link(peer) as link:
            answer = await link.ask("files", LISTING_S, kind=kind, digest=digest)
            entries = _listed(kind, digest, answer)
            await asyncio.to_thread(prepare, part, entries)
            copying = Copying(link, kind, digest)
            for entry in entries:
                await copying.file(entry, part / entry.name)
        try:
            await asyncio.to_thread(_check_whole, kind, digest, part)
        except WrongBytes:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
            raise
        await asyncio.to_thread(self._publish, kind, digest, entries, part, final)
        log.info("%s %s was copied from %s: %d bytes", kind, digest[:16], peer.host, sum(e.size for e in entries))
        return final

    def _publish(self, kind: Kind, digest: str, entries: Sequence[FileEntry], part: Path, final: Path) -> None:
        for folder in sorted({path.parent for _, path in folders.files_of(kind, part)} | {part}):
            sync_folder(folder)
        with contextlib.suppress(OSError):  # a submission of the same workload may have been first
            part.rename(final)
        if not final.is_dir():
            raise FileNotFoundError(errno.ENOENT, "it could not be put in its place", str(final))
        shutil.rmtree(part, ignore_errors=True)
        sync_folder(final.parent)
        if kind == "model":
            write_note(self.home, digest, final, entries)

    def clean(self) -> None:
        """Remove what fetches have left that nobody went on with. Blocks; call it in a thread, at the start."""
        for store in (self.home.workloads, self.home.models):
            for part in store.glob(".part-*"):
                if self._clock.wall() - part.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(part, ignore_errors=True)


def _listed(kind: Kind, digest: str, answer: dict[str, object]) -> list[FileEntry]:
    try:
        entries = folders.checked_entries(kind, answer.get("files"))
    except ValueError as error:
        raise WrongBytes(str(error)) from error
    if kind == "model" and folders.tree_digest(entries) != digest:
        raise WrongBytes("its list of files has another digest")
    return entries


def _check_whole(kind: Kind, digest: str, part: Path) -> None:
    """Raise `WrongBytes` unless what has come, each file of it checked, is the folder that was asked for and nothing else."""
    if kind == "workload" and folders.workload_digest(part) != digest:
        raise WrongBytes("its files have another digest")
    if (stray := folders.uncounted(kind, part)) is not None:
        raise WrongBytes(f"it gave {stray!r}, which the digest does not count")


def prepare(part: Path, entries: Sequence[FileEntry]) -> None:
    """Make the draft folder; what lies in it and is no file of `entries` goes. Raises `OSError` where there is no room."""
    part.mkdir(mode=0o700, parents=True, exist_ok=True)
    sizes = {entry.name: entry.size for entry in entries}
    here = 0
    for path in sorted(part.rglob("*"), reverse=True):  # what is in a folder comes before it
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
        elif path.is_symlink() or path.relative_to(part).as_posix() not in sizes:
            path.unlink()
        else:
            here += path.stat().st_size
    needed = sum(sizes.values()) - here
    if needed > 0 and shutil.disk_usage(part).free < needed + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    for name in sizes:
        (part / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)


class Copying:
    """Brings the files of one folder over one connection."""

    def __init__(self, link: PeerLink, kind: str, digest: str) -> None:
        self._link = link
        self._kind = kind
        self._digest = digest

    async def file(self, entry: FileEntry, path: Path) -> None:
        """Bring one file, from where an earlier try ended; if that was wrong, once more from the start."""
        if await self._append(entry, path):
            return
        await asyncio.to_thread(path.unlink)
        if not await self._append(entry, path):
            await asyncio.to_thread(path.unlink)
            raise WrongBytes(f"{entry.name} is not what its list says")

    async def _append(self, entry: FileEntry, path: Path) -> bool:
        """Bring what `path` lacks of the file; return whether it is right then."""
        file = await asyncio.to_thread(path.open, "ab")
        with file:
            hashed, have = await asyncio.to_thread(_hash_start, path)
            if have < entry.size:
                await self._rest(entry, have, file, hashed)
            await asyncio.to_thread(_settle, file)
        return have <= entry.size and hashed.hexdigest() == entry.sha256

    async def _rest(self, entry: FileEntry, have: int, file: IO[bytes], hashed: hashlib._Hash) -> None:
        def write(piece: bytes) -> None:
            hashed.update(piece)
            file.write(piece)

        async def take(piece: bytes) -> None:
            await asyncio.to_thread(write, piece)

        answer = await self._link.ask("read", kind=self._kind, digest=self._digest, name=entry.name, offset=have)
        if answer.get("size") != entry.size - have:
            raise WrongBytes(f"{entry.name} has another size than its list says")
        await self._link.read(entry.size - have, take, STALL_S)


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash_start(path: Path) -> tuple[hashlib._Hash, int]:
    """Return the hash of what is there of a file, and its bytes."""
    hashed, have = hashlib.sha256(), 0
    if path.is_file():
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                hashed.update(piece)
                have += len(piece)
    return hashed, have


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
