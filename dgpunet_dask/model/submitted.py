"""What became of a submission. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from dgpunet_dask.model.job import JobStatus


@dataclass(frozen=True)
class Submitted:
    """The jobs of one submission, in the order in which they were asked for.

    Parameters
    ----------
    jobs
        One, or as many as an array has.
    created
        Whether they are new; otherwise the idempotency key had been used, and these are the jobs that it stands for.
    array_id
        What the jobs of an array have in common; ``None`` for a job of its own.
    """

    jobs: tuple[JobStatus, ...]
    created: bool = True
    array_id: str | None = None
