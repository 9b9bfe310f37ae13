"""The shipped fleet of five machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.placement.fleet_file import parse_fleet

HOME5 = Path(__file__).parents[3] / "policies" / "fleets" / "home5.yaml"


@pytest.fixture(scope="session")
def home5() -> Fleet:
    return parse_fleet(HOME5.read_text(encoding="utf-8"), str(HOME5))
