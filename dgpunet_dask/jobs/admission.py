"""Which jobs begin, and which never will. Pure.

Each running job has a source process on the head's host and a share of the units in flight, so only some run at once. Users take turns: the
next is of the user who has the fewest running, among these the oldest. A user who has none running waits for nobody else's to end, up to a
second bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dgpunet_dask.model.job import FINAL_STATES

#: Jobs that run at once, and those beyond that of users who have none running.
RUNNING_MAX: Final = 16
RUNNING_BEYOND: Final = 16


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A job that waits to begin, in the order of acceptance."""

    job_id: str
    owner: str | None
    after: tuple[str, ...] = ()


def startable(waiting: Sequence[Candidate], running: Iterable[str | None], states: Mapping[str, str]) -> list[str]:
    """Return the jobs to begin now, in order.

    Parameters
    ----------
    waiting
        In the order of acceptance.
    running
        The owners of the jobs that run, one entry a job.
    states
        By job id, of all jobs that there are.
    """
    at_work = Counter(running)
    ready = [job for job in waiting if all(states.get(other) == "done" for other in job.after)]
    found = []
    while ready:
        job = min(ready, key=lambda j: at_work[j.owner])  # the first of equals: the oldest
        total = at_work.total()
        if total >= RUNNING_MAX and (at_work[job.owner] or total >= RUNNING_MAX + RUNNING_BEYOND):
            break
        ready.remove(job)
        at_work[job.owner] += 1
        found.append(job.job_id)
    return found


def hopeless(waiting: Iterable[Candidate], states: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return, for each job that waits for one that ended otherwise than well or is not there, that job and its state."""
    found = {}
    for job in waiting:
        for other in job.after:
            state = states.get(other, "unknown")
            if state == "unknown" or (state in FINAL_STATES and state != "done"):
                found[job.job_id] = (other, state)
                break
    return found
