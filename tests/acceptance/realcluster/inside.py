"""Calls that are made on a host of a LAN, from this process: a thread steps into the host's namespace."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dgpunet_dask.testing.netns import FOLDER

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def inside(namespace: str, call: Callable[[], T]) -> T:
    """Return what `call` returns in `namespace`; sockets that it makes stay there, whoever uses them."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _enter(namespace)
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _enter(namespace: str) -> None:
    handle = os.open(Path(FOLDER) / namespace, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(handle)
