"""A child for tests of what keeps children: notes its start, then does what its first argument says.

``wait`` or ``idle``: end at SIGTERM; ``deaf``: ignore it; ``family``: have a child, and wait with it; ``exit N``: end at once. The last argument is
the folder in which it notes ``NAME.PID``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dgpunet_dask.daemons.lifeline import end_now, watch


def main() -> None:
    watch(end_now)
    *words, folder = sys.argv[1:]
    if words[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if words[0] == "family":
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        (Path(folder) / f"grandchild.{own.pid}").touch()
    (Path(folder) / f"{words[0]}.{os.getpid()}").touch()
    if words[0] == "exit":
        sys.exit(int(words[1]))
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main()
