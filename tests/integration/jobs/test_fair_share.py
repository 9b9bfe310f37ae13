"""One user's long job does not keep another's short one waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.client import Client
from dgpunet_dask.jobs.store import pack_workload, read_workload

MANY, FEW = 10_000, 10
SHAPES = {
    "light": {"read": {"run": "stages:Numbers", "unit": {"items": 1}}, "plain": {"run": "stages:Plain", "after": "read"}},
    "heavy": {"read": {"run": "stages:Numbers", "unit": {"items": 1}}, "heavy": {"run": "stages:Heavy", "after": "read"}},
}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", SHAPES)
def test_ten_units_pass_ten_thousand_of_another_user(
    client: Client, workload: Callable[[Any], Path], shape: str
) -> None:
    folder = read_workload(workload(SHAPES[shape]))
    client.api.add_workload(folder.digest, pack_workload(Path(folder.folder)))

    def submit(user: str, units: int) -> str:
        return client.api.submit({"workload": folder.digest, "params": {"count": units, "file": ""}, "user": user}).job_id

    def took(job_id: str, began: float) -> float:
        assert client.wait(job_id, 60).state == "done"
        return time.monotonic() - began

    alone = took(submit("bob", FEW), time.monotonic())
    long = submit("ann", MANY)
    try:
        while client.api.show(long).units.done < 50:
            time.sleep(0.2)  # until the other job is well under way
        beside = took(submit("bob", FEW), time.monotonic())
        status = client.api.show(long)
        assert status.state == "running", f"the long job is {status.state} after {status.units.done} units: nothing was passed"
        print(f"{shape}: {FEW} units take {beside:.2f} s beside {MANY} of another user, {alone:.2f} s alone")
        assert beside < alone + 15
    finally:
        client.api.cancel(long)
