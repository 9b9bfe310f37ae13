"""What a stranger, a user, a host and a former host of the cluster can reach, on every port there is."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.daemons.api.routes import DIGEST, ID, NAME, ROUTES
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.identity import install, make_request
from dgpunet_dask.security.tokens import TokenStore
from tests.acceptance.realcluster.inside import inside
from tests.acceptance.realcluster.site import WHY_NOT, Site, short_folder, site
from tests.acceptance.realcluster.strangers import (
    Answer,
    as_dask,
    ask,
    datagrams,
    forged,
    held,
    is_open,
    listeners,
    pid_of,
    plain,
    refused,
    tls,
)
from tests.helpers import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"hosts in namespaces: {WHY_NOT}"),
]

HEAD, TOWER = "10.77.0.1", "10.77.0.3"
SCHEDULER, API, PEER = 8786, 8787, 8788
#: Every listener beyond loopback, and what protects it. A new one has to be written down here, and to be tried below.
PROTECTED = {
    (SCHEDULER, "scheduler_main"): "mutual TLS",
    (API, "daemons.head"): "TLS, with a key for users and a certificate for hosts",
    (PEER, "node_agent"): "mutual TLS, hosts alone",
    (8800, "worker"): "mutual TLS",
    (8801, "worker"): "mutual TLS",
    (8900, "worker"): "mutual TLS",
    (8901, "worker"): "mutual TLS",
}
#: What listens on loopback, and what protects it from other users of the machine.
LOCAL = {
    "daemons.head": "a key that only this user can read",
    "scheduler_main": "a secret path that only this user can read",
    "worker": "a secret path that only this user can read",
}


@pytest.fixture(scope="module")
def three(homes: Path) -> Iterator[Site]:
    names = ("m18", "xps", "tower")
    with site(short_folder(homes, "s"), names, names[1:], more=["mallory", "guesser", "new", "second"]) as made:
        yield made


def from_(made: Site, name: str, call: Any, *args: Any, **more: Any) -> Any:
    """Call something on a host."""
    return inside(made.lab.lan.host(name).namespace, partial(call, *args, **more))


def mallory(made: Site, path: str, method: str = "GET", **more: Any) -> Answer:
    """Ask the API as a stranger."""
    return from_(made, "mallory", ask, HEAD, API, path, method, **more)


def key(made: Site, user: str, scope: str) -> str:
    return str(made.lab.ok("m18", "-q", "key", "create", user, "--scope", scope).out.split()[-1])


def kind_of(command: str) -> str:
    """Return which daemon a command line is: a nanny's child is a worker too."""
    known = ("scheduler_main", "daemons.head", "node_agent", "worker_main", "spawn_main")
    found = next((word for word in known if word in command), command)
    return {"worker_main": "worker", "spawn_main": "worker"}.get(found, found)


def beyond(made: Site, name: str) -> dict[tuple[str, int], str]:
    """Return the listeners of a host that others reach, with their daemons."""
    commands = made.lab.left(name)
    found = listeners(made.lab.lan.host(name))
    return {end: kind_of(commands.get(pid_of(shown), shown)) for end, shown in found.items() if not end[0].startswith("127.") and end[0] != "::1"}


def mutual(made: Site) -> list[tuple[str, int]]:
    """Return every listener that asks for a certificate."""
    return sorted(end for name in ("m18", "xps", "tower") for end in beyond(made, name) if end[1] != API)


# Listeners


def test_every_listener_is_known_and_protected(three):
    for name, address in (("m18", HEAD), ("xps", "10.77.0.2"), ("tower", TOWER)):
        found = beyond(three, name)
        assert {end[0] for end in found} == {address}, found
        assert {(port, kind) for (_, port), kind in found.items()} <= set(PROTECTED), found
        expected = {PEER, 8800, 8801} | ({SCHEDULER, API} if name == "m18" else set())
        assert expected <= {port for _, port in found}
        assert len([port for _, port in found if port in (8900, 8901)]) == 1  # the nanny of the one card's worker
        assert datagrams(three.lab.lan.host(name)) == set()
    assert from_(three, "mallory", plain, HEAD, API).end  # and a stranger does reach it


