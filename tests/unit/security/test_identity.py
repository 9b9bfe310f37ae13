from __future__ import annotations

import logging
import shutil
import ssl
import stat
import threading
import time

import pytest
from cryptography import x509

from dgpunet_dask.errors import CertificateRefused, NoIdentity
from dgpunet_dask.security import contexts
from dgpunet_dask.security.authority import SKEW_S
from dgpunet_dask.security.files import locked
from dgpunet_dask.security.identity import Identity, install, install_crl, make_request, make_return_request, peer_of, watch
from tests.helpers import until
from tests.unit.security.hosts import Cluster, Connection, refused

NOW = time.time()
DAY = 86_400.0


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.fixture
def pair(cluster):
    return cluster.identity("xps", addresses=("10.1.0.7",)), cluster.identity("zen")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def papers(cluster, host):
    """Return a certificate for the open request of a host, the authority and its list."""
    issued = cluster.authority.issue(make_request(cluster.folder(host), host), host=host, addresses=(), role="node", now=NOW)
    return issued.certificate_pem, cluster.authority.certificate_pem, cluster.authority.crl_pem(NOW)


def test_it_says_what_its_certificate_says(cluster):
    issued = cluster.enrol("xps")
    xps = Identity(cluster.folder("xps"))
    assert (xps.host, xps.role, xps.serial, xps.expires_s) == ("xps", "node", issued.serial, issued.expires_s)
    assert xps.fingerprint == cluster.authority.fingerprint


def test_it_is_due_once_half_of_its_life_is_over(cluster):
    xps = cluster.identity("xps")
    assert not xps.due(xps.expires_s - 0.51 * DAY)
    assert xps.due(xps.expires_s - 0.49 * DAY)


def test_an_empty_folder_says_how_to_join(tmp_path):
    nobody = Identity(tmp_path / "nowhere")
    for ask in (lambda: nobody.host, nobody.client_context, lambda: nobody.server_context("required"), lambda: nobody.due(NOW)):
        with pytest.raises(NoIdentity, match="join TOKEN"):
            ask()
    assert not nobody.refresh()


def test_it_may_be_made_before_the_host_has_joined(cluster):
    early = Identity(cluster.folder("xps"))
    cluster.enrol("xps")
    assert early.host == "xps"


def test_each_certificate_has_a_key_of_its_own_and_a_request_may_be_repeated(cluster):
    folder = cluster.folder("xps")
    make_request(folder, "xps")
    waiting = (folder / "request.key").read_bytes()
    make_request(folder, "xps")
    assert (folder / "request.key").read_bytes() == waiting
    cluster.enrol("xps")
    first = (folder / "node.pem").read_bytes()
    assert first.startswith(waiting)
    assert not (folder / "request.key").exists()
    cluster.enrol("xps")
    assert not (folder / "node.pem").read_bytes().startswith(waiting)


def test_a_damaged_request_key_is_made_anew(cluster):
    folder = cluster.folder("xps")
    make_request(folder, "xps")
    (folder / "request.key").write_text("-----BEGIN")
    assert cluster.identity("xps").host == "xps"


def test_all_its_files_are_the_owner_s_alone(cluster):
    cluster.enrol("xps")
    folder = cluster.folder("xps")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


