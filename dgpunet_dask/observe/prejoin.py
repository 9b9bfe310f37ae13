"""What can be learned of a head before this machine belongs to its cluster: reachability, clock, which cluster it is, and, by a token, whether
this machine would be let in.

Nothing secret is sent from here, and nothing that the head says is trusted further than for these findings.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.errors import DgpunetError, TokenRefused
from dgpunet_dask.observe.checks import network, versions
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

CONNECT_S: Final = 3.0
#: The answer is a certificate; more than this is none of ours.
_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a head's API said.

    Parameters
    ----------
    offset_s
        How far this clock is ahead of the head's, from its Date header: good to half a second.
    fingerprint
        SHA-256 of the certificate of its authority, in hex; ``None`` where it sent none.
    """

    offset_s: float | None
    fingerprint: str | None


def try_port(host: str, port: int, timeout_s: float = CONNECT_S) -> str | None:
    """Connect and hang up; return ``None``, or why not: ``refused``, ``timeout``, ``no_route``."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return None
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return "timeout" if error.errno == errno.ETIMEDOUT else "no_route"


def ask_head(host: str, port: int, clock: Clock | None = None, timeout_s: float = CONNECT_S) -> Answer:
    """Ask a head's API for its authority's certificate, which it gives to everybody.

    Raises
    ------
    OSError, http.client.HTTPException
        If nothing answers, or something else than a web server.
    """
    clock = SystemClock() if clock is None else clock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing secret is sent; the caller compares the fingerprint
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    with contextlib.closing(connection):
        connection.connect()
        before = clock.wall()
        connection.request("GET", "/v1/ca")
        response = connection.getresponse()
        middle = (before + clock.wall()) / 2
        body = response.read(_MOST_BYTES).decode("utf-8", "replace") if response.status == 200 else ""
        return Answer(offset_s=offset_of(response.getheader("Date"), middle), fingerprint=fingerprint_of(body))


def offset_of(date: str | None, now: float) -> float | None:
    """Return how far `now` is ahead of a Date header, whose seconds are cut off; ``None`` where it is none."""
    try:
        return None if date is None else now - (email.utils.parsedate_to_datetime(date).timestamp() + 0.5)
    except (ValueError, TypeError, OverflowError):
        return None


def fingerprint_of(pem: str) -> str | None:
    """Return the SHA-256 of the first certificate of a PEM text, in hex."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError:
        return None


def check_head(
    addresses: Sequence[tuple[str, int]], ports: Sequence[tuple[int, str]], local: Mapping[str, Any], *, fingerprint: str | None = None,
    clock: Clock | None = None, timeout_s: float = CONNECT_S,
) -> tuple[list[Finding], float | None]:  # fmt: skip
    """Return the findings about a head that is to be joined, and how far this clock is ahead of its.

    Parameters
    ----------
    addresses
        Host and API port, the best first: the first that answers counts.
    ports
        Number and use of each other port of the head that is needed from here.
    local
        The facts of this machine.
    fingerprint
        That of the cluster's authority, if a token told.
    """
    here = Facts(local, Facts(local, "").text("host") or "this host")
    failed: dict[str, str] = {}
    for host, port in addresses:
        why = try_port(host, port, timeout_s)
        if why is not None:
            failed[f"{host}:{port}"] = why
            continue
        rows = [_row(here.host, host, port, "API", None)]
        rows += [_row(here.host, host, number, what, try_port(host, number, timeout_s)) for number, what in ports]
        findings = list(network.reach(tuple(Facts(row, here.host) for row in rows)))
        answer, told = _asked(here, host, port, fingerprint, clock, timeout_s)
        return [*findings, *told], None if answer is None else answer.offset_s
    return list(_unreached(here.host, failed)), None


def _row(src: str, dst: str, port: int, what: str, why: str | None) -> dict[str, Any]:
    return {"src": src, "dst": dst, "port": port, "what": what, "ok": why is None, "why": why}


