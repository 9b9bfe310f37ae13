"""Workloads whose source counts, each with a stage of the test's own that works on the numbers; and a head that is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Final

from tests.acceptance.conftest import Cli

#: What each ``stages.py`` begins with: the source gives the numbers below the parameter ``count``.
SOURCE: Final = """\
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class Read(Stage):
    def load(self, *, count: int) -> None:
        self.n = count

    def __call__(self):
        yield from range(self.n)


"""


def workload(folder: Path, job: str, stage: str) -> Path:
    """Make the folder of a workload; `stage` is the code of the stage that works, and `job` names it after ``stages:Read``."""
    folder.mkdir()
    (folder / "job.yaml").write_text(job)
    (folder / "stages.py").write_text(SOURCE + stage)
    return folder


def kill_head(cluster: Cli) -> None:
    os.kill(json.loads((cluster.home / "run" / "head.json").read_text())["pid"], signal.SIGKILL)