def test_what_listens_on_loopback_gives_nothing_away(three):
    for name in ("m18", "xps"):
        commands = three.lab.left(name)
        here = {end: kind_of(commands.get(pid_of(shown), shown)) for end, shown in listeners(three.lab.lan.host(name)).items()}
        local = {end: kind for end, kind in here.items() if end[0].startswith("127.") or end[0] == "::1"}
        assert set(local.values()) <= set(LOCAL), local
        assert local
        secret = (three.lab.home(name) / "run" / "dashboard.secret").read_text()
        for (address, port), kind in local.items():
            for path in ("/", "/status", "/health", "/metrics", "/sitemap.json", "/info/main/workers.html", "/json/counts.json", "/v1/status"):
                answer = from_(three, name, ask, address, port, path, secured=False)
                assert answer.status in (401, 403, 404), (kind, path, answer)
                assert secret.encode() not in answer.body
                assert secret not in str(answer.headers), (kind, path, answer)


def test_secrets_are_readable_by_their_user_alone(three):
    for name in ("m18", "xps"):
        home = three.lab.home(name)
        assert home.stat().st_mode & 0o077 == 0
        for file in [*home.glob("pki/*"), home / "run" / "dashboard.secret", *home.glob("run/head.json"), home / "cluster.json"]:
            assert file.stat().st_mode & 0o077 == 0, file
    assert not (three.lab.home("xps") / "pki" / "ca.key").exists()


# Strangers


@pytest.mark.parametrize("how", ["plain", "no certificate", "self-signed"])
def test_a_stranger_is_refused_by_every_port_of_dask_and_of_agents(three, how):
    certificate = forged(three.lab.folder / "forged.pem", "tower", TOWER)
    ports = mutual(three)
    assert len(ports) == 3 * 4 + 1
    for address, port in ports:
        if how == "plain":
            heard = from_(three, "mallory", plain, address, port)
        else:
            heard = from_(three, "mallory", tls, address, port, certificate if how == "self-signed" else None)
        assert refused(heard), (address, port, heard)
    pki = three.lab.home("tower") / "pki"  # while a host of the cluster is answered by each of Dask's
    dask = [(a, p) for a, p in ports if p != PEER]
    told = as_dask(three.lab.lan.host("tower"), three.lab.environment("tower"), pki, [f"tls://{a}:{p}" for a, p in dask])
    assert None not in told, list(zip(dask, told, strict=True))
    assert {"Scheduler", "Nanny"} <= set(told)


def test_a_certificate_of_another_clusters_authority_is_refused(three):
    other = three.lab.folder / "other"
    now = time.time()
    authority = Authority.create(other / "ca", "other", now)
    issued = authority.issue(make_request(other / "node", "tower"), host="tower", addresses=[TOWER], role="node", now=now)
    install(other / "node", issued.certificate_pem, authority.certificate_pem, authority.crl_pem(now))
    for address, port in mutual(three):
        assert refused(from_(three, "mallory", tls, address, port, other / "node" / "node.pem")), (address, port)
    answer = mallory(three, "/v1/agents/me", "POST", certificate=other / "node" / "node.pem")
    assert answer.status == 0, answer


# The API


def paths() -> list[tuple[str, str, str]]:
    """Return path, method and need of every route."""
    filled = [(f"({DIGEST})", "a" * 64), (f"({ID})", "x"), (f"({NAME})", "x"), (r"(\d{1,20})", "1"), ("(cordon|uncordon|drain|remove)", "drain"), ("(?:/.*)?", "/status")]
    found = []
    for route in ROUTES:
        path = route.path
        for pattern, value in filled:
            path = path.replace(pattern, value)
        assert re.fullmatch(route.path, path), route.path
        found += [(path, method, need) for method, need in route.needs.items()]
    return found


def test_without_a_key_no_route_answers(three):
    asked = [(path, method) for path, method, need in paths() if need != "public"]
    assert len(asked) > 30
    for path, method in asked:
        answer = mallory(three, path, method)
        assert answer.status == 401, (method, path, answer)
    assert {path for path, _, need in paths() if need == "public"} == {"/v1/ca", "/v1/join", "/v1/join/check", "/login", "/logout"}
    assert mallory(three, "/v1/unheard-of").status == 401


