"""DGPUNET-Dask: a handful of unequal GPU machines as one cluster on dask.distributed.

`Stage` and `Demand` are what workloads are written with; they need the standard library only, because a stage may run in an
interpreter of its own. `Client` and `AsyncClient` are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.stage import Stage, StageContext

if TYPE_CHECKING:
    from dgpunet_dask.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Demand", "Stage", "StageContext", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"AsyncClient", "Client"}:
        from dgpunet_dask import client  # heavy, and absent in a stage's own interpreter

        return getattr(client, name)
    raise AttributeError(f"module 'dgpunet_dask' has no attribute {name!r}")
