"""The cluster's certificate authority: signs the certificates of its hosts, revokes them, keeps what it signed.

A request gives its public key and nothing else: names, addresses, role and rights are the head's decision. Certificates live a day
and are renewed by their hosts, so a host that is not renewed is out within a day; the revocation list puts it out at once.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dgpunet_dask.errors import BadValue, CertificateRefused, NoIdentity, UsageError
from dgpunet_dask.security.files import PrivateJson, locked, private_folder, write_private
from dgpunet_dask.security.names import checked_host

Role = Literal["head", "node", "client"]
LIFE_S: Final = 86_400.0
#: Certificates are valid a little before they are made: clocks of machines differ.
SKEW_S: Final = 300.0
#: How long after its end a certificate still shows that a host belongs to the cluster.
RETURN_S: Final = 30 * 86_400.0
_CA_LIFE: Final = timedelta(days=3650)
_LOOPBACK: Final = ("127.0.0.1", "::1")
_MOST_REQUEST: Final = 8192
_USAGES: Final = {
    "head": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "node": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    "client": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}
log = logging.getLogger(__name__)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class Issued:
    """One certificate that was signed.

    Parameters
    ----------
    certificate_pem, serial, expires_s
        The certificate; its serial number in hexadecimal, as `ssl.SSLSocket.getpeercert` writes it; its end in seconds since 1970.
    left_out
        Addresses that were asked for and are the head's own: no other host is certified for them.
    """

    certificate_pem: str
    serial: str
    expires_s: float
    left_out: tuple[str, ...] = ()


class Authority:
    """The authority whose key lies in `folder`; `create` and `open` make it.

    ``ca.key`` signs certificates and revocation lists, nothing else; ``authority.json`` holds what is issued, revoked and denied,
    and the list in force; ``ca.crt`` and ``ca.crl`` are what every host gets. Several processes may use one folder.
    """

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.folder = folder
        self._key = key
        self._certificate = certificate
        self._record = PrivateJson(folder / "authority.json")

    @classmethod
    def create(cls, folder: Path, name: str, now: float) -> Authority:
        """Make a new authority for the cluster `name`, with an empty revocation list.

        Raises
        ------
        UsageError
            If the folder holds one already: a new key would shut out every host of the cluster.
        """
        private_folder(folder)
        with locked(folder / "ca.crt"):
            if (folder / "ca.crt").exists():
                raise UsageError(detail=f"{folder} holds the authority of a cluster already. Use it, or choose another folder.")
            key = ec.generate_private_key(ec.SECP256R1())
            authority = cls(folder, key, _self_signed(key, name, now))
            write_private(folder / "ca.key", key_pem(key))
            with authority._record.change() as record:
                record.clear()
                authority._sign_list(record, now)
            authority._write_list()
            write_private(folder / "ca.crt", authority.certificate_pem)  # last: with it the authority is whole
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority of `folder`.

        Raises
        ------
        NoIdentity
            If there is none, or not all of it.
        """
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError) as error:
            raise NoIdentity(folder=folder, why=f"no authority: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise NoIdentity(folder=folder, why="ca.key and ca.crt do not belong together")
        if not (folder / "authority.json").is_file():
            raise NoIdentity(folder=folder, why="authority.json, which says who was removed, is missing")
        return cls(folder, key, certificate)

    @property
    def certificate_pem(self) -> str:
        """The authority's own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate (DER), 64 hexadecimal digits: what tokens and keys pin."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def issue(
        self, csr_pem: str, *, host: str, addresses: Sequence[str], role: Role, now: float, life_s: float = LIFE_S
    ) -> Issued:
        """Sign a certificate for the public key of a request; all else that the request asks for is ignored.

        Parameters
        ----------
        csr_pem
            A PKCS#10 request with a P-256 key, signed by it.
        host, addresses, role
            What the certificate says: common name, IP addresses (loopback is added), organisational unit. A ``client`` has neither
            names nor addresses and cannot serve.
        now, life_s
            Seconds since 1970; seconds that it is valid.

        Raises
        ------
        CertificateRefused
            If the request is malformed or its key of another kind, or if the host was removed from the cluster.
        BadValue
            If the host or an address is none.
        """
        key = requested_key(csr_pem)
        wanted = _checked_addresses(checked_host(host), addresses)
        with self._record.change() as record:
            if host in record["denied"]:
                raise CertificateRefused(why=f"{host} was removed from the cluster; invite it with `dgpunet-dask token create`")
            _forget_expired(record, now)
            own = _addresses_of_heads(record) if role != "head" else frozenset()
            kept = [address for address in wanted if str(address) not in own]
            certificate = self._sign(key, host, kept, role, now, life_s)
            serial = serial_text(certificate.serial_number)
            expires = certificate.not_valid_after_utc.timestamp()
            record["issued"][serial] = {"host": host, "role": role, "expires_s": expires, "addresses": [str(a) for a in kept]}
        left_out = tuple(str(address) for address in wanted if str(address) in own)
        if left_out:
            log.warning("the certificate of %s leaves out %s: the head has these addresses", host, ", ".join(left_out))
        text = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(certificate_pem=text, serial=serial, expires_s=expires, left_out=left_out)

    def recognise(self, certificate_pem: str, csr_pem: str, *, host: str, now: float) -> None:
        """See to it that a host whose certificate has expired is the one that it was made for, and may come back.

        Parameters
        ----------
        certificate_pem, csr_pem
            What `identity.make_return_request` gives: the certificate, and a request that its own key signed.

        Raises
        ------
        CertificateRefused
            If the certificate is another's or no host's, revoked, or over for more than `RETURN_S`; if the request is not signed by
            its key.
        """
        key = requested_key(csr_pem)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            certificate.verify_directly_issued_by(self._certificate)
        except Exception as error:  # hostile, as a request may be
            raise CertificateRefused(why="this cluster has not signed it") from error
        names, roles = (
            [str(a.value) for a in certificate.subject.get_attributes_for_oid(oid)]
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)
        )
        record = self._record.read()
        if names != [host] or key != certificate.public_key():
            raise CertificateRefused(why=f"it is not that of {host}, or its key is missing")
        if roles not in (["head"], ["node"]):
            raise CertificateRefused(why="it is not that of a host")
        if serial_text(certificate.serial_number) in record["revoked"] or host in record["denied"]:
            raise CertificateRefused(why=f"{host} was removed from the cluster")
        if now > certificate.not_valid_after_utc.timestamp() + RETURN_S:
            raise CertificateRefused(why=f"it is over for more than {RETURN_S / LIFE_S:.0f} days; join anew with a token")

    def revoke_host(self, host: str, now: float) -> int:
        """Revoke every certificate of a host and deny it new ones; return how many were in force."""
        with self._record.change() as record:
            if host not in record["denied"]:
                record["denied"] = sorted([*record["denied"], host])
            rows = {s: row for s, row in record["issued"].items() if row["host"] == host and s not in record["revoked"]}
            self._revoke(record, list(rows), now)  # expired ones as well, which it could come back with
        self._write_list()
        return sum(row["expires_s"] > now for row in rows.values())

    def revoke(self, serial: str, now: float) -> bool:
        """Revoke one certificate; return whether it was known and in force."""
        with self._record.change() as record:
            fresh = [serial] if serial in record["issued"] and serial not in record["revoked"] else []
            self._revoke(record, fresh, now)
        self._write_list()
        return bool(fresh)

    def is_denied(self, host: str) -> bool:
        """Tell whether the host was removed and not invited since."""
        return host in self._record.read().get("denied", ())

    def allow(self, host: str) -> None:
        """Let a removed host be certified again; what was revoked stays revoked."""
        with self._record.change() as record:
            record["denied"] = [name for name in record["denied"] if name != host]

    def live(self, now: float) -> dict[str, dict[str, Any]]:
        """Return host, role, addresses and end (seconds since 1970) of each certificate in force, by serial."""
        record = self._record.read()
        return {s: row for s, row in record["issued"].items() if s not in record["revoked"] and row["expires_s"] > now}

    def crl_pem(self, now: float) -> str:
        """Return the revocation list in force; it is signed anew only when something changes."""
        self._write_list()
        return str(self._record.read()["crl"])

    def _revoke(self, record: dict[str, Any], serials: Sequence[str], now: float) -> None:
        if not serials:
            return
        _forget_expired(record, now)
        record["revoked"].update({s: {"at_s": now, **record["issued"][s]} for s in serials if s in record["issued"]})
        self._sign_list(record, now)

    def _sign_list(self, record: dict[str, Any], now: float) -> None:
        for name, empty in (("issued", dict), ("revoked", dict), ("denied", list)):
            record.setdefault(name, empty())
        record["crl_number"] = record.get("crl_number", 0) + 1
        record["crl"] = _signed_list(self._key, self._certificate, record, now)

    def _write_list(self) -> None:
        """Bring ``ca.crl`` up to ``authority.json``, which alone decides what is revoked."""
        with locked(self.folder / "ca.crl"):
            path, text = self.folder / "ca.crl", str(self._record.read()["crl"])
            if not path.exists() or path.read_text(encoding="ascii") != text:
                write_private(path, text)

    def _sign(
        self, key: ec.EllipticCurvePublicKey, host: str, addresses: Sequence[_Address], role: Role, now: float, life_s: float
    ) -> x509.Certificate:
        start = datetime.fromtimestamp(now - SKEW_S, UTC)
        end = min(datetime.fromtimestamp(now + life_s, UTC), self._certificate.not_valid_after_utc)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, host), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)]
        builder = _builder(self._certificate.subject, key, start, max(end, start), self._key.public_key())
        builder = builder.subject_name(x509.Name(subject))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(_USAGES[role]), critical=False)
        if role != "client":
            builder = builder.add_extension(_names(host, addresses), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request that its own key has signed.

    Raises
    ------
    CertificateRefused
        If it is no such request, or the key is not on P-256.
    """
    try:
        if len(csr_pem) > _MOST_REQUEST:
            raise ValueError("too long")
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except Exception as error:  # a hostile request may fail in any way
        raise CertificateRefused(why=f"the request is malformed ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRefused(why="the request has a key of another kind than P-256")
    if not signed:
        raise CertificateRefused(why="the request is not signed by its own key")
    return key


def request_digest(csr_pem: str) -> str:
    """Return the SHA-256 (hexadecimal) of a request's public key: the same for every request that one key signs."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(requested_key(csr_pem).public_bytes(encoding, form)).hexdigest()


def serial_text(serial: int) -> str:
    """Return a serial number as `ssl.SSLSocket.getpeercert` writes it: upper-case hexadecimal, whole bytes."""
    text = f"{serial:X}"
    return text if len(text) % 2 == 0 else f"0{text}"


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PEM, not encrypted: the file's mode guards it."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: float) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dgpunet-dask {name}"[:64])])
    start = datetime.fromtimestamp(now - SKEW_S, UTC)
    builder = _builder(subject, key.public_key(), start, start + _CA_LIFE, key.public_key()).subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_key_usage(signs=True), critical=True).sign(key, hashes.SHA256())


def _builder(
    issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Return what every certificate has, the key identifiers that strict verification asks for among it."""
    builder = x509.CertificateBuilder().issuer_name(issuer).public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(end)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _names(host: str, addresses: Sequence[_Address]) -> x509.SubjectAlternativeName:
    names = [x509.DNSName(name) for name in dict.fromkeys((host, "localhost"))]
    return x509.SubjectAlternativeName([*names, *(x509.IPAddress(address) for address in addresses)])


def _checked_addresses(host: str, addresses: Sequence[str]) -> list[_Address]:
    found = []
    for text in (*addresses, *_LOOPBACK):
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            raise BadValue(what=f"address of {host}", value=text, why="write an IPv4 or IPv6 address") from None
        if address.is_unspecified or address.is_multicast:
            raise BadValue(what=f"address of {host}", value=text, why="it is not the address of one machine")
        found.append(address)
    return list(dict.fromkeys(found))


def _addresses_of_heads(record: dict[str, Any]) -> frozenset[str]:
    """Return the addresses that no other host may be certified for, or it could stand in for the head."""
    rows = [row for serial, row in record["issued"].items() if row["role"] == "head" and serial not in record["revoked"]]
    return frozenset(address for row in rows for address in row["addresses"]) - set(_LOOPBACK)


def _forget_expired(record: dict[str, Any], now: float) -> None:
    """Drop what neither lives nor can be recognised any more; a day longer, for clocks that are late."""
    for name in ("issued", "revoked"):
        record[name] = {s: row for s, row in record[name].items() if row["expires_s"] > now - RETURN_S - LIFE_S}


def _signed_list(key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate, record: dict[str, Any], now: float) -> str:
    start = datetime.fromtimestamp(now - SKEW_S, UTC)
    # The next update is promised for a far day: a list that expires would stop every connection of a cluster whose head is away,
    # while certificates end after a day anyway.
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).last_update(start).next_update(start + _CA_LIFE)
    builder = builder.add_extension(x509.CRLNumber(record["crl_number"]), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    for serial, row in record["revoked"].items():
        if row["expires_s"] < now - LIFE_S:
            continue  # it is refused without the list
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
        builder = builder.add_revoked_certificate(entry.revocation_date(datetime.fromtimestamp(row["at_s"], UTC)).build())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
