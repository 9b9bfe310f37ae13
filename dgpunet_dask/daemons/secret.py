"""The secret path under which Dask's own pages answer on 127.0.0.1: they ask for no key, so who does not know it finds nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def http_prefix(run: Path) -> str:
    """Return the path of this home, made when it is first asked for, mode 0600."""
    file = run / "dashboard.secret"
    with contextlib.suppress(FileExistsError):
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = run / f".dashboard.secret.{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(16))
        try:
            os.link(draft, file)  # fails where another process was first, whose secret is whole by then
        finally:
            draft.unlink()
    return file.read_text(encoding="ascii")
