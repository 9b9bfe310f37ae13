"""Who may read and change what, as a table."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.model.owner import OPERATOR, User

ANN, BOB, ROOT, NOBODY = User("ann"), User("bob"), User("root", operates=True), User()


@pytest.mark.parametrize(("user", "owner", "shared", "sees", "owns"), [
    (ANN, "ann", False, True, True), (ANN, "ann", True, True, True), (BOB, "ann", False, False, False), (BOB, "ann", True, True, False),
    (ROOT, "ann", False, True, True), (OPERATOR, "ann", False, True, True), (ANN, None, False, False, False), (ANN, None, True, True, False),
    (ROOT, None, False, True, True), (NOBODY, None, False, False, False), (NOBODY, "ann", False, False, False),
])  # fmt: skip
def test_who_may_what(user, owner, shared, sees, owns):
    thing = JobStatus(job_id="j", workload="w", state="done", owner=owner, shared=shared)
    assert (user.sees(thing), user.owns(thing)) == (sees, owns)
