"""``cluster.json``: which cluster of real machines this host belongs to, as whom, and on which ports. Mode 0600.

`head` writes it on the head's host, `join` on the others. Without it a home knows only clusters on 127.0.0.1.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadValue, NewerFormat, UnreadablePath, UsageError
from dgpunet_dask.security.files import write_private

VERSION: Final = 1

Membership = Literal["head", "node"]


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The documented ports of a host.

    Parameters
    ----------
    scheduler, api
        On the head's host alone: Dask's scheduler (mutual TLS), and the HTTPS API with the dashboard.
    peer
        Every agent: reachability, bandwidth and files between hosts (mutual TLS).
    workers, nannies
        The first of a hundred each: one for each device, in the order of their names.
    """

    scheduler: int = 8786
    api: int = 8787
    peer: int = 8788
    workers: int = 8800
    nannies: int = 8900


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """One host's place in a cluster.

    Parameters
    ----------
    membership
        Whether this is the head's host.
    cluster, host
        The cluster's name, and this host's in it.
    address
        The address of this host that the others use.
    api
        ``ADDRESS:PORT`` of the head's API, the best first.
    fingerprint
        SHA-256 of the cluster's CA certificate, in hex.
    roles
        Of this host, as policies match them.
    pinned
        Whether the user chose `address`; otherwise it is chosen anew at each start.
    """

    membership: Membership
    cluster: str
    host: str
    address: str
    api: tuple[str, ...]
    fingerprint: str
    roles: tuple[str, ...] = ()
    pinned: bool = False
    ports: Ports = Ports()

    def at(self, address: str) -> ClusterConfig:
        """Return this with another address; a head's API moves with it."""
        api = (join_host_port(address, self.ports.api),) if self.membership == "head" else self.api
        return replace(self, address=address, api=api)

    @property
    def scheduler(self) -> str:
        """Address of the scheduler, where this is the head's host."""
        return f"tls://{join_host_port(self.address, self.ports.scheduler)}"


def write_config(path: Path, config: ClusterConfig) -> None:
    """Replace the file at `path` in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, json.dumps({"version": VERSION, **asdict(config)}, indent=1))


def read_config(path: Path) -> ClusterConfig | None:
    """Return what `path` says, ``None`` where there is no file.

    Raises
    ------
    NewerFormat
        If a newer release wrote it.
    UnreadablePath
        If the system does not give it.
    UsageError
        If it cannot be understood.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UnreadablePath(path=path.parent, why="it is no folder, and $DGPUNET_HOME has to be one") from error
    except OSError as error:
        named = path.parent if error.errno == errno.ENAMETOOLONG else path
        raise UnreadablePath(path=named, why=error.strerror or str(error)) from error
    except ValueError as error:
        raise UsageError(detail=f"{path} cannot be read ({error}). Remove it, then run `dgpunet-dask head` or `join` again.") from error
    if isinstance(found, dict) and isinstance(found.get("version"), int) and found["version"] > VERSION:
        raise NewerFormat(path=path, found=found["version"], known=VERSION)
    try:
        return _config_of(found)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(detail=f"{path} is damaged ({error}). Remove it, then run `dgpunet-dask head` or `join` again.") from error


def joined_cluster(home: Home) -> str | None:
    """Return the address of the head whose cluster this machine has joined, ``None`` where it has not, or is the head's own.

    Raises
    ------
    UsageError
        If ``cluster.json`` is damaged.
    """
    config = read_config(home.cluster_file)
    return f"https://{config.api[0]}" if config is not None and config.membership == "node" else None


def _config_of(found: Mapping[str, Any]) -> ClusterConfig:
    values = {name: value for name, value in found.items() if name != "version"}
    lists = {name: tuple(_text(item) for item in _list(values[name])) for name in ("api", "roles")}
    texts = {name: _text(values[name]) for name in ("cluster", "host", "address", "fingerprint")}
    ports = Ports(**{name: _port(value) for name, value in values["ports"].items()})
    if values["membership"] not in ("head", "node") or not lists["api"]:
        raise ValueError("it does not say whose head answers where")
    return ClusterConfig(**{**values, **lists, **texts, "ports": ports})


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 16:
        raise TypeError(f"{value!r} is no port")
    return value


def split_host_port(text: str, default: int) -> tuple[str, int]:
    """Return host and port of ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises
    ------
    BadValue
        If the host is missing, or the port is none.
    """
    host, _, port = text.rpartition(":") if _has_port(text) else (text, "", str(default))
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise BadValue(what="address", value=text, why="write HOST, HOST:PORT or [IPV6]:PORT")
    return host, int(port)


def _has_port(text: str) -> bool:
    return text.count(":") == 1 or "]:" in text


def join_host_port(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def first_addresses(addresses: Sequence[str], port: int) -> tuple[str, ...]:
    """Return ``ADDRESS:PORT`` of each address."""
    return tuple(join_host_port(address, port) for address in addresses)
