"""Connections that stand are ended once the certificate at their other end is revoked.

TLS looks at a certificate when a connection begins and never again. A host that was removed could keep one open, or begun by half, and
over it tell a worker to run code. So each of Dask's servers looks through its connections again and again.
"""

from __future__ import annotations

import logging
from typing import Final

from distributed.core import Server
from tornado.ioloop import PeriodicCallback

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.security.identity import Identity, peer_of

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0
_NAME: Final = "revoked"


def follow(server: Server, every_s: float = EVERY_S) -> None:
    """Let a scheduler, worker or nanny that is about to start sever what is revoked, until it ends; one without certificates is left alone."""
    if not isinstance(server.security, ClusterSecurity):
        return
    identity = Identity(server.security.folder)

    def look() -> None:
        sever(server, identity)

    server.periodic_callbacks[_NAME] = PeriodicCallback(look, every_s * 1000)


def sever(server: Server, identity: Identity) -> int:
    """Abort the connections of a server, whoever made them, whose other end's certificate is revoked by now; return how many."""
    identity.refresh()
    count = 0
    for comm in [*server._comms, *server.rpc._created]:  # noqa: SLF001  # Dask tells of them nowhere else
        peer = peer_of((comm.extra_info or {}).get("peercert"))
        if peer is not None and peer.serial in identity.revoked and not comm.closed():
            log.warning("the connection with %s is ended: the certificate of %s was revoked", comm.peer_address, peer.host)
            comm.abort()
            count += 1
    return count
