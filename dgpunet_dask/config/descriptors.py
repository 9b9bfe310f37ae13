"""How many files a daemon may have open. A shell grants 1024 as a rule, which a few hundred connections use up, and the kernel far more to
whoever asks.

Stages and what they start keep what the daemons were started with: user code may still use ``select()``, which knows no descriptor above 1023.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import MutableMapping
from typing import Final

#: What a daemon asks for at most, as the systemd unit grants it.
FILES_MOST: Final = 65_536
#: Tells a daemon's descendants the soft limit that the first of them was started with.
INHERITED_ENV: Final = "DGPUNET_FILES_INHERITED"


def wanted(soft: int, hard: int, most: int = FILES_MOST) -> int:
    """Return the soft limit to ask for: `most`, as far as the hard limit allows, and never less than `soft`; -1 is no limit."""
    if soft == resource.RLIM_INFINITY:
        return soft
    return max(soft, most if hard == resource.RLIM_INFINITY else min(hard, most))


def raise_limit(environ: MutableMapping[str, str] = os.environ) -> int:
    """Raise this process's soft limit towards its hard one, for its children too; return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    goal = wanted(soft, hard)
    if goal != soft:
        with contextlib.suppress(OSError, ValueError):  # what the system does not grant is done without
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            environ.setdefault(INHERITED_ENV, str(soft))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def restore_limit(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give this process, a stage's, the soft limit that its daemons were started with."""
    told = environ.pop(INHERITED_ENV, "")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if told.isdigit() and (soft == resource.RLIM_INFINITY or int(told) < soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(told), hard))
