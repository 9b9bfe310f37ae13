"""Submit, wait and read results from Python: `Client`, and `AsyncClient` for asyncio. The command line is written with the first.

>>> with Client() as client:
...     job = client.submit("embed-codebase", {"path": ["."], "index": "here"})
...     status = client.wait(job.job_id)

What is asked, in which order and what follows a lost connection is in `talk`, once for both; `sync` and `aio` carry it out.
"""

from __future__ import annotations

from dgpunet_dask.client.aio import AsyncClient
from dgpunet_dask.client.sync import Client
from dgpunet_dask.client.talk import JobOptions
from dgpunet_dask.cluster.wire import JobArray

__all__ = ["AsyncClient", "Client", "JobArray", "JobOptions"]
