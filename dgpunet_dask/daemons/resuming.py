"""What a head that is started again takes over from the one before it: the ports and the key, the fleet, and the policies in force.

Whoever talked to that one finds this one where it was. The head's own file says where; a head that ends in good order takes it along, and
so does who starts a cluster anew (`embedded.clear_remains`).
"""

from __future__ import annotations

import functools
import json
import logging
import socket
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dgpunet_dask.cluster.fleets import fleet_from_json
from dgpunet_dask.cluster.headfile import HeadFile, read_head_file
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.policies import Policies
from dgpunet_dask.errors import DgpunetError, NewerFormat
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.placement.policy_file import parse_policies

log = logging.getLogger(__name__)

Server = TypeVar("Server")


def head_before(home: Home) -> HeadFile | None:
    """Return what a killed head left under `home`, ``None`` where there was none."""
    try:
        return read_head_file(home.head_file)
    except NewerFormat as error:
        log.warning("the ports of the head before are not taken over: %s", error)
        return None


def kept_fleet(file: Path) -> Fleet | None:
    """Return the fleet that the head before wrote for its agent: both must mean the same one, whatever its source says by now."""
    try:
        return fleet_from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read, the fleet is looked at anew: %s", file, error)
        return None


def read_fleet(simulate: Path | None, home: Home) -> Fleet:
    """Return the fleet that a file states, or this machine. What torch said of itself is kept under `home`.

    Raises
    ------
    MalformedFile
        With every mistake of the file.
    MissingPath, UnreadablePath
        If it cannot be read.
    """
    from dgpunet_dask.hardware.probe import local_fleet
    from dgpunet_dask.hardware.runtime import torch_arches
    from dgpunet_dask.hardware.simulated import simulated_fleet

    if simulate is not None:
        return simulated_fleet(simulate)
    return local_fleet(arches=functools.partial(torch_arches, home.torch_arches))


def port_of(address: str | None) -> int:
    """Return the port in a URL, 0 where it has none."""
    try:
        return urllib.parse.urlsplit(address or "").port or 0
    except ValueError:
        return 0


def free_port(port: int) -> int:
    """Return `port` if this machine's programs may listen there, else 0: any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return 0
    return port


def listen_again(listen: Callable[[int], Server], port: int) -> Server:
    """Listen on `port`; on any other where somebody has taken it meanwhile."""
    try:
        return listen(port)
    except OSError as error:
        log.warning("the API cannot listen on its former port %d any more: %s", port, error)
        return listen(0)


def load_policies(policies: Policies, in_force: Path) -> None:
    """Read the policy files; where they have become wrong meanwhile, those that were in force stay so, as they do under a running head.

    Raises
    ------
    MissingPath, UnreadablePath, MalformedFile, NewerFormat
        If what was in force cannot be read either.
    """
    try:
        policies.load()
    except DgpunetError as error:
        sources = _sources(in_force)
        if sources is None:
            raise
        policies.sources, policies.policy, policies.error = sources, parse_policies(sources), error
        policies.lost()
        log.error("the changed policy files are not taken, policy %s stays in force: %s", policies.policy.digest, error)


def _sources(in_force: Path) -> tuple[Any, ...] | None:
    try:
        return tuple((str(text), str(file), layer) for text, file, layer in json.loads(in_force.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
