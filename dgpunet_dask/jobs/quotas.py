"""How much of the cluster one user may ask for. Pure: the caller brings the time and what it has counted."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from dgpunet_dask.config.settings import Quota
from dgpunet_dask.errors import JobFailed, OverQuota, TooManyJobs

#: The span that submissions are counted over.
MINUTE_S: Final = 60.0
#: When to ask again where nobody knows when a job will end.
ASK_AGAIN_S: Final = 10.0


@dataclass
class Submissions:
    """When each user has submitted of late, so far as it counts.

    Times are seconds of a clock that never goes back.
    """

    _times: dict[str | None, deque[float]] = field(default_factory=dict)

    def of(self, user: str | None, now: float) -> int:
        """Return how many jobs a user has submitted within the last minute."""
        times = self._times.get(user, ())
        return sum(1 for at in times if at > now - MINUTE_S)

    def add(self, user: str | None, now: float, jobs: int = 1) -> None:
        """Note that so many were accepted, and forget what counts no more."""
        self._times.setdefault(user, deque()).extend([now] * jobs)
        for name, times in list(self._times.items()):
            while times and times[0] <= now - MINUTE_S:
                times.popleft()
            if not times:
                del self._times[name]

    def wait_s(self, user: str | None, now: float, most: int, jobs: int = 1) -> float | None:
        """Return the seconds until `jobs` more are at most `most` within a minute; ``None``: they are now, or are too many at any time."""
        times = [at for at in self._times.get(user, ()) if at > now - MINUTE_S]
        beyond = len(times) + jobs - most
        if beyond <= 0 or jobs > most:
            return None
        return times[beyond - 1] + MINUTE_S - now


def check(quota: Quota | None, user: str | None, live: int, submissions: Submissions, now: float, *, jobs: int = 1) -> None:
    """Raise where a user may not submit `jobs` more now.

    Parameters
    ----------
    quota
        ``None``: there is none.
    live
        Of the user's jobs, those that are queued or running.
    submissions
        Those of the last minute.

    Raises
    ------
    TooManyJobs
        With the seconds after which to ask again.
    OverQuota
        Where that would never help.
    """
    if quota is None:
        return
    _check_size(quota, user, jobs)
    if live + jobs > quota.jobs:
        raise TooManyJobs(user=user, most=f"{quota.jobs} jobs queued or running", wait_s=ASK_AGAIN_S)
    most = quota.submissions_per_minute
    wait_s = submissions.wait_s(user, now, most, jobs)
    if wait_s is not None:
        raise TooManyJobs(user=user, most=f"{most} jobs a minute", wait_s=wait_s)


def _check_size(quota: Quota, user: str | None, jobs: int) -> None:
    """Raise where so many jobs at once are too many at any time."""
    for most, what in ((quota.jobs, "queued or running"), (quota.submissions_per_minute, "a minute")):
        if jobs > most:
            raise OverQuota(user=user, most=f"{most} jobs {what}", jobs=jobs)


def check_units(quota: Quota | None, units: int) -> None:
    """Raise where a job has more units than one of its user's jobs may have.

    Raises
    ------
    JobFailed
    """
    if quota is not None and units > quota.units:
        why = f"it has more than the {quota.units} units that one job may have; split its input, or ask an operator to raise `quotas: units:` in config.yaml"
        raise JobFailed(why=why)
