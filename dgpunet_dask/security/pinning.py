"""Trust in a head from nothing but the fingerprint of its authority, as tokens and keys carry it."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from typing import Final

from dgpunet_dask.errors import CertificateRefused
from dgpunet_dask.security.contexts import bare_context

PATH: Final = "/v1/ca"
_MOST: Final = 64 * 1024


def pinned_context(fingerprint: str, address: tuple[str, int], timeout_s: float) -> tuple[ssl.SSLContext, str]:
    """Ask the head at `address` for its authority, check it against `fingerprint`, and return a context that trusts it alone.

    Parameters
    ----------
    fingerprint
        SHA-256 of the authority's certificate (DER), 64 hexadecimal digits.
    address
        Host and port of the head's API, whose ``/v1/ca`` answers with the certificate as PEM.
    timeout_s
        For each of connecting and reading.

    Returns
    -------
    tuple
        The context, which also checks names and addresses, and the authority's certificate (PEM).

    Raises
    ------
    CertificateRefused
        If another authority answers. Nothing but a public path was asked for by then.
    OSError
        If nobody answers, or not with a certificate.
    """
    text = _fetched(address, timeout_s)
    try:
        first = text.partition(ssl.PEM_FOOTER)[0]
        der = ssl.PEM_cert_to_DER_cert(f"{first}{ssl.PEM_FOOTER}")
    except ValueError as error:
        raise ConnectionError(f"{address[0]}:{address[1]} answers, but not with a certificate") from error
    found = hashlib.sha256(der).hexdigest()
    if not hmac.compare_digest(found, fingerprint.lower()):
        where = f"{address[0]}:{address[1]}"
        why = f"{where} shows the authority {found}, and {fingerprint} was expected; ask the owner for a new token or key"
        raise CertificateRefused(why=why)
    pem = ssl.DER_cert_to_PEM_cert(der)  # the bytes that were checked and no more: other certificates may stand behind the first
    return trusting(pem), pem


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Return a context for clients without a certificate of their own that trusts this authority alone."""
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    return context


def _fetched(address: tuple[str, int], timeout_s: float) -> str:
    blind = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE  # what comes is compared with the fingerprint; nothing secret goes out
    connection = http.client.HTTPSConnection(*address, timeout=timeout_s, context=blind)
    try:
        connection.request("GET", PATH)
        answer = connection.getresponse()
        body = answer.read(_MOST + 1)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{address[0]}:{address[1]} does not speak HTTP ({error!r})") from error
    finally:
        connection.close()
    if answer.status != http.client.OK or len(body) > _MOST:
        raise ConnectionError(f"{address[0]}:{address[1]} answers {PATH} with status {answer.status}")
    return body.decode("ascii", "replace").strip() + "\n"
