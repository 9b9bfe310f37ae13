"""Making a host part of a cluster: the head's own first, others by token. What `head`, `join` and `down` do before and after the daemons run."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.cluster.agent_api import AgentApi, join_request
from dgpunet_dask.cluster.config import ClusterConfig, Membership, Ports, read_config, write_config
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import Say, quietly
from dgpunet_dask.daemons.lifeline import OwnedProcess, child_env, python_argv, spawn
from dgpunet_dask.daemons.register import SUPERVISOR, Register
from dgpunet_dask.errors import CertificateRefused, DgpunetError, StartFailed, UsageError
from dgpunet_dask.hardware.cpu import checked_name, host_name
from dgpunet_dask.hardware.network import Choice, choose_interface, interfaces, local_addresses, route_to
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.security.authority import LIFE_S, Authority
from dgpunet_dask.security.identity import Identity, install, make_request
from dgpunet_dask.security.tokens import parse_token

log = logging.getLogger(__name__)

#: How long a host's workers may take until they are in the cluster: loading Dask from a cold disk takes most of it.
READY_S: Final = 120.0
#: A head that refuses a certificate that often in a row will not take it.
REFUSALS_MAX: Final = 15
_POLL_S: Final = 0.2


def own_name(wanted: str | None) -> str:
    """Return the name of this host in the cluster: `wanted`, else what the system calls it.

    Raises
    ------
    BadValue
        If `wanted` has letters that no device's name may have.
    """
    return checked_name(wanted) if wanted is not None else host_name(socket.gethostname())


def choose_address(listen: str | None, head: str | None) -> tuple[str, Choice | None]:
    """Return the address of this host for the cluster: `listen`, else that of the interface on the way to `head`.

    Raises
    ------
    UsageError
        If this host does not have the address `listen`.
    """
    if listen is not None:
        if listen not in ("127.0.0.1", "::1", *local_addresses()):
            known = ", ".join(local_addresses()) or "none"
            raise UsageError(detail=f"This host does not have the address {listen}. It has {known}.")
        return listen, None
    choice = choose_interface(interfaces(), head=head, route=route_to)
    return choice.address, choice


def prepare_head(home: Home, *, name: str | None, listen: str | None, roles: Sequence[str], now: float, say: Say = quietly) -> ClusterConfig:
    """Make this host the head of a cluster, or find it so, and choose its address anew unless the user has.

    Raises
    ------
    UsageError
        If it belongs to another head's cluster.
    """
    before = read_config(home.cluster_file)
    if before is not None and before.membership == "node":
        raise UsageError(
            detail=f"This host belongs to the cluster of {before.api[0]}. Run `dgpunet-dask down` and remove {home.cluster_file} and"
            f" {home.pki} to make it a head."
        )
    wanted = listen or (before.address if before is not None and before.pinned else None)
    address, choice = choose_address(wanted, None)
    if before is None:
        host = own_name(name)
        authority = _authority(home.pki, host, now)
        before = ClusterConfig(
            membership="head", cluster=host, host=host, address=address, api=(), fingerprint=authority.fingerprint, roles=("head", *roles)
        )
    elif name is not None and name != before.host:
        raise UsageError(detail=f"This head is called {before.host}, and its certificates say so. Leave `--name` out.")
    config = replace(before.at(address), pinned=wanted is not None, roles=("head", *roles) if roles else before.roles)
    write_config(home.cluster_file, config)
    certify_head(home.pki, config, now)
    if choice is not None:
        say_choice(choice, say)
    return config


def certify_head(folder: Path, config: ClusterConfig, now: float, life_s: float = LIFE_S) -> None:
    """Give the head's host a fresh certificate for all its present addresses: it may have moved since the last start."""
    authority = Authority.open(folder)
    addresses = dict.fromkeys((config.address, *(address for address in local_addresses() if "%" not in address)))
    request = make_request(folder, config.host)
    issued = authority.issue(request, host=config.host, addresses=list(addresses), role="head", now=now, life_s=life_s)
    install(folder, issued.certificate_pem, authority.certificate_pem, authority.crl_pem(now))


def _authority(pki: Path, cluster: str, now: float) -> Authority:
    with contextlib.suppress(DgpunetError):
        return Authority.open(pki)
    return Authority.create(pki, cluster, now)


def say_choice(choice: Choice, say: Say) -> None:
    """Tell which interface is used and why, and which are not."""
    say(f"network: {choice.interface.name} with {choice.address} ({choice.why})")
    for refused in choice.refused:
        if refused.interface != "lo":
            say(f"  not {refused.interface}: {refused.reason}")
    if choice.warning:
        say(f"warning: {choice.warning}")


