"""Dask's `Security` under the certificate of a host, for schedulers, workers, nannies and clients alike.

Dask's own builds its contexts once from files, checks no name and knows no revocation list. This one gives the live contexts of
`Identity`: a renewed certificate and a new revocation list hold for every connection from then on; those that stand live on.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

from distributed import Security

from dgpunet_dask.security.identity import Identity, watch

_WATCHED: Final[set[Path]] = set()
_LOCK: Final = threading.Lock()
_FOR_EVER: Final = threading.Event()


class ClusterSecurity(Security):
    """Mutual TLS with the certificate in `folder`; in a pickle there is the folder's name and nothing else.

    The first context that a process takes from it starts the thread that follows the files.

    Parameters
    ----------
    folder
        The folder of `dgpunet_dask.security.identity`.
    """

    __slots__ = ("folder",)

    def __init__(self, folder: Path | str) -> None:
        super().__init__(require_encryption=True)
        self.folder = Path(folder).absolute()

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """Return what `distributed.comm.connect` takes; one certificate serves all of Dask's roles."""
        context = self._identity().client_context()
        return {"ssl_context": context, "require_encryption": True, "extra_conn_args": self.extra_conn_args}

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """Return what `distributed.comm.listen` takes: who connects must show a certificate of the cluster."""
        return {"ssl_context": self._identity().server_context("required"), "require_encryption": True}

    def _identity(self) -> Identity:
        identity = Identity(self.folder)
        with _LOCK:
            if self.folder not in _WATCHED:
                watch(identity, _FOR_EVER)
                _WATCHED.add(self.folder)
        return identity

    def _attr_to_dict(self) -> dict[str, Any]:
        """Return what Dask's notebooks show of it."""
        return {"folder": str(self.folder)}

    def __reduce__(self) -> tuple[Any, ...]:
        return ClusterSecurity, (str(self.folder),)

    def __repr__(self) -> str:
        return f"ClusterSecurity({str(self.folder)!r})"
