"""The head's HTTP API: JSON behind a key, on 127.0.0.1 in the clear and, for a cluster of several machines, elsewhere under TLS.

A page in the user's browser must not reach it either: the Host header has to name this server (DNS rebinding), a foreign Origin is refused,
and a body counts only as ``application/json``, which a page cannot send elsewhere without asking first.
"""

from __future__ import annotations

from dgpunet_dask.daemons.api.context import JSON_BYTES_MAX, WORKLOAD_BYTES_MAX, ApiContext, JobService, Membership, Why
from dgpunet_dask.daemons.api.routes import listen, listen_tls, make_application
from dgpunet_dask.daemons.api.server import ApiServer

__all__ = [
    "JSON_BYTES_MAX", "WORKLOAD_BYTES_MAX", "ApiContext", "ApiServer", "JobService", "Membership", "Why", "listen", "listen_tls", "make_application",
]  # fmt: skip
