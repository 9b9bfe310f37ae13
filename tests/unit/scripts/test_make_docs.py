"""The reference pages say what the code says."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers import ROOT


def test_the_reference_is_current():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "make_docs.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
