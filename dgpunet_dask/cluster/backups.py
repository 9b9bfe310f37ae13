"""Copies of the ledger: folders that a head makes, and that one other host, chosen by the head, may fetch over the peer port.

``H/backups/<UTC time>-<start of the digest>/`` holds ``ledger.db``, ``jobs.jsonl`` (the sidecars of jobs that had not ended, one a line) and
``backup.json`` (when, of which host, under which boot). ``H/backups/offer.json`` tells the agent on the head's host which copy is the last
and who may have it: a ledger holds parameters and error texts of all users, so no other host gets it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.cluster.blobs import Copying, WrongBytes, prepare
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, DiskFull
from dgpunet_dask.security.files import private_folder, signature, sync_folder, write_private
from dgpunet_dask.stagehost.folders import FileEntry, checked_entries, file_sha256, tree_digest

log = logging.getLogger(__name__)

#: What the peer port calls them.
KIND: Final = "ledger"
LEDGER: Final = "ledger.db"
SIDECARS: Final = "jobs.jsonl"
ABOUT: Final = "backup.json"
OFFER: Final = "offer.json"
VERSION: Final = 1
#: Copies that each host keeps: if the last one holds a fault that nobody has noticed yet, there is one before it.
KEPT: Final = 2
_FILES: Final = frozenset({LEDGER, SIDECARS, ABOUT})
_NAME: Final = re.compile(r"\d{8}T\d{6}Z-([0-9a-f]{16})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The last copy of a head's ledger.

    Parameters
    ----------
    name, digest
        Of its folder; the digest is over the names and contents of its files.
    size
        Bytes of all of them.
    at
        When what it holds was so, seconds since 1970.
    host
        The one host that may fetch it; ``None``: there is no other.
    """

    name: str
    digest: str
    size: int
    at: float
    host: str | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Offer:
        """Return what `asdict` gave, checked, for it names a path.

        Raises
        ------
        ValueError
            If it is something else.
        """
        named = _NAME.fullmatch(str(raw.get("name")))
        digest, size, at, host = (raw.get(key) for key in ("digest", "size", "at", "host"))
        if named is None or not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or named[1] != digest[:16]:
            raise ValueError("that is no copy of a ledger")
        if not isinstance(size, int) or not isinstance(at, int | float) or not (host is None or isinstance(host, str)):
            raise ValueError("that is no copy of a ledger")
        return cls(name=named[0], digest=digest, size=size, at=float(at), host=host)


# Folders


def entries_of(folder: Path) -> list[FileEntry]:
    """Return the files of a copy with their digests: all of it is read. Raises `OSError` where one is missing."""
    return [FileEntry(name, (folder / name).stat().st_size, file_sha256(folder / name)) for name in sorted(_FILES)]


def is_named(folder: Path) -> bool:
    """Whether a folder is called as a copy is."""
    return _NAME.fullmatch(folder.name) is not None


def is_whole(folder: Path) -> bool:
    """Whether a copy holds what its name says: a disk may have changed it since."""
    named = _NAME.fullmatch(folder.name)
    try:
        return named is not None and tree_digest(entries_of(folder))[:16] == named[1]
    except OSError:
        return False


def copies(home: Home) -> list[Path]:
    """Return the folders of the copies under `home`, the oldest first. Whether they are whole is not looked at."""
    return sorted(path for path in home.backups.glob("*Z-*") if _NAME.fullmatch(path.name) and path.is_dir())


def made_at(folder: Path) -> float | None:
    """Return when a copy was made, seconds since 1970; ``None`` where that cannot be read."""
    try:
        return float(about(folder)["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def about(folder: Path) -> dict[str, Any]:
    """Return what a copy says of itself. Raises `OSError`, `ValueError` or `TypeError` where it is not there or damaged."""
    return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))


def prune(home: Home, keep: Sequence[str] = ()) -> None:
    """Remove all but the last `KEPT` copies and those named in `keep`, and what was left half done."""
    found = copies(home)
    for folder in found[:-KEPT] if len(found) > KEPT else []:
        if folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
    for left in home.backups.glob(".making-*"):
        shutil.rmtree(left, ignore_errors=True)


def make(draft: Path, told: Mapping[str, Any], sidecars: Sequence[str]) -> Offer:
    """Make a copy of what lies in `draft`, a folder under ``H/backups`` with the ledger's file in it; return what can be offered of it.

    Parameters
    ----------
    told
        What it says of itself; ``at`` is when what it holds was so.
    sidecars
        The texts of ``job.json`` of jobs that have not ended.
    """
    lines = [json.dumps(json.loads(text)) for text in sidecars]
    write_private(draft / SIDECARS, "".join(f"{line}\n" for line in lines))
    write_private(draft / ABOUT, json.dumps({"version": VERSION, **told}, indent=1))
    entries = entries_of(draft)
    digest, size = tree_digest(entries), sum(entry.size for entry in entries)
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(told['at']))}-{digest[:16]}"
    put_in_place(draft, name)
    return Offer(name=name, digest=digest, size=size, at=float(told["at"]))


