"""How many files daemons and stages may have open."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.config.descriptors import FILES_MOST, wanted

CHILD = """
import json, os, resource
from dgpunet_dask.config.descriptors import raise_limit, restore_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 900))
raised = [raise_limit(), raise_limit(), os.environ.get("DGPUNET_FILES_INHERITED")]
restore_limit()
print(json.dumps([*raised, resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.environ.get("DGPUNET_FILES_INHERITED")]))
"""


@given(st.integers(0, 1 << 20), st.one_of(st.just(resource.RLIM_INFINITY), st.integers(0, 1 << 20)))
def test_a_limit_is_raised_within_bounds_and_never_lowered(soft: int, hard: int) -> None:
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    goal = wanted(soft, hard)
    assert goal >= soft
    assert goal <= max(soft, FILES_MOST)
    assert hard == resource.RLIM_INFINITY or goal <= hard
    assert wanted(resource.RLIM_INFINITY, hard) == resource.RLIM_INFINITY


def test_daemons_have_what_the_system_grants_and_stages_what_daemons_were_started_with() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [900, 900, "300", 300, None]
