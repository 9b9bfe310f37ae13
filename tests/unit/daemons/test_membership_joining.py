"""Who may join, on the head's side: tokens, addresses, versions."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.errors import BadValue, JoinRefused, TokenRefused
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.security.identity import install, make_request, make_return_request
from tests.unit.daemons.members import HEAD, Members, facts


@pytest.fixture
async def members(home):
    return Members(home)


def request(members, token=None, host="node-c", **more):
    return {"token": token, "host": host, "csr": make_request(members.home.root / "other", host), "addresses": ["10.0.0.9"], **more}


async def test_a_token_lets_a_host_in_once(members):
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    asked = request(members, token, roles=["batch"])
    answer = await members.now.enrol(asked, "10.0.0.9")
    assert answer["certificate"].startswith("-----BEGIN CERTIFICATE")
    row = await members.row("node-c")
    assert (row["state"], row["address"], row["roles"]) == ("joining", "10.0.0.9", ["batch"])
    other = request(members, token, host="node-c")
    other["csr"] = make_request(members.home.root / "third", "node-c")
    with pytest.raises(TokenRefused):
        await members.now.enrol(other, "10.0.0.9")


async def test_a_token_is_looked_at_and_is_as_good_as_before(members):
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    for _ in range(2):
        answer = await members.now.join_check({"token": token, "host": "node-c"}, "10.0.0.9")
        assert (answer["head"], answer["seen_as"]) == (HEAD, "10.0.0.9")
        assert answer["software"]["distributed"] == software_facts().distributed
        assert answer["ports"] == {"scheduler": 8786, "peer": 8788}
        assert [(row["dst"], row["address"]) for row in answer["reach"]] == [("node-c", "10.0.0.9")]
    assert "node-c" not in members.now.roll.nodes
    await members.now.enrol(request(members, token), "10.0.0.9")


async def test_a_token_that_would_not_let_in_tells_nothing(members):
    made = [await members.now.token_create({"host": "node-c", "ttl_s": ttl_s}) for ttl_s in (3600, 3600, 10, 3600)]
    used, revoked, late, good = (one["token"] for one in made)
    await members.now.enrol(request(members, used), "10.0.0.9")
    await members.now.token_revoke(revoked.split("::")[1].partition(".")[0])
    members.passed(20)
    wrong = good.replace(good.split("::")[1].partition(".")[2], "A" * 43)
    for token, host, why in (
        (used, "node-c", "used"), (revoked, "node-c", "revoked"), (late, "node-c", "expired"), (good, "node-d", "other_host"), (wrong, "node-c", "unknown"),
    ):  # fmt: skip
        with pytest.raises(TokenRefused) as refused:
            await members.now.join_check({"token": token, "host": host}, "10.0.0.9")
        assert refused.value.reasons == [{"code": why}]
    for body_ in ({}, {"token": good}, {"token": 7, "host": "node-c"}):
        with pytest.raises(BadValue):
            await members.now.join_check(body_, "10.0.0.9")


async def test_a_host_that_joins_again_stays_who_it_is(members):
    await members.beat("node-c")
    await members.now.node_action("node-c", "cordon", {})
    before = members.now.roll.nodes["node-c"]
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    await members.now.enrol(request(members, token), "10.0.0.9")
    after = members.now.roll.nodes["node-c"]
    assert (after.address, before.address) == ("10.0.0.9", "10.0.0.2")
    assert (after.cards, after.hold, after.roles, after.joined_at) == (before.cards, "cordoned", before.roles, before.joined_at)


@pytest.mark.parametrize(
    "change",
    [{"addresses": "10.0.0.9"}, {"addresses": [7]}, {"addresses": ["nowhere"]}, {"roles": "head"}, {"roles": [{}]}, {"csr": None}, {"host": 5}],
)
async def test_a_malformed_request_leaves_no_host_behind(members, change):
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    with pytest.raises(BadValue):
        await members.now.enrol({**request(members, token), **change}, "10.0.0.9")
    assert "node-c" not in members.now.roll.nodes


async def test_nobody_joins_under_the_heads_name(members):
    token = (await members.now.token_create({"host": HEAD}))["token"]
    with pytest.raises(JoinRefused, match="--name"):
        await members.now.enrol(request(members, token, host=HEAD), "10.0.0.9")


async def test_a_host_that_was_forced_in_runs_its_workers(members):
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    other = {"python": "2.7.1", "distributed": "1.0.0", "dgpunet_dask": "0.0.1"}
    with pytest.raises(JoinRefused):
        await members.now.enrol(request(members, token, software=other), "10.0.0.9")
    answer = await members.now.enrol(request(members, token, software=other, force=True), "10.0.0.9")
    assert answer["warnings"]
    beat = await members.beat("node-c", facts=facts(("GPU-7", "a-0"), software=other))
    assert beat["run_workers"] is True
    members.start()
    assert (await members.beat("node-c", facts=facts(("GPU-7", "a-0"), software=other)))["run_workers"] is True


async def test_a_host_that_was_forced_in_and_slept_long_is_still_forced(members):
    folder = members.home.root / "forced"
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    asked = {**request(members, token, force=True), "csr": make_request(folder, "node-c")}
    given = await members.now.enrol(asked, "10.0.0.9")
    install(folder, given["certificate"], given["ca"], given["crl"])
    members.passed(2 * 86_400)
    certificate, csr = make_return_request(folder)
    await members.now.enrol({"host": "node-c", "certificate": certificate, "csr": csr, "addresses": ["10.0.0.9"]}, "10.0.0.9")
    assert members.now.roll.nodes["node-c"].forced
    again = (await members.now.token_create({"host": "node-c"}))["token"]
    await members.now.enrol(request(members, again), "10.0.0.9")
    assert not members.now.roll.nodes["node-c"].forced


async def test_the_same_software_joins_without_a_word(members):
    token = (await members.now.token_create({"host": "node-c"}))["token"]
    own = json.loads(json.dumps(vars(software_facts()), default=list))
    assert (await members.now.enrol(request(members, token, software=own), "10.0.0.9"))["warnings"] == []