def put_in_place(draft: Path, name: str) -> Path:
    """Give a copy that is whole and on the disk its name, in one step."""
    final = draft.with_name(name)
    if final.exists():  # the same copy
        shutil.rmtree(draft)
    else:
        draft.rename(final)
    sync_folder(final.parent)
    return final


# Given to others


def read_offer(home: Home) -> Offer | None:
    """Return what the head offers, ``None`` where it offers nothing that can be read."""
    try:
        return Offer.from_json(json.loads((home.backups / OFFER).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s cannot be read: %s", home.backups / OFFER, error)
        return None


def write_offer(home: Home, offer: Offer) -> None:
    """Let the agent on this host know what it may give, and to whom."""
    write_private(home.backups / OFFER, json.dumps({"version": VERSION, **asdict(offer)}))


class OfferedShelf:
    """What the peer port gives to the host `caller`: the copy that is offered to it (a `peer.Shelf`)."""

    def __init__(self, home: Home, caller: str) -> None:
        self._home, self._caller = home, caller

    def has(self, kind: str, digest: str) -> bool:
        """Whether that copy is here and for the caller."""
        return self._folder(kind, digest) is not None

    def files(self, kind: str, digest: str) -> list[FileEntry] | None:
        """Return the files of that copy."""
        folder = self._folder(kind, digest)
        return None if folder is None else entries_of(folder)

    def file(self, kind: str, digest: str, name: str) -> Path | None:
        """Return the path of one of its files."""
        folder = self._folder(kind, digest)
        return folder / name if folder is not None and name in _FILES else None

    def _folder(self, kind: str, digest: str) -> Path | None:
        offer = read_offer(self._home) if kind == KIND else None
        if offer is None or offer.host is None or (offer.host, offer.digest) != (self._caller, digest):
            return None
        folder = self._home.backups / offer.name
        return folder if folder.is_dir() else None


# Fetched from the head's host


class BackupKeeper:
    """Keeps the copies that the head gives to this host. Making the value touches nothing.

    Parameters
    ----------
    home, client
        Where they lie, and the way to the head's host.
    """

    def __init__(self, home: Home, client: PeerClient) -> None:
        self._home, self._client = home, client
        self._task: asyncio.Task[None] | None = None
        self._last: tuple[object, str | None, float | None] = (None, None, None)
        self.error: str | None = None

    def row(self) -> dict[str, Any] | None:
        """Return what the next heartbeat says: the name of the last copy, when that was made, and what went wrong since; ``None`` without any."""
        mark = signature(self._home.backups)
        if mark is None and self.error is None:
            return None
        if mark != self._last[0]:
            found = copies(self._home)
            self._last = (mark, found[-1].name, made_at(found[-1])) if found else (mark, None, None)
        return {"name": self._last[1], "at": self._last[2], "error": self.error}

    def take(self, order: Mapping[str, Any] | None) -> None:
        """Begin to fetch what the head offers, from the `peer` that it names, if that is not here and nothing is being fetched."""
        if not order or (self._task is not None and not self._task.done()):
            return
        offer = Offer.from_json(order)
        if not (self._home.backups / offer.name).is_dir():
            self._task = asyncio.create_task(self._fetched(offer, Peer(**order["peer"])), name="ledger copy")

    async def stop(self) -> None:
        """End a fetch; the next one goes on where it was."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _fetched(self, offer: Offer, head: Peer) -> None:
        try:
            await self.fetch(offer, head)
        except (DgpunetError, OSError, ValueError) as error:
            self.error = str(error)
            log.warning("the copy %s of the ledger cannot be fetched from %s: %s", offer.name, head.host, error)
        else:
            self.error = None
            log.info("the copy %s of the ledger was fetched from %s: %d bytes", offer.name, head.host, offer.size)

    async def fetch(self, offer: Offer, head: Peer) -> Path:
        """Copy what is offered from the head's host, and let older copies go; return its folder.

        Raises
        ------
        PeerFailed
            If the head's host does not give it.
        DiskFull
            If there is no room here.
        WrongBytes
            If what came is not what was offered.
        """
        await asyncio.to_thread(private_folder, self._home.backups)
        part = self._home.backups / f".part-{offer.name}"
        await asyncio.to_thread(self._clear, part)
        async with self._client.link(head) as link:
            answer = await link.ask("files", kind=KIND, digest=offer.digest)
            entries = checked_entries("model", answer.get("files"))
            if {entry.name for entry in entries} != _FILES or tree_digest(entries) != offer.digest:
                raise WrongBytes("its list of files has another digest")
            try:
                await asyncio.to_thread(prepare, part, entries)
            except OSError as error:
                raise DiskFull(path=part) from error
            copying = Copying(link, KIND, offer.digest)
            for entry in entries:
                await copying.file(entry, part / entry.name)
        await asyncio.to_thread(sync_folder, part)
        folder = await asyncio.to_thread(put_in_place, part, offer.name)
        await asyncio.to_thread(prune, self._home, [offer.name])
        return folder

    def _clear(self, part: Path) -> None:
        """Remove what fetches of other copies have left: they are offered no more."""
        for left in self._home.backups.glob(".part-*"):
            if left != part:
                shutil.rmtree(left, ignore_errors=True)
