"""How a daemon tells the command that has started it how far it is: a pipe, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Starter:
    """The head's standard output until it is ready: a pipe to the command that started it."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self.open = True

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message; after ``ready`` or an error the pipe is replaced by the log."""
        if not self.open:
            return
        with contextlib.suppress(BrokenPipeError):
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