def enrol(home: Home, token: str, *, name: str | None, listen: str | None, roles: Sequence[str], force: bool, say: Say) -> ClusterConfig:
    """Join a cluster by token: certificate, configuration. A host that belongs to it stays who it is, and learns where its head is now.

    Raises
    ------
    BadToken, TokenRefused, CertificateRefused, JoinRefused, NoHead
        If the head does not take this host in; nothing is changed then.
    UsageError
        If this host is a head, or a host of another cluster.
    """
    before, parsed = read_config(home.cluster_file), parse_token(token)
    if before is not None and (before.membership == "head" or before.fingerprint != parsed.fingerprint):
        raise UsageError(
            detail=f"This host belongs to the cluster {before.cluster} already. Run `dgpunet-dask down` and remove {home.cluster_file} and"
            f" {home.pki} to join another."
        )
    host = own_name(name or (before.host if before is not None else None))
    roles = tuple(roles) or (before.roles if before is not None else ())
    wanted = listen or (before.address if before is not None and before.pinned else None)
    address, choice = choose_address(wanted, parsed.addresses[0].rpartition(":")[0].strip("[]"))
    if choice is not None:
        say_choice(choice, say)
    software = {**asdict(software_facts()), "host": host}
    csr = make_request(home.pki, host)
    body = {"host": host, "csr": csr, "addresses": [address], "roles": list(roles), "software": software, "force": force}
    answer = join_request(token, body)
    for warning in answer.get("warnings", ()):
        say(f"warning: {warning}")
    install(home.pki, str(answer["certificate"]), str(answer["ca"]), str(answer["crl"]))
    api = tuple(dict.fromkeys((str(answer["via"]), *parsed.addresses)))
    config = ClusterConfig(
        membership="node", cluster=str(answer["cluster"]), host=host, address=address, api=api, fingerprint=parsed.fingerprint,
        roles=roles, pinned=wanted is not None, ports=before.ports if before is not None else Ports(),
    )  # fmt: skip
    write_config(home.cluster_file, config)
    return config


def moved(home: Home, config: ClusterConfig, say: Say = quietly) -> ClusterConfig:
    """Return the configuration of a joined host with its present address: a laptop has another one in another network.

    The certificate still names the old one; the agent asks for another at its first heartbeat.
    """
    if config.pinned:
        return config
    address, choice = choose_address(None, config.api[0].rpartition(":")[0].strip("[]"))
    if address != config.address:
        say(f"this host's address is {address} now, it was {config.address}")
        config = config.at(address)
        write_config(home.cluster_file, config)
    if choice is not None:
        say_choice(choice, say)
    return config


@contextlib.contextmanager
def supervising(home: Home, membership: Membership, policy: Sequence[Path] = ()) -> Iterator[OwnedProcess]:
    """Start a supervisor in the background. Release it inside the block; it ends with the block otherwise."""
    argv = python_argv("dgpunet_dask.daemons.supervisor", "--home", str(home.root), "--membership", membership)
    argv += [word for path in policy for word in ("--policy", str(path.absolute()))]
    log_file = home.run / "logs" / "supervisor.log"
    process = spawn(argv, env=child_env({"DGPUNET_HOME": str(home.root)}), log_file=log_file, cwd=home.run)
    Register(home.run / "processes").add(process.pid, SUPERVISOR)
    try:
        yield process
    except BaseException:
        process.process.terminate()
        process.cut()
        raise


def until_ready(home: Home, config: ClusterConfig, alive: Callable[[], bool], say: Say = quietly, timeout_s: float = READY_S) -> dict[str, Any]:
    """Wait until the workers of this host are in the cluster, and return the host's row of `nodes`. A drained host runs none.

    Raises
    ------
    StartFailed
        If they are not within `timeout_s`, or the supervisor ends.
    CertificateRefused
        If the head refuses this host again and again: it was removed.
    """
    api, told, began = AgentApi(config.api, Identity(home.pki)), "", time.monotonic()
    row: dict[str, Any] = {}
    refusals = 0
    while time.monotonic() < began + timeout_s:
        if not alive():
            raise StartFailed(why=f"its daemons ended{last_error(home.run / 'logs')}", logs=home.run / "logs")
        try:
            row, refusals = api.me(), 0
        except CertificateRefused:
            refusals += 1  # one may be of a certificate that the agent is about to renew
            if refusals >= REFUSALS_MAX:
                raise
        except DgpunetError:
            log.debug("the head does not answer yet")
        if row and not _heard_since(row, time.monotonic() - began):
            row = {}  # what an earlier agent said of this host
        if row.get("state") == "refused":
            raise StartFailed(why=f"the head runs no workers here: {row['why']}", logs=home.run / "logs")
        if row.get("state") == "drained" and row["facts_known"]:
            say(f"{config.host} is drained and runs no workers; `dgpunet-dask uncordon {config.host}` on the head lets it")
            return row
        if row:
            devices = row["devices"]
            here = [device["name"] for device in devices if device["state"] in ("running", "cordoned", "draining")]
            if (now := f"{len(here)} of {len(devices)} workers have joined") != told:
                say(told := now)
            if devices and len(here) == len(devices) and row["facts_known"]:
                return row
        time.sleep(_POLL_S)
    stand = told or row.get("state", "the head does not answer")
    raise StartFailed(why=f"its workers did not join within {timeout_s:g} s ({stand}){last_error(home.run / 'logs')}", logs=home.run / "logs")


def _heard_since(row: Mapping[str, Any], began_s_ago: float) -> bool:
    """Whether a host's agent has reported within the last so many seconds."""
    return row["seen_s_ago"] is not None and float(row["seen_s_ago"]) < began_s_ago


def last_error(logs: Path) -> str:
    """Return the last error in the logs of the agent and the head, after a colon; empty where there is none."""
    for name in ("agent.log", "head.log"):
        with contextlib.suppress(OSError):
            lines = (logs / name).read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
            found = [line.partition(" ERROR ")[2].partition(": ")[2] for line in lines if " ERROR " in line]
            if found:  # what it told of its logs is told by whoever tells this
                return f": {found[-1].partition(' Its logs are in ')[0].removeprefix('The cluster did not start: ').rstrip('.')}"
    return ""
