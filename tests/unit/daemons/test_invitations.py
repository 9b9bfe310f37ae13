"""Tokens and keys as the head gives them out: what they are made from, what lists tell, what ends them."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.daemons.invitations import TOKEN_MOST_S, TOKEN_S, Invitations, number_of, text_of
from dgpunet_dask.errors import BadToken, BadValue, NotFound, TokenRefused
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.keys import Caller, parse_key
from dgpunet_dask.security.tokens import parse_token
from tests.unit.daemons.members import WALL, ManualClock

API = ("10.0.0.1:8787", "[fd00::1]:8787")


@pytest.fixture
def clock():
    return ManualClock(0.0)


@pytest.fixture
def authority(tmp_path):
    return Authority.create(tmp_path / "pki", "home", WALL)


@pytest.fixture
def invitations(authority, clock):
    config = ClusterConfig(membership="head", cluster="home", host="m18", address="10.0.0.1", api=API, fingerprint=authority.fingerprint)
    return Invitations(authority.folder, config, authority, clock)


def token_id(made):
    return parse_token(made["token"]).id


# Tokens


def test_a_token_pins_this_cluster_and_says_where_its_head_answers(invitations, authority):
    made = invitations.token_create({"host": "xps"})
    parsed = parse_token(made["token"])
    assert (parsed.fingerprint, parsed.addresses) == (authority.fingerprint, API)
    assert (made["host"], made["expires_s"], made["addresses"]) == ("xps", WALL + TOKEN_S, list(API))


def test_a_token_is_checked_any_number_of_times_and_redeemed_once(invitations):
    token = invitations.token_create({"host": "xps", "ttl_s": 60})["token"]
    for _ in range(3):
        invitations.check(token, "xps", "one")
    invitations.redeem(token, "xps", "one")
    invitations.check(token, "xps", "one")  # its answer may have been lost on the way
    with pytest.raises(TokenRefused, match="used before"):
        invitations.check(token, "xps", "two")
    with pytest.raises(TokenRefused, match="used before"):
        invitations.redeem(token, "xps", "two")


def test_a_token_ends_with_its_time(invitations, clock):
    token = invitations.token_create({"host": "xps", "ttl_s": 60})["token"]
    clock.now += 59.9
    invitations.check(token, "xps", "")
    clock.now += 0.1
    with pytest.raises(TokenRefused, match="over"):
        invitations.redeem(token, "xps", "")
    assert [row["state"] for row in invitations.tokens()] == ["expired"]


def test_what_is_no_token_is_told_so(invitations):
    with pytest.raises(BadToken):
        invitations.check("DG10", "xps", "")


def test_the_list_of_tokens_is_json_without_a_secret(invitations):
    made = invitations.token_create({"host": "xps"})
    listed = json.loads(json.dumps(invitations.tokens()))
    assert listed == [
        {"id": token_id(made), "host": "xps", "state": "open", "created_s": WALL, "expires_s": WALL + TOKEN_S, "used_s": None}
    ]


def test_a_revoked_token_lets_nobody_in_and_is_revoked_once(invitations):
    made = invitations.token_create({"host": "xps"})
    assert invitations.token_revoke(token_id(made)) == {"id": token_id(made), "revoked": True}
    with pytest.raises(TokenRefused, match="revoked"):
        invitations.redeem(made["token"], "xps", "")
    with pytest.raises(NotFound, match=token_id(made)):
        invitations.token_revoke(token_id(made))


def test_a_host_that_is_removed_loses_all_its_unused_tokens_and_no_other_does(invitations):
    for host in ("xps", "xps", "zen"):
        invitations.token_create({"host": host})
    invitations.revoke_host("xps")
    assert sorted((row["host"], row["state"]) for row in invitations.tokens()) == [("xps", "revoked"), ("xps", "revoked"), ("zen", "open")]


@pytest.mark.parametrize("host", ["box.local", "a b", "-x", "x/y", "é", "x" * 65])
def test_no_token_is_made_for_a_name_that_join_cannot_take(invitations, host):
    with pytest.raises(BadValue, match="host name"):
        invitations.token_create({"host": host})
    assert invitations.tokens() == []


@pytest.mark.parametrize("body", [{}, {"host": 7}, {"host": "xps", "ttl_s": 0}, {"host": "xps", "ttl_s": "1h"}, {"host": "xps", "ttl_s": TOKEN_MOST_S + 1}])
def test_what_makes_no_token(invitations, body):
    with pytest.raises(BadValue):
        invitations.token_create(body)
    assert invitations.tokens() == []


# Keys


def test_a_key_is_its_users_for_as_long_as_it_was_made_for(invitations, clock, authority):
    made = invitations.key_create({"user": "anna", "scope": "submitter", "ttl_s": 100})
    parsed = parse_key(made["key"])
    assert (parsed.fingerprint, made["expires_s"], made["api"]) == (authority.fingerprint, WALL + 100, f"https://{API[0]}")
    assert invitations.store.who(made["key"], clock.wall()) == Caller(user="anna", scope="submitter", key_id=parsed.id)
    clock.now += 100
    assert invitations.store.who(made["key"], clock.wall()) is None


@pytest.mark.parametrize("body", [{"user": "anna", "scope": "viewer"}, {"user": "anna", "scope": "viewer", "ttl_s": None}])
def test_a_key_without_a_time_has_no_end(invitations, body):
    made = invitations.key_create(body)
    assert made["expires_s"] is None
    assert invitations.store.who(made["key"], WALL * 2) is not None


def test_a_revoked_key_is_nobodys_and_is_revoked_once(invitations, clock):
    made = invitations.key_create({"user": "anna", "scope": "viewer"})
    name = parse_key(made["key"]).id
    assert [row["id"] for row in json.loads(json.dumps(invitations.keys()))] == [name]
    assert invitations.key_revoke(name) == {"id": name, "revoked": True}
    assert invitations.store.who(made["key"], clock.wall()) is None
    assert invitations.keys() == []
    with pytest.raises(NotFound, match=name):
        invitations.key_revoke(name)


@pytest.mark.parametrize(
    "body",
    [{}, {"user": "anna"}, {"scope": "viewer"}, {"user": "anna", "scope": "root"}, {"user": "a b", "scope": "viewer"},
     {"user": "anna", "scope": ["viewer"]}, {"user": "anna", "scope": "viewer", "ttl_s": -1}, {"user": "anna", "scope": "viewer", "ttl_s": 1e300}],
)  # fmt: skip
def test_what_makes_no_key(invitations, body):
    with pytest.raises(BadValue):
        invitations.key_create(body)
    assert invitations.keys() == []


# Parts of a body


@pytest.mark.parametrize("value", [None, "", 7, ["x"], True])
def test_a_text_is_a_text_that_says_something(value):
    with pytest.raises(BadValue, match="user"):
        text_of({"user": value}, "user")
    assert text_of({"user": "anna"}, "user") == "anna"


@pytest.mark.parametrize("value", [None, "1", True, 0, -1, float("nan"), float("inf"), 10**400, [1]])
def test_a_number_is_one_of_seconds_that_a_date_can_be_made_from(value):
    with pytest.raises(BadValue, match="ttl_s"):
        number_of({"ttl_s": value}, "ttl_s", 1.0)


def test_a_number_that_is_not_given_is_the_default():
    assert number_of({}, "ttl_s", 5.0) == 5.0
    assert number_of({"ttl_s": 7}, "ttl_s", 5.0) == 7.0
