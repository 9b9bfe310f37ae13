"""How a daemon tells the command that has started it how far it is: a pipe, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors.fullness import is_short
from dgpunet_dask.hardware.system import total_and_free

log = logging.getLogger(__name__)

#: A daemon that ends with this status (sysexits' "try again later") lacked room on a disk, or files that it may open.
SHORT: Final = 75
#: With less than this, a disk is full for whoever starts on it.
START_BYTES: Final = 1 << 20


def no_room(root: Path) -> bool:
    """Whether the disk of a home is full, so that nothing can start on it; not where the system does not say."""
    try:
        return total_and_free(root)[1] < START_BYTES
    except OSError:
        return False


def leaving(error: BaseException, status: int) -> int:
    """Return the status to leave with because of `error`: `SHORT` where the system lacked something, else `status`."""
    if not is_short(error):
        return status
    with contextlib.suppress(OSError):  # what a full disk did not take would be tried again at the end, and its failure change the status
        sink = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(sink, stream)
    return SHORT


class Starter:
    """The head's standard output until it is ready: a pipe to the command that started it."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self.open = True

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message; after ``ready`` or an error the pipe is replaced by the log."""
        if not self.open:
            return
        with contextlib.suppress(OSError):  # nobody reads, or the log's disk is full
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        if "ready" in message or "error" in message:
            self.open = False
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


class Outlet:
    """The pipe of a supervisor to the command that waits for its first daemon, which is handed on to each start of that.

    Parameters
    ----------
    fd
        The end that is written.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def heard(self) -> bool:
        """Whether the command still reads: it closes its end once the daemon is ready."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return not any(events & select.POLLERR for _, events in poll.poll(0))

    def warn(self, text: str) -> None:
        """Tell the command, if it is there, and the log."""
        log.warning(text)
        if self.heard:
            with contextlib.suppress(OSError):
                os.write(self.fd, json.dumps({"warning": text}).encode() + b"\n")
