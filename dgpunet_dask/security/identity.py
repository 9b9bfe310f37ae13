"""A host's own certificate: asking for one, installing it, and TLS contexts that follow it.

Files of the folder (mode 0700), each replaced in one step:

=============== =======================================================================================================
``node.pem``    private key and certificate together: two files could be read one old, one new
``ca.crt``      the cluster's authority
``ca.crl``      its revocation list
``request.key`` the key of a request that is not answered yet; each certificate has a key of its own
=============== =======================================================================================================
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dgpunet_dask.errors import CertificateRefused, NoIdentity
from dgpunet_dask.security.authority import SKEW_S, key_pem, serial_text
from dgpunet_dask.security.contexts import Clients, LiveContext, client_context, server_context
from dgpunet_dask.security.files import Signature, locked, private_folder, signature, write_private

NODE: Final = "node.pem"
CA: Final = "ca.crt"
CRL: Final = "ca.crl"
_REQUEST_KEY: Final = "request.key"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What a verified certificate says of its holder."""

    host: str
    role: str
    serial: str


@dataclass(frozen=True, kw_only=True)
class _Facts:
    host: str
    role: str
    serial: str
    starts_s: float
    expires_s: float
    fingerprint: str
    addresses: frozenset[str]
    revoked: frozenset[str]


def peer_of(certificate: Any) -> Peer | None:
    """Return whom a peer's certificate names; ``None`` where it showed none.

    Parameters
    ----------
    certificate
        What `ssl.SSLSocket.getpeercert` gave, or the ``peercert`` of a Dask comm's ``extra_info``.
    """
    if not certificate:
        return None
    names = dict(pair for part in certificate["subject"] for pair in part)
    return Peer(host=names["commonName"], role=names["organizationalUnitName"], serial=certificate["serialNumber"])


def make_request(folder: Path, host: str) -> str:
    """Make a new private key, which waits in ``request.key``, and return a request for a certificate (PEM) that it signs.

    A key that waits already is used again, so that a request whose answer was lost may be repeated.
    """
    private_folder(folder)
    path = folder / _REQUEST_KEY
    with locked(path):
        key = _key_of(path) if path.exists() else None
        if key is None:
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(path, key_pem(key))
    return _request(key, host)


def make_return_request(folder: Path) -> tuple[str, str]:
    """Return the certificate of this host (PEM), expired or not, and a request signed by its own key, which proves whose it is.

    With these `Authority.recognise` takes a host back that slept longer than its certificate lived.

    Raises
    ------
    NoIdentity
        If there is no certificate.
    """
    try:
        text = (folder / NODE).read_bytes()
        certificate = x509.load_pem_x509_certificate(text)
    except (OSError, ValueError) as error:
        raise NoIdentity(folder=folder, why=str(error)) from error
    key = _key_of(folder / NODE)
    if key is None or key.public_key() != certificate.public_key():
        raise NoIdentity(folder=folder, why="its key is not there")
    host = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), _request(key, host)