def test_a_wrong_key_opens_nothing_and_guessing_is_slowed_down(three):
    wrong = key(three, "eve", "viewer")
    wrong = wrong[:-4] + ("AAAA" if not wrong.endswith("AAAA") else "BBBB")
    statuses = [from_(three, "guesser", ask, HEAD, API, "/v1/status", key=wrong).status for _ in range(25)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert set(statuses) == {401, 429}
    assert mallory(three, "/v1/status", key=key(three, "eve", "viewer")).status == 200  # others are not slowed down


def test_a_key_opens_what_its_scope_holds_and_no_more(three):
    order = ["viewer", "submitter", "operator"]
    for scope in ("viewer", "submitter"):
        secret = key(three, f"a-{scope}", scope)
        for path, method, need in paths():
            if need == "agent" or (need in order and order.index(need) > order.index(scope)):
                answer = mallory(three, path, method, key=secret)
                assert answer.status == 403, (scope, method, path, answer)
    viewer = key(three, "looks", "viewer")
    assert mallory(three, "/v1/nodes", key=viewer).status == 200
    operator = key(three, "operates", "operator")
    assert mallory(three, "/v1/placements", key=operator).status == 200
    assert mallory(three, "/v1/agents/heartbeat", "POST", key=operator).status == 403
    revoked = next(k["id"] for k in three.lab.ok("m18", "key", "list", "--json").json["keys"] if k["user"] == "looks")
    three.lab.ok("m18", "key", "revoke", revoked)
    assert mallory(three, "/v1/nodes", key=viewer).status == 401


def test_the_key_of_local_commands_counts_on_loopback_alone(three):
    local = json.loads((three.lab.home("m18") / "run" / "head.json").read_text())["key"]
    assert mallory(three, "/v1/status", key=local).status == 401
    assert from_(three, "m18", ask, HEAD, API, "/v1/status", key=local).status == 401


def test_a_hosts_certificate_opens_the_routes_of_agents_alone(three):
    certificate = three.lab.home("xps") / "pki" / "node.pem"
    for path, method, need in paths():
        if need in ("viewer", "submitter", "operator"):
            answer = from_(three, "xps", ask, HEAD, API, path, method, certificate=certificate)
            assert answer.status in (401, 403), (method, path, answer)
    me = from_(three, "xps", ask, HEAD, API, "/v1/agents/me", "POST", certificate=certificate)
    assert (me.status, me.json["host"]) == (200, "xps")


def test_other_sites_and_other_schemes_are_refused(three):
    secret = key(three, "browser", "viewer")
    assert mallory(three, "/v1/status", key=secret, headers={"Host": "evil.example"}).status == 403
    assert mallory(three, "/v1/status", key=secret, headers={"Host": f"evil.example:{API}"}).status == 403
    assert mallory(three, "/v1/status", key=secret, headers={"Origin": "https://evil.example"}).status == 403
    assert mallory(three, "/v1/status", key=secret, headers={"Origin": "null"}).status == 403
    assert mallory(three, "/v1/status", key=secret, headers={"Origin": f"https://{HEAD}:{API}"}).status == 200
    assert mallory(three, "/v1/status", key=secret, secured=False).status == 0
    port = int(json.loads((three.lab.home("m18") / "run" / "head.json").read_text())["api"].rpartition(":")[2])
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert from_(three, "m18", ask, "127.0.0.1", port, "/v1/status", headers=headers, secured=False).status == 403


def test_the_dashboard_is_for_those_with_a_key(three):
    assert mallory(three, "/dashboard/status").status == 401
    sent = mallory(three, "/dashboard/status", headers={"Accept": "text/html"})
    assert (sent.status, sent.headers["Location"]) == (303, "/login")
    assert mallory(three, "/dashboard/status/ws").status == 401
    secret = key(three, "watcher", "viewer")
    page = mallory(three, "/dashboard/status", key=secret, headers={"Accept": "text/html"})
    assert page.status == 200
    assert b"Dask" in page.body
    hidden = (three.lab.home("m18") / "run" / "dashboard.secret").read_bytes()
    assert hidden not in page.body
    for path in ("/dashboard/../v1/status", "/dashboard/%2e%2e/v1/status", "/dashboard/proxy/8787/10.77.0.2/status"):
        assert mallory(three, path, key=secret).status in (401, 403, 404), path


def test_commands_elsewhere_work_with_a_key_and_are_refused_without(three):
    cluster = ("--cluster", f"https://{HEAD}:{API}")
    secret = key(three, "far", "viewer")
    three.lab.own["mallory"] = {"DGPUNET_API_KEY": secret}
    seen = three.lab.ok("mallory", *cluster, "nodes", "--json").json["nodes"]
    assert {node["host"] for node in seen} >= {"m18", "xps", "tower"}
    denied = three.lab.cli("mallory", *cluster, "drain", "xps")
    assert (denied.code, "asks for operator" in denied.err) == (2, True), denied
    for wrong in ({}, {"DGPUNET_API_KEY": "nonsense"}, {"DGPUNET_API_KEY": secret[:-4] + ("AAAA" if secret[-4:] != "AAAA" else "BBBB")}):
        three.lab.own["mallory"] = wrong
        ran = three.lab.cli("mallory", *cluster, "nodes")
        assert (ran.code, "Traceback" in ran.err) == (2, False), ran
        assert "xps" not in ran.out
        assert "key" in ran.err
    three.lab.own.clear()
    here = three.lab.cli("xps", "nodes")  # a host of the cluster is no user of it
    assert here.code == 2, here
    assert "DGPUNET_API_KEY" in here.err


# Owners


def test_indexes_and_models_are_their_users_until_they_share_them(three):
    cluster = ("--cluster", f"https://{HEAD}:{API}")
    secrets = {user: key(three, user, "submitter") for user in ("ann", "bob")}
    tree, weights = three.lab.folder / "anns-tree", three.lab.folder / "anns-model"
    for folder, name, text in ((tree, "timer.md", "Tokens are refreshed once an hour by a timer."), (weights, "config.json", "{}")):
        folder.mkdir()
        (folder / name).write_text(text)
    (three.lab.home("m18") / "config.yaml").write_text(f"version: 1\nroots: [{three.lab.folder}]\n")

    def ran(user: str, *words: str) -> Any:
        three.lab.own["mallory"] = {"DGPUNET_API_KEY": secrets[user]}
        return three.lab.cli("mallory", *cluster, *words, timeout_s=120)

    embed = ("submit", "embed-codebase", "--set", f"path={tree}", "--set", "index=work", "--json")
    until(lambda: ran("ann", *embed).code == 0, 60)  # the head follows its settings
    refused_job = ran("bob", *embed)
    assert (refused_job.code, refused_job.json["error"]["code"]) == (2, "not_allowed"), refused_job
    assert "--set index=NAME" in refused_job.err
    look = ("search", "work", "how long do tokens live", "--json")
    assert [ran(user, *look).code for user in ("ann", "bob")] == [0, 102]
    assert ran("bob", *embed, "--shared").code == 2
    assert ran("ann", *embed, "--shared").code == 0
    assert ran("bob", *look).json["hits"][0]["path"] == "timer.md"
    assert [ran(user, "index", "remove", "work").code for user in ("bob", "ann")] == [2, 0]

    brings = (*embed, "--set", f"model={weights}")
    assert ran("ann", *brings).code != 0  # it has no weights; whose it is was noted before
    (model,) = ran("ann", "model", "list", "--json").json["models"]
    assert (model["name"], model["owner"], model["shared"]) == (str(weights.resolve()), "ann", False)
    refused_job = ran("bob", *brings)
    assert (refused_job.code, f"model share {model['id']}" in refused_job.err) == (2, True), refused_job
    assert ran("bob", "model", "list", "--json").json["models"] == []
    three.lab.own.clear()


# Joining


def token(made: Site, host: str, *words: str) -> str:
    return str(made.lab.ok("m18", "-q", "token", "create", host, *words).out.split()[-1])


def not_taken_in(made: Site, text: str, why: str, *words: str) -> None:
    """Fail unless a machine that was never a host is refused, with the reason, and has nothing of a cluster afterwards."""
    before = made.lab.ok("m18", "nodes", "--json").json["nodes"]
    ran = made.lab.cli("new", "join", text, *words)
    assert ran.code == 2, ran
    assert why in ran.err, ran
    assert "Traceback" not in ran.err
    secret = text.partition(".")[2][:43]
    assert not secret or secret not in ran.err
    home = made.lab.home("new")
    assert not (home / "cluster.json").exists()
    assert {file.name for file in home.glob("pki/*")} <= {"request.key", "request.key.lock", ".request.key.lock"}
    assert made.lab.left("new") == {}
    assert {n["host"] for n in made.lab.ok("m18", "nodes", "--json").json["nodes"]} == {n["host"] for n in before}


def test_a_token_that_is_no_good_is_refused_with_its_reason(three):
    short = token(three, "new", "--ttl", "1s")
    good = token(three, "new")
    until(lambda: _token(three, short)["state"] == "expired", 10, "the end of the token's time", every_s=0.2)
    not_taken_in(three, short, "its time is over", "--name", "new")
    not_taken_in(three, good, "it was made for another host", "--name", "other")
    fingerprint, rest = good[4:68], good[68:]
    flipped = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
    not_taken_in(three, good[:4] + flipped + rest, "authority", "--name", "new")
    secret = good.partition(".")[2].partition("::")[0]
    other = ("A" if secret[5] != "A" else "B").join([secret[:5], secret[6:]])
    not_taken_in(three, good.replace(secret, other), "this cluster has made no such token", "--name", "new")
    not_taken_in(three, good[:60], "not whole", "--name", "new")
    revoked = token(three, "new")
    three.lab.ok("m18", "token", "revoke", _token(three, revoked)["id"])
    not_taken_in(three, revoked, "it was revoked", "--name", "new")
    assert _token(three, good)["state"] == "open"  # none of these has used it up


def _token(made: Site, text: str) -> dict[str, Any]:
    return next(t for t in made.lab.ok("m18", "token", "list", "--json").json["tokens"] if t["id"] in text)


def test_a_token_works_once_and_a_second_machine_is_refused(three):
    used = token(three, "new")
    assert three.lab.cli("new", "join", used, "--name", "new").code == 0
    three.until_ready("new")
    again = three.lab.cli("second", "join", used, "--name", "new")
    assert (again.code, "it was used before" in again.err) == (2, True), again
    assert not (three.lab.home("second") / "cluster.json").exists()
    twice = three.lab.cli("new", "join", used, "--name", "new")
    assert (twice.code, "running already" in twice.err) == (2, True), twice


def test_a_token_of_another_cluster_is_refused_where_it_leads_here(three):
    other = three.lab.folder / "other"
    fingerprint = Authority.open(other / "ca").fingerprint
    foreign = TokenStore(other / "tokens.json").create("mallory", [f"{HEAD}:{API}"], fingerprint, ttl_s=60, now=time.time())
    ran = three.lab.cli("mallory", "join", foreign, "--name", "mallory")
    assert ran.code == 2, ran
    assert fingerprint in ran.err
    assert not (three.lab.home("mallory") / "cluster.json").exists()


def test_who_has_no_token_learns_nothing_of_the_heads_software(three):
    old = {"dgpunet_dask": "0.0.0", "distributed": "1.0", "python": "2.7.18"}
    good = token(three, "new")
    secret = good.partition(".")[2].partition("::")[0]
    for path in ("/v1/join", "/v1/join/check"):
        for text in ("x", good.replace(secret, "A" * len(secret)), good):  # the last is good, and for another host
            answer = mallory(three, path, "POST", body={"host": "mallory", "csr": "x", "software": old, "token": text})
            assert 400 <= answer.status < 500, (path, answer)
            assert b"distributed" not in answer.body, answer
    assert _token(three, good)["state"] == "open"


# Removal


def test_a_host_that_is_removed_loses_all_access_within_seconds_and_may_join_anew(three):
    xps = three.lab.lan.host("xps")
    stolen = three.lab.folder / "stolen"
    shutil.copytree(three.lab.home("xps") / "pki", stolen)
    dask = [f"tls://{a}:{p}" for a, p in mutual(three) if p != PEER and a != "10.77.0.2"]
    peers = [(a, p) for a, p in mutual(three) if p == PEER and a != "10.77.0.2"]
    environment = three.lab.environment("xps")
    assert None not in as_dask(xps, environment, stolen, dask)
    assert all(from_(three, "xps", is_open, *end, stolen / "node.pem") for end in peers)
    assert from_(three, "xps", ask, HEAD, API, "/v1/agents/me", "POST", certificate=stolen / "node.pem").status == 200

    with held(xps, environment, stolen, dask) as ends:
        removed = three.lab.ok("m18", "remove-node", "xps", "--json").json
        assert removed["certificates_revoked"] >= 1
        began = time.monotonic()
        assert ends() == [True] * len(dask), dask
        three.measured("removed host: connections that it held are ended everywhere", time.monotonic() - began)
    until(lambda: not any(w["host"] == "xps" for w in three.api("/v1/status")[1]["workers"]), 10, "its workers are gone")
    until(lambda: from_(three, "xps", ask, HEAD, API, "/v1/agents/me", "POST", certificate=stolen / "node.pem").status != 200, 10, "the API refuses it")
    until(lambda: all(refused(from_(three, "xps", tls, *end, stolen / "node.pem")) for end in peers), 15, "the peer ports refuse it")
    until(lambda: as_dask(xps, environment, stolen, dask) == [None] * len(dask), 20, "Dask's ports refuse it")
    three.measured("removed host shut out everywhere", time.monotonic() - began)
    log = three.lab.home("xps") / "run" / "logs" / "agent.log"
    until(lambda: "revoked" in log.read_text().lower(), 10, "its agent is told why")
    assert "xps" not in three.nodes()
    renewed = from_(three, "xps", ask, HEAD, API, "/v1/agents/renew", "POST", certificate=stolen / "node.pem", body={"csr": "x"})
    assert renewed.status in (0, 401, 403)
    back = three.lab.cli("xps", "down")
    assert back.code == 0, back
    assert three.lab.join("m18", "xps").code == 0
    three.until_ready("xps")
    assert as_dask(xps, environment, stolen, dask) == [None] * len(dask)  # the old certificate stays what it is
