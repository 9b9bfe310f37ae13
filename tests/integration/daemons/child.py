"""A child for tests of what keeps children: notes its start, then does what its first argument says.

``wait`` or ``idle``: end at SIGTERM; ``deaf``: ignore it; ``family``: have a child, and wait with it; ``exit N``: end at once; ``short N``: the first N of them end
for want of room on a disk; ``serve N``: note
itself in ``serves.json`` and end; ``told``: say a line and end with status 3; ``last``: note who is there at the end. The last argument is the
folder in which it notes ``NAME.PID``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from dgpunet_dask.daemons.lifeline import end_now, watch
from dgpunet_dask.daemons.starter import SHORT


def note_others(folder: Path) -> int:
    """Write down which of the others still run."""
    others = [int(file.suffix[1:]) for file in folder.glob("idle.*")]
    (folder / "beside").write_text(" ".join(str(pid) for pid in others if psutil.pid_exists(pid)))
    return 0


def main() -> None:
    watch(end_now)
    *words, folder = sys.argv[1:]
    if words[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if words[0] == "family":
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        (Path(folder) / f"grandchild.{own.pid}").touch()
    (Path(folder) / f"{words[0]}.{os.getpid()}").touch()
    if words[0] == "serve":
        (Path(folder) / "serves.json").write_text(json.dumps({"pid": os.getpid()}))
    if words[0] == "told":
        print(json.dumps({"progress": "on the way"}), flush=True)
        sys.exit(3)
    if words[0] == "last":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(note_others(Path(folder))))
    if words[0] == "short" and len(list(Path(folder).glob("short.*"))) <= int(words[1]):
        sys.exit(SHORT)
    if words[0] in ("exit", "serve"):
        sys.exit(int(words[1]))
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main()