def _unreached(here: str, failed: Mapping[str, str]) -> Iterator[Finding]:
    told = ", ".join(f"{address} ({why.replace('_', ' ')})" for address, why in failed.items())
    cure = "see that the head runs and its firewall lets its API port through; ask for a token that names an address of a network you share"
    yield Check("head_reach", "network", f"{here} -> head").fault(f"the head does not answer: {told or 'no address'}", cure, tried=dict(failed))


def _asked(
    here: Facts, host: str, port: int, fingerprint: str | None, clock: Clock | None, timeout_s: float
) -> tuple[Answer | None, list[Finding]]:
    check = Check("head_api", "network", f"{here.host} -> {host}")
    try:
        answer = ask_head(host, port, clock, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        cure = f"see what listens on port {port} of {host}: a head answers there under TLS"
        return None, [check.fault(f"what listens on port {port} is no head ({error})", cure, error=str(error))]
    return answer, [_which(check, answer, fingerprint)]


def _which(check: Check, answer: Answer, wanted: str | None) -> Finding:
    if answer.fingerprint is None:
        return check.fault("what answers gives no certificate of an authority: it is no head", "check the address", fingerprint=None)
    if wanted is not None and answer.fingerprint != wanted:
        cure = "check the address, and make a new token on the head; if both are right, something between answers in its place"
        return check.fault("another cluster than the token's answers", cure, fingerprint=answer.fingerprint, token=wanted)
    what = "the head of the token's cluster answers" if wanted is not None else "a head answers"
    return check.ok(what, fingerprint=answer.fingerprint)


def check_admission(answer: Mapping[str, Any], local: Mapping[str, Any]) -> list[Finding]:
    """Return the findings about what a head told for a good token: whether versions differ, and which ports here it reaches.

    Parameters
    ----------
    answer
        ``head``: its name; ``software``: what runs there; ``seen_as``: the address that this machine's requests come from; ``reach``: rows of
        the ports that were tried from there.
    local
        The facts of this machine.
    """
    here = Facts(local, Facts(local, "").text("host") or "this host")
    told = Facts(answer, "head")
    head = told.text("head") or "head"
    good = Check("join_token", "system", here.host).ok("the head takes the token, which is not used up by that")
    skews = versions.against(Facts({"software": told.at("software")}, head), here) if told.at("software") else ()
    return [good, *skews, *_back(head, here, told.rows("reach")), *_translated(head, here, told.text("seen_as"))]


def check_refusal(error: DgpunetError, local: Mapping[str, Any]) -> Finding:
    """Return the finding about a head that would not let this machine in by its token."""
    here = Facts(local, "").text("host") or "this host"
    refused = isinstance(error, TokenRefused)
    cure = f"on the head: `dgpunet-dask token create {here}`, with the name that this machine will have" if refused else "see to that, and ask again"
    return Check("join_token", "system", here).fault(f"the head tells nothing for the token: {error.message}", cure, code=error.code)


def _back(head: str, here: Facts, rows: tuple[Facts, ...]) -> Iterator[Finding]:
    """Tell of the way from the head to here: nothing listens yet, so what is well is that nothing stands between."""
    yield from network.reach(tuple(row for row in rows if row.flag("ok") is False))
    if free := [row.at("port") for row in rows if row.flag("ok")]:
        what = "the head reaches the ports that will be needed here"
        yield Check("port_reach", "network", f"{head} -> {here.host}").ok(what, ports=free)


def _translated(head: str, here: Facts, seen_as: str | None) -> Iterator[Finding]:
    own = here.text("network", "chosen", "address")
    addresses = {address for row in here.rows("network", "interfaces") for address in row.texts("addresses")}
    if own is not None and seen_as is not None and seen_as not in {own, *addresses}:
        cure = "put all hosts into one network, or a VPN between them, and name its address with `join --listen`"
        what = f"{head} sees this machine as {seen_as}, which is none of its addresses: they are translated on the way, and it cannot be reached"
        yield Check("address", "network", f"{head} -> {here.host}").fault(what, cure, seen_as=seen_as, address=own)
