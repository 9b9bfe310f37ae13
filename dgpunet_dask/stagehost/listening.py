"""The agent's Unix socket: taken over from a killed agent, for processes of the same user only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dgpunet_dask.stagehost.asyncwire import AsyncWire

logger = logging.getLogger(__name__)

_CREDENTIALS: Final = struct.Struct("3i")
_BACKLOG: Final = 128


class Listener:
    """Listens on one path. Making the value touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock: socket.socket | None = None
        self._inode: int | None = None

    def open(self, serve: Callable[[AsyncWire], None]) -> None:
        """Listen, and hand each connection of our own user to `serve`. Needs a running loop.

        Raises
        ------
        OSError
            If the socket cannot be made, or its folder belongs to another user.
        """
        private_folder(self.path.parent)
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            self.path.unlink(missing_ok=True)  # left by an agent that was killed: the head lets only one run
            sock.bind(str(self.path))
            self.path.chmod(0o600)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        self._sock, self._inode = sock, self.path.stat().st_ino
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock, serve)

    def _accept(self, listening: socket.socket, serve: Callable[[AsyncWire], None]) -> None:
        try:
            sock, _ = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # out of descriptors: those who wait are served when some are free
            logger.exception("a connection could not be accepted")
            return
        if peer_uid(sock) in (os.getuid(), None):
            serve(AsyncWire(sock))
        else:
            logger.warning("refused a connection of user id %s to %s", peer_uid(sock), self.path)
            sock.close()

    def close(self) -> None:
        """Stop listening; remove the socket, and a short folder made for it, unless another agent has taken the path over."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
                if self.path.parent.parent == Path("/tmp"):  # noqa: S108  # the short folder of a long home, see Home.agent_socket
                    self.path.parent.rmdir()


def peer_uid(sock: socket.socket) -> int | None:
    """Return the user id of the process at the other end; ``None`` where the system does not tell: then the folder's mode guards."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return int(uid)


def private_folder(folder: Path) -> None:
    """Make `folder` with mode 0700, or check that an existing one is ours alone.

    Raises
    ------
    PermissionError
        If it is a link, or belongs to another user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} does not belong to this user; remove it")
    folder.chmod(0o700)
