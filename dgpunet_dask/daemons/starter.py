"""How a daemon tells the command that has started it how far it is."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any


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
