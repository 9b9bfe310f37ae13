from __future__ import annotations

import json
import ssl
import stat
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue, CertificateRefused, NewerFormat, NoIdentity, UnreadablePath, UsageError
from dgpunet_dask.security.authority import RETURN_S, Authority, key_pem, request_digest, requested_key
from dgpunet_dask.security.identity import make_request, make_return_request
from tests.unit.security.hosts import Cluster, Connection, refused

NOW = time.time()
DAY = 86_400.0


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def csr(key=None, *extensions, name="evil") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def issue(cluster, text, host="xps", role="node", addresses=("10.1.0.7",), now=NOW, **more):
    return cluster.authority.issue(text, host=host, addresses=addresses, role=role, now=now, **more)


def parsed(issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem.encode())


def test_a_request_gives_its_key_and_nothing_else(cluster):
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = csr(
        key,
        x509.BasicConstraints(ca=True, path_length=3),
        x509.SubjectAlternativeName([x509.DNSName("head"), x509.DNSName("*")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.KeyUsage(*[True] * 7, encipher_only=False, decipher_only=False),
        name="head",
    )
    made = parsed(issue(cluster, greedy))
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "OU=node,CN=xps"
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["xps", "localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.0.7", "127.0.0.1", "::1"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    assert set(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH,
    }  # fmt: skip


def test_a_certificate_lives_a_day_and_a_little_before_it_is_made(cluster):
    issued = issue(cluster, csr())
    made = parsed(issued)
    assert made.not_valid_after_utc.timestamp() == issued.expires_s == int(NOW) + DAY
    assert made.not_valid_before_utc.timestamp() == int(NOW) - 300
    assert int(issued.serial, 16) == made.serial_number


def test_no_certificate_outlives_its_authority(cluster):
    end = x509.load_pem_x509_certificate(cluster.authority.certificate_pem.encode()).not_valid_after_utc
    assert issue(cluster, csr(), now=end.timestamp() - 60).expires_s == end.timestamp()


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["P-384", "RSA"]
)
def test_keys_of_another_kind_are_refused(cluster, key):
    with pytest.raises(CertificateRefused, match="P-256"):
        issue(cluster, csr(key))


def test_a_request_that_its_key_has_not_signed_is_refused(cluster):
    mine, other = (x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER) for _ in range(2))
    point = mine.index(b"\x03\x42\x00\x04") + 4
    forged = mine[:point] + other[point : point + 64] + mine[point + 64 :]
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(CertificateRefused, match="not signed by its own key"):
        requested_key(pem)


@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1"))))
def test_whatever_comes_as_a_request_is_refused_in_words(text):
    for shape in (text, f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(CertificateRefused):
            requested_key(shape)


def test_an_endless_request_is_refused_unread():
    with pytest.raises(CertificateRefused, match="too long"):
        requested_key(csr() + " " * 100_000)


@pytest.mark.parametrize("host", ["", "-x", "a b", "a/b", "x" * 65, "*.home", "a..b", "10.1.0.7", "naïve", "x\n", "a\0b"])
def test_names_that_no_host_has_are_refused(cluster, host):
    with pytest.raises(BadValue, match="host name"):
        issue(cluster, csr(), host=host)


@pytest.mark.parametrize("address", ["", "xps", "0.0.0.0", "::", "224.0.0.1", "10.1.0.0/24", "10.1.0.7:80"])
def test_addresses_that_no_machine_has_are_refused(cluster, address):
    with pytest.raises(BadValue, match="address of xps"):
        issue(cluster, csr(), addresses=[address])


def test_the_head_s_addresses_are_certified_for_no_other_host(cluster, caplog):
    issue(cluster, csr(), host="m18", role="head", addresses=["10.1.0.1", "172.17.0.1"])
    issued = issue(cluster, csr(), addresses=["10.1.0.1", "10.1.0.7", "172.17.0.1"])
    assert issued.left_out == ("10.1.0.1", "172.17.0.1")
    names = parsed(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.0.7", "127.0.0.1", "::1"]
    assert "10.1.0.1" in caplog.text
    again = issue(cluster, csr(), host="m18", role="head", addresses=["10.1.0.1", "172.17.0.1"])
    assert again.left_out == ()


def test_a_client_s_certificate_names_no_machine_and_cannot_serve(cluster):
    made = parsed(issue(cluster, csr(), host="ann", role="client"))
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    ann, xps = cluster.identity("ann", role="client"), cluster.identity("xps")
    assert "purpose" in refused(ann.server_context("required"), xps.client_context())
    assert Connection(xps.server_context("required"), ann.client_context()).server.getpeercert()


def test_a_node_cannot_sign_certificates(cluster, tmp_path):
    xps = cluster.identity("xps")
    pem = (cluster.folder("xps") / "node.pem").read_bytes()
    key, mine = serialization.load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    forged_key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder().issuer_name(mine.subject)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "head")]))
        .public_key(forged_key.public_key()).serial_number(5).not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(forged_key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(mine.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    chain = tmp_path / "forged.pem"
    chain.write_text(key_pem(forged_key) + "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in (forged, mine)))
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(chain)
    assert refused(impostor, xps.client_context(), "localhost")
    assert "localhost" in str(forged.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def test_revocation_is_kept_and_listed(cluster):
    first, second, other = (issue(cluster, csr(), host=host) for host in ("xps", "xps", "zen"))
    before = cluster.authority.crl_pem(NOW)
    assert cluster.authority.revoke_host("xps", NOW) == 2
    crl = x509.load_pem_x509_crl(cluster.authority.crl_pem(NOW).encode())
    assert {entry.serial_number for entry in crl} == {int(i.serial, 16) for i in (first, second)}
    assert crl.next_update_utc - crl.last_update_utc > timedelta(days=3000)
    assert cluster.authority.crl_pem(NOW) != before
    assert set(cluster.authority.live(NOW)) == {other.serial}
    assert cluster.authority.revoke(other.serial, NOW)
    assert not cluster.authority.revoke(other.serial, NOW)
    assert not cluster.authority.revoke("AB", NOW)
    assert cluster.authority.revoke_host("xps", NOW) == 0


def test_the_list_changes_only_with_what_it_says_and_its_number_grows(cluster):
    def number():
        crl = x509.load_pem_x509_crl(cluster.authority.crl_pem(NOW).encode())
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    first = cluster.authority.crl_pem(NOW)
    issue(cluster, csr())
    assert cluster.authority.crl_pem(NOW + 5 * DAY) == first
    before = number()
    cluster.authority.revoke_host("xps", NOW)
    assert number() > before


def test_a_removed_host_is_denied_until_it_is_invited(cluster):
    issue(cluster, csr())
    cluster.authority.revoke_host("xps", NOW)
    assert cluster.authority.is_denied("xps")
    with pytest.raises(CertificateRefused, match="removed"):
        issue(cluster, csr())
    cluster.authority.allow("xps")
    assert not cluster.authority.is_denied("xps")
    assert issue(cluster, csr()).serial in cluster.authority.live(NOW)


def test_what_is_long_over_is_forgotten(cluster):
    issue(cluster, csr())
    cluster.authority.revoke_host("xps", NOW)
    issue(cluster, csr(), host="zen")
    late = NOW + RETURN_S + 3 * DAY
    kept = issue(cluster, csr(), host="zen", now=late)
    record = json.loads((cluster.authority.folder / "authority.json").read_text())
    assert (list(record["issued"]), list(record["revoked"]), record["denied"]) == ([kept.serial], [], ["xps"])


def test_two_that_share_a_folder_see_each_other_s_work(cluster):
    other = Authority.open(cluster.authority.folder)
    issue(cluster, csr())
    assert other.revoke_host("xps", NOW) == 1
    assert cluster.authority.is_denied("xps")
    assert cluster.authority.crl_pem(NOW) == other.crl_pem(NOW)
    assert other.fingerprint == cluster.authority.fingerprint


def test_a_list_that_was_not_written_before_a_crash_is_written_later(cluster):
    path = cluster.authority.folder / "ca.crl"
    old = path.read_text()
    issue(cluster, csr())
    cluster.authority.revoke_host("xps", NOW)
    path.write_text(old)
    assert Authority.open(cluster.authority.folder).crl_pem(NOW) == path.read_text() != old


def test_the_key_and_the_record_are_the_owner_s_alone(cluster):
    issue(cluster, csr())
    folder = cluster.authority.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert "PRIVATE" not in (folder / "authority.json").read_text()


def test_an_authority_is_not_replaced(cluster):
    before = cluster.authority.fingerprint
    with pytest.raises(UsageError, match="holds the authority"):
        Authority.create(cluster.authority.folder, "other", NOW)
    assert Authority.open(cluster.authority.folder).fingerprint == before


def test_one_that_was_never_finished_is_begun_anew(cluster):
    (cluster.authority.folder / "ca.crt").unlink()
    with pytest.raises(NoIdentity):
        Authority.open(cluster.authority.folder)
    made = Authority.create(cluster.authority.folder, "home", NOW)
    assert made.live(NOW) == {}


def test_a_key_of_another_authority_is_noticed(cluster, tmp_path):
    other = Cluster(tmp_path, "other")
    (cluster.authority.folder / "ca.key").write_bytes((other.authority.folder / "ca.key").read_bytes())
    with pytest.raises(NoIdentity, match="do not belong together"):
        Authority.open(cluster.authority.folder)


def test_without_its_record_it_is_not_opened(cluster):
    (cluster.authority.folder / "authority.json").unlink()
    with pytest.raises(NoIdentity, match="who was removed"):
        Authority.open(cluster.authority.folder)


@pytest.mark.parametrize(
    ("text", "error"), [('{"version": 2}', NewerFormat), ("{", UnreadablePath), ("[]", UnreadablePath), ("{}", UnreadablePath)]
)
def test_a_record_that_cannot_be_read_lets_nobody_in(cluster, text, error):
    (cluster.authority.folder / "authority.json").write_text(text)
    with pytest.raises(error):
        issue(cluster, csr())
    with pytest.raises(error):
        cluster.authority.is_denied("xps")
    assert (cluster.authority.folder / "authority.json").read_text() == text


def test_a_request_is_known_by_its_key(tmp_path):
    first, again = make_request(tmp_path / "a", "xps"), make_request(tmp_path / "a", "xps")
    assert first != again
    assert request_digest(first) == request_digest(again) != request_digest(make_request(tmp_path / "b", "xps"))


class TestReturn:
    """A host that slept longer than its certificate lived."""

    def test_it_is_recognised_by_its_old_key(self, cluster):
        cluster.enrol("xps", ago_s=10 * DAY)
        old, request = make_return_request(cluster.folder("xps"))
        cluster.authority.recognise(old, request, host="xps", now=NOW)
        assert issue(cluster, request).serial in cluster.authority.live(NOW)

    def test_a_stranger_with_the_certificate_alone_is_not(self, cluster):
        cluster.enrol("xps", ago_s=10 * DAY)
        old, _ = make_return_request(cluster.folder("xps"))
        with pytest.raises(CertificateRefused, match="key is missing"):
            cluster.authority.recognise(old, csr(), host="xps", now=NOW)

    def test_neither_is_another_host(self, cluster):
        cluster.enrol("xps", ago_s=10 * DAY)
        with pytest.raises(CertificateRefused, match="not that of zen"):
            cluster.authority.recognise(*make_return_request(cluster.folder("xps")), host="zen", now=NOW)

    def test_nor_one_of_another_cluster(self, cluster, tmp_path):
        other = Cluster(tmp_path, "other")
        other.enrol("xps", ago_s=10 * DAY)
        with pytest.raises(CertificateRefused, match="has not signed it"):
            cluster.authority.recognise(*make_return_request(other.folder("xps")), host="xps", now=NOW)

    def test_nor_a_user_who_would_come_back_as_a_host(self, cluster):
        cluster.enrol("ann", role="client", ago_s=10 * DAY)
        with pytest.raises(CertificateRefused, match="not that of a host"):
            cluster.authority.recognise(*make_return_request(cluster.folder("ann")), host="ann", now=NOW)

    def test_nor_after_a_month(self, cluster):
        cluster.enrol("xps", ago_s=40 * DAY)
        with pytest.raises(CertificateRefused, match="30 days"):
            cluster.authority.recognise(*make_return_request(cluster.folder("xps")), host="xps", now=NOW)

    def test_nor_one_that_was_removed_even_if_it_was_invited_anew(self, cluster):
        cluster.enrol("xps", ago_s=10 * DAY)
        papers = make_return_request(cluster.folder("xps"))
        assert cluster.authority.revoke_host("xps", NOW) == 0
        with pytest.raises(CertificateRefused, match="removed"):
            cluster.authority.recognise(*papers, host="xps", now=NOW)
        cluster.authority.allow("xps")
        with pytest.raises(CertificateRefused, match="removed"):
            cluster.authority.recognise(*papers, host="xps", now=NOW)

    @pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
    def test_nor_anything_else(self, cluster, text):
        with pytest.raises(CertificateRefused):
            cluster.authority.recognise(text, csr(), host="xps", now=NOW)