def _request(key: ec.EllipticCurvePrivateKey, host: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def install(folder: Path, certificate_pem: str, ca_pem: str, crl_pem: str) -> None:
    """Put a certificate into use, with the key that asked for it.

    Raises
    ------
    CertificateRefused
        If the certificate is for another key, or another authority has signed it or the revocation list. Nothing is changed then.
    """
    with locked(folder / _REQUEST_KEY):
        try:
            certificate, ca = (x509.load_pem_x509_certificate(text.encode()) for text in (certificate_pem, ca_pem))
            key = _key_for(folder, certificate)
            certificate.verify_directly_issued_by(ca)
            crl = _checked_list(crl_pem, ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise CertificateRefused(why=f"what the head sent does not fit together ({error or 'wrong signature'})") from error
        write_private(folder / CA, _pem(ca))
        _install_list(folder, crl, ca)
        write_private(folder / NODE, f"{key_pem(key)}{_pem(certificate)}")
        (folder / _REQUEST_KEY).unlink(missing_ok=True)


def install_crl(folder: Path, crl_pem: str) -> bool:
    """Put a revocation list into use; return whether it was newer than the one there.

    Raises
    ------
    CertificateRefused
        If the authority of this folder has not signed it.
    """
    try:
        ca = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        crl = _checked_list(crl_pem, ca)
    except (OSError, ValueError) as error:
        raise CertificateRefused(why=f"the revocation list is not this cluster's ({error})") from error
    return _install_list(folder, crl, ca)


def _pem(part: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Return the text of what was checked: what came may hold more certificates behind the first, and OpenSSL would trust all."""
    return part.public_bytes(serialization.Encoding.PEM).decode()


def _install_list(folder: Path, crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    """Write the list unless the one there is as new: a late answer must not bring back what was revoked since."""
    path = folder / CRL
    with locked(path):
        try:
            newer = _number(crl) > _number(_checked_list(path.read_text(encoding="utf-8"), ca))
        except (OSError, ValueError):
            newer = True
        if newer:
            write_private(path, _pem(crl))
    return newer


def _checked_list(text: str, ca: x509.Certificate) -> x509.CertificateRevocationList:
    crl, key = x509.load_pem_x509_crl(text.encode()), ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not crl.is_signature_valid(key):
        raise ValueError("the revocation list has another signer")
    return crl


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _key_of(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _key_for(folder: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    """Return the key of this certificate: that of the open request, or the one in use (an answer that came twice)."""
    for name in (_REQUEST_KEY, NODE):
        key = _key_of(folder / name)
        if key is not None and key.public_key() == certificate.public_key():
            return key
    raise ValueError("the certificate is for another key")


class _Live:
    """The contexts of one folder in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.read: tuple[Signature | None, ...] = ()
        self.facts: _Facts | None = None
        self.contexts: dict[Clients | None, LiveContext] = {}
        self.complained: tuple[Signature | None, ...] = ()

    def signatures(self) -> tuple[Signature | None, ...]:
        return tuple(signature(self.folder / name) for name in (NODE, CA, CRL))

    def load(self) -> bool:
        """Bring facts and contexts up to the files; return whether anything changed. All or nothing."""
        with self.lock:
            found = self.signatures()
            if found == self.read:
                return False
            facts = _facts(self.folder)
            fresh = {clients: self.build(clients) for clients in self.contexts}
            if self.signatures() != found:
                raise NoIdentity(folder=self.folder, why="it is being replaced")
            for clients, context in fresh.items():
                self.contexts[clients].current = context
            self.facts, self.read = facts, found
            return True

    def context(self, clients: Clients | None) -> LiveContext:
        """Return the context for servers with such clients, or (``None``) for clients."""
        self.load_once()
        with self.lock:
            if clients not in self.contexts:
                self.contexts[clients] = LiveContext.over(self.build(clients))
                if self.signatures() != self.read:
                    self.read = ()  # this one may be newer than the others: the next look reads all of them
            return self.contexts[clients]

    def load_once(self) -> _Facts:
        if self.facts is None:
            self.load()
        assert self.facts is not None
        return self.facts

    def build(self, clients: Clients | None) -> ssl.SSLContext:
        pem, ca, crl = (str(self.folder / name) for name in (NODE, CA, CRL))
        try:
            return client_context(pem, ca, crl) if clients is None else server_context(pem, ca, crl, clients)
        except (OSError, ValueError) as error:
            raise NoIdentity(folder=self.folder, why=str(error)) from error


_LIVE: dict[Path, _Live] = {}
_LIVE_LOCK: Final = threading.Lock()


def _facts(folder: Path) -> _Facts:
    try:
        certificate = x509.load_pem_x509_certificate((folder / NODE).read_bytes())
        ca = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        certificate.verify_directly_issued_by(ca)
        crl = _checked_list((folder / CRL).read_text(encoding="utf-8"), ca)
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise NoIdentity(folder=folder, why=str(error) or "another authority signed it") from error
    name = {attribute.oid: str(attribute.value) for attribute in certificate.subject}
    return _Facts(
        host=name[NameOID.COMMON_NAME], role=name[NameOID.ORGANIZATIONAL_UNIT_NAME], serial=serial_text(certificate.serial_number),
        starts_s=certificate.not_valid_before_utc.timestamp(), expires_s=certificate.not_valid_after_utc.timestamp(),
        fingerprint=ca.fingerprint(hashes.SHA256()).hex(), addresses=_addresses(certificate),
        revoked=frozenset(serial_text(entry.serial_number) for entry in crl),
    )  # fmt: skip


def _addresses(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(address) for address in names.get_values_for_type(x509.IPAddress))


class Identity:
    """The certificate in `folder`, and contexts under it. Making the value reads nothing.

    All identities of one folder in a process share their contexts, and `refresh` of any of them brings all up to the files.
    Every property and context raises `NoIdentity` while the folder holds no whole certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _LIVE_LOCK:
            self._live = _LIVE.setdefault(folder.absolute(), _Live(folder.absolute()))

    @property
    def host(self) -> str:
        """The host that the certificate names."""
        return self._live.load_once().host

    @property
    def role(self) -> str:
        """``head``, ``node`` or ``client``."""
        return self._live.load_once().role

    @property
    def serial(self) -> str:
        """Its serial number, as `ssl.SSLSocket.getpeercert` writes it."""
        return self._live.load_once().serial

    @property
    def expires_s(self) -> float:
        """Its end, in seconds since 1970."""
        return self._live.load_once().expires_s

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate: which cluster this is."""
        return self._live.load_once().fingerprint

    @property
    def addresses(self) -> frozenset[str]:
        """The IP addresses that it names, loopback among them."""
        return self._live.load_once().addresses

    @property
    def revoked(self) -> frozenset[str]:
        """The serial numbers on the revocation list."""
        return self._live.load_once().revoked

    def due(self, now: float) -> bool:
        """Tell whether half of its life is over, so that it should be renewed."""
        facts = self._live.load_once()
        return now >= (facts.starts_s + SKEW_S + facts.expires_s) / 2

    def server_context(self, clients: Clients) -> ssl.SSLContext:
        """Return the context of listeners whose clients must (or may) show a certificate of the cluster; one shown is checked."""
        return self._live.context(clients)

    def client_context(self) -> ssl.SSLContext:
        """Return the context for connecting: shows the certificate, and checks the server's with its name or address."""
        return self._live.context(None)

    def refresh(self) -> bool:
        """Bring the contexts up to the files if these changed; return whether they did.

        While the files do not fit together what was read before stays in force; that is logged once for each state of the files.
        """
        try:
            return self._live.load()
        except NoIdentity as error:
            found = self._live.signatures()
            if found != self._live.complained:
                log.warning("the old certificate stays in use: %s", error)
                self._live.complained = found
            return False


def watch(identity: Identity, stop: threading.Event, every_s: float = 5.0) -> threading.Thread:
    """Start a thread that refreshes `identity` until `stop`, and return it."""

    def look() -> None:
        while not stop.wait(every_s):
            try:
                identity.refresh()
            except Exception:
                log.exception("the certificate could not be looked at")

    thread = threading.Thread(target=look, name="certificates", daemon=True)
    thread.start()
    return thread
