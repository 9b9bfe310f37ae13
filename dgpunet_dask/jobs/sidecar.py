"""What lies beside the ledger, so that it can be made again: ``job.json`` of each job, and the names of its results. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

#: 1 was written by releases without a ledger.
FORMAT_VERSION: Final = 2
MANIFEST_VERSION: Final = 1


def results_manifest(files: Sequence[str]) -> str:
    """Return the text of ``results/manifest.json``: the files of a finished job that has no gather stage, in the order of its source."""
    return json.dumps({"version": MANIFEST_VERSION, "files": [PurePath(file).name for file in files]})