class TestInstall:
    def test_the_same_answer_may_come_twice(self, cluster):
        answer = papers(cluster, "xps")
        install(cluster.folder("xps"), *answer)
        before = files(cluster.folder("xps"))
        install(cluster.folder("xps"), *answer)
        assert files(cluster.folder("xps")) == before

    @pytest.mark.parametrize("wrong", ["certificate", "authority", "list", "garbage", "empty"])
    def test_what_does_not_fit_together_changes_nothing(self, cluster, tmp_path, wrong):
        cluster.enrol("xps")
        other = Cluster(tmp_path, "other")
        certificate, authority, crl = papers(cluster, "xps")
        theirs = papers(other, "zen")
        before = files(cluster.folder("xps"))
        given = {
            "certificate": (theirs[0], authority, crl),
            "authority": (certificate, theirs[1], theirs[2]),
            "list": (certificate, authority, theirs[2]),
            "garbage": (certificate, authority, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----"),
            "empty": ("", authority, crl),
        }[wrong]  # fmt: skip
        with pytest.raises(CertificateRefused, match="does not fit together"):
            install(cluster.folder("xps"), *given)
        assert files(cluster.folder("xps")) == before

    def test_what_stands_behind_the_first_certificate_is_not_trusted(self, cluster, tmp_path):
        other = Cluster(tmp_path, "other")
        foreign = other.authority.certificate_pem
        certificate, authority, crl = papers(cluster, "xps")
        install(cluster.folder("xps"), certificate + foreign, authority + foreign, crl + foreign)
        cluster.authority.revoke(cluster.enrol("zen").serial, NOW)
        assert install_crl(cluster.folder("xps"), cluster.authority.crl_pem(NOW) + foreign)
        assert foreign.encode() not in b"".join(files(cluster.folder("xps")).values())
        context = Identity(cluster.folder("xps")).server_context("required")
        assert "self-signed" in refused(context, other.identity("evil").client_context())

    def test_an_older_list_never_comes_back(self, cluster):
        cluster.enrol("xps")
        old = cluster.authority.crl_pem(NOW)
        issued = cluster.enrol("zen")
        cluster.authority.revoke(issued.serial, NOW)
        folder = cluster.folder("xps")
        assert install_crl(folder, cluster.authority.crl_pem(NOW))
        newest = (folder / "ca.crl").read_bytes()
        assert not install_crl(folder, old)
        assert not install_crl(folder, cluster.authority.crl_pem(NOW))
        answer = papers(cluster, "xps")
        install(folder, answer[0], answer[1], old)
        assert (folder / "ca.crl").read_bytes() == newest

    def test_a_list_of_another_cluster_is_refused(self, cluster, tmp_path):
        cluster.enrol("xps")
        with pytest.raises(CertificateRefused, match="not this cluster's"):
            install_crl(cluster.folder("xps"), Cluster(tmp_path, "other").authority.crl_pem(NOW))

    def test_a_host_may_move_to_another_cluster(self, cluster, tmp_path):
        """Its lists start at 1 again, which must not make them look old."""
        for _ in range(3):
            cluster.authority.revoke(cluster.enrol("zen").serial, NOW)
        xps = cluster.identity("xps")
        context = xps.client_context()
        other = Cluster(tmp_path, "other")
        issued = other.authority.issue(make_request(xps.folder, "xps"), host="xps", addresses=(), role="node", now=NOW)
        install(xps.folder, issued.certificate_pem, other.authority.certificate_pem, other.authority.crl_pem(NOW))
        assert xps.refresh()
        assert xps.fingerprint == other.authority.fingerprint
        assert Connection(other.identity("box").server_context("required"), context)
        assert "self-signed" in refused(cluster.identity("zen").server_context("required"), context)


class TestHandshakes:
    def test_two_hosts_of_a_cluster_know_each_other(self, pair):
        xps, zen = pair
        made = Connection(xps.server_context("required"), zen.client_context(), "10.1.0.7")
        peer = peer_of(made.server.getpeercert())
        assert (peer.host, peer.role, peer.serial) == ("zen", "node", zen.serial)
        assert made.client.version() == "TLSv1.3"

    @pytest.mark.parametrize("name", ["xps", "localhost", "127.0.0.1", "::1", "10.1.0.7"])
    def test_a_host_answers_to_its_names_and_addresses(self, pair, name):
        assert Connection(pair[0].server_context("required"), pair[1].client_context(), name)

    @pytest.mark.parametrize("name", ["zen", "10.1.0.8", "evil.example"])
    def test_and_to_no_other(self, pair, name):
        assert "mismatch" in refused(pair[0].server_context("required"), pair[1].client_context(), name)

    def test_without_a_certificate_there_is_no_way_in(self, cluster, pair):
        from dgpunet_dask.security.pinning import trusting

        visitor = trusting(cluster.authority.certificate_pem)
        assert "CERTIFICATE" in refused(pair[0].server_context("required"), visitor)
        made = Connection(pair[0].server_context("optional"), visitor)
        assert peer_of(made.server.getpeercert()) is None

    @pytest.mark.parametrize("clients", ["required", "optional"])
    def test_a_certificate_that_is_shown_is_checked(self, tmp_path, pair, clients):
        stranger = Cluster(tmp_path, "other").identity("zen").client_context()
        stranger.current.check_hostname = False
        stranger.current.verify_mode = ssl.CERT_NONE
        assert refused(pair[0].server_context(clients), stranger)

    def test_a_server_of_another_cluster_is_refused(self, tmp_path, pair):
        assert refused(Cluster(tmp_path, "other").identity("xps").server_context("required"), pair[1].client_context())

    @pytest.mark.parametrize("late", ["client", "server"])
    def test_what_is_over_is_refused(self, cluster, pair, late):
        old = cluster.identity("old", ago_s=2 * DAY)
        ends = {"client": (pair[0], old), "server": (old, pair[1])}[late]
        assert "expired" in refused(ends[0].server_context("required"), ends[1].client_context())

    def test_what_has_not_begun_is_refused(self, cluster, pair):
        early = cluster.identity("early", ago_s=-DAY)
        assert "not yet valid" in refused(pair[0].server_context("required"), early.client_context())

    def test_older_tls_is_refused(self, pair):
        client = pair[1].client_context().current
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert "PROTOCOL" in refused(pair[0].server_context("required"), client)

    def test_no_session_can_be_taken_up_again(self, pair):
        """One that is taken up again would skip the look at the certificate, and so at the list of revoked ones."""
        made = Connection(pair[0].server_context("required"), pair[1].client_context())
        session = made.client.session
        assert session is None or not session.has_ticket
        assert not made.client.session_reused

    def test_a_context_by_itself_lets_nobody_in(self, pair):
        bare = ssl.SSLContext.wrap_bio(pair[1].client_context(), ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="xps")
        assert bare.context.verify_mode == ssl.CERT_REQUIRED
        assert bare.context.get_ca_certs() == []
        assert bare.context.check_hostname


class TestRenewal:
    def test_new_connections_see_the_new_certificate_and_old_ones_live_on(self, cluster, pair):
        xps, zen = pair
        server, client = xps.server_context("required"), zen.client_context()
        old = Connection(server, client)
        renewed = cluster.enrol("xps")
        assert Connection(server, client).server_serial == old.server_serial
        assert xps.refresh()
        assert not xps.refresh()
        assert Connection(server, client).server_serial == renewed.serial == xps.serial != old.server_serial
        assert old.say(old.server, old.client) == b"word"

    def test_all_identities_of_a_folder_are_one(self, cluster, pair):
        xps, zen = pair
        server = xps.server_context("required")
        assert Identity(cluster.folder("xps")).server_context("required") is server
        renewed = cluster.enrol("xps")
        Identity(cluster.folder("xps")).refresh()
        assert Connection(server, zen.client_context()).server_serial == renewed.serial

    def test_the_client_s_side_is_renewed_too(self, cluster, pair):
        xps, zen = pair
        client = zen.client_context()
        renewed = cluster.enrol("zen")
        zen.refresh()
        assert peer_of(Connection(xps.server_context("required"), client).server.getpeercert()).serial == renewed.serial

    def test_connections_are_made_all_the_while(self, cluster, pair):
        xps, zen = pair
        server, client = xps.server_context("required"), zen.client_context()
        stop = threading.Event()
        thread = watch(xps, stop, every_s=0.0005)
        serials = set()
        for n in range(200):
            if n % 10 == 0:
                renewed = cluster.enrol("xps")
            serials.add(Connection(server, client).server_serial)
        until(lambda: Connection(server, client).server_serial == renewed.serial)
        stop.set()
        thread.join(5)
        assert len(serials) > 1

    @pytest.mark.parametrize("name", ["node.pem", "ca.crt", "ca.crl"])
    @pytest.mark.parametrize("how", ["half", "gone", "other"])
    def test_while_the_files_do_not_fit_the_old_ones_stay_in_force(self, cluster, tmp_path, pair, caplog, name, how):
        xps, zen = pair
        server, path = xps.server_context("required"), cluster.folder("xps") / name
        whole, before = path.read_text(), xps.serial
        if how == "gone":
            path.unlink()
        elif how == "half":
            path.write_text(whole[: len(whole) // 2])
        else:
            other = Cluster(tmp_path, "other")
            other.enrol("xps")
            shutil.copy(other.folder("xps") / name, path)
        with caplog.at_level(logging.WARNING):
            assert not xps.refresh()
            assert not xps.refresh()
        assert len([r for r in caplog.records if "stays in use" in r.message]) == 1
        assert Connection(server, zen.client_context()).server_serial == before
        path.write_text(whole)
        renewed = cluster.enrol("xps")
        assert xps.refresh()
        assert Connection(server, zen.client_context()).server_serial == renewed.serial

    def test_a_thread_follows_the_files(self, cluster, pair):
        xps, zen = pair
        stop = threading.Event()
        thread = watch(xps, stop, every_s=0.01)
        renewed = cluster.enrol("xps")
        until(lambda: Connection(xps.server_context("required"), zen.client_context()).server_serial == renewed.serial)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


class TestRevocation:
    def test_a_removed_host_is_refused_on_both_sides(self, cluster, pair):
        xps, zen = pair
        server, client = xps.server_context("required"), xps.client_context()
        Connection(server, zen.client_context())
        cluster.authority.revoke_host("zen", NOW)
        cluster.publish("xps")
        assert "revoked" in refused(server, zen.client_context())
        assert "revoked" in refused(zen.server_context("required"), client)
        assert "revoked" in refused(xps.server_context("optional"), zen.client_context())

    def test_the_serials_on_the_list_are_those_of_the_certificates(self, cluster, pair):
        xps, zen = pair
        assert xps.revoked == frozenset()
        shown = Connection(xps.server_context("required"), zen.client_context()).server.getpeercert()["serialNumber"]
        cluster.authority.revoke_host("zen", NOW)
        cluster.publish("xps")
        assert xps.revoked == {shown}

    def test_a_context_that_is_changed_in_place_misses_a_list_of_the_same_second(self, cluster, pair):
        """This is OpenSSL's way (it takes a list only if it is newer), hence contexts that are replaced as a whole."""
        xps, zen = pair
        folder = cluster.folder("xps")
        in_place = contexts.server_context(*(str(folder / name) for name in ("node.pem", "ca.crt", "ca.crl")), "required")
        crl = x509.load_pem_x509_crl((folder / "ca.crl").read_bytes())
        cluster.authority.revoke_host("zen", crl.last_update_utc.timestamp() + SKEW_S)
        cluster.publish("xps")
        in_place.load_verify_locations(cafile=folder / "ca.crl")
        assert Connection(in_place, zen.client_context())
        assert "revoked" in refused(xps.server_context("required"), zen.client_context())

    def test_a_host_that_was_invited_anew_is_let_in(self, cluster, pair):
        xps, zen = pair
        cluster.authority.revoke_host("zen", NOW)
        cluster.authority.allow("zen")
        cluster.enrol("zen")
        zen.refresh()
        cluster.publish("xps")
        assert Connection(xps.server_context("required"), zen.client_context())

    def test_without_a_list_nobody_is_let_in(self, cluster, pair):
        folder = cluster.folder("xps")
        context = contexts.bare_context(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "node.pem")
        context.load_verify_locations(cafile=folder / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        assert "CRL" in refused(context, pair[1].client_context())


def test_the_return_request_needs_the_key(cluster):
    cluster.enrol("xps")
    pem = cluster.folder("xps") / "node.pem"
    pem.write_text(pem.read_text().partition("-----BEGIN CERTIFICATE")[2].join(["-----BEGIN CERTIFICATE", ""]))
    with pytest.raises(NoIdentity, match="key is not there"):
        make_return_request(cluster.folder("xps"))


def test_threads_keep_one_another_out(tmp_path):
    inside, most = [0], [0]

    def work():
        for _ in range(50):
            with locked(tmp_path / "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
