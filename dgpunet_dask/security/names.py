"""What a host may be called: a name that stands in certificates, tokens and the names of devices. Pure."""

from __future__ import annotations

import re
from typing import Final

from dgpunet_dask.errors import BadValue

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")  # a common name has at most 64 characters


def checked_host(host: str) -> str:
    """Return `host` if it is the name of one.

    Raises
    ------
    BadValue
        If it is not, or looks like an address, which would never match as a name.
    """
    if not _HOST.fullmatch(host) or ".." in host or re.fullmatch(r"[\d.]+", host):
        raise BadValue(what="host name", value=host, why="use letters, digits, dot, underscore and hyphen, at most 64 of them")
    return host
