from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadToken, BadValue
from dgpunet_dask.security.keys import SCOPES, Caller, KeyStore, allows, parse_key

CA = "0123456789abcdef" * 4
NOW = 1_000_000.0
DAY = 86_400.0


@pytest.fixture
def store(tmp_path):
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
def key(store):
    return store.create("ann", "submitter", NOW, fingerprint=CA)


def test_a_key_tells_who_calls(store, key):
    assert store.who(key, NOW) == Caller(user="ann", scope="submitter", key_id=parse_key(key).id)
    assert parse_key(f" {key}\n").fingerprint == CA
    assert key not in repr(parse_key(key))


def test_a_key_is_told_once_and_kept_as_a_digest(key, tmp_path):
    text = (tmp_path / "keys.json").read_text()
    assert key not in text
    assert key.partition(".")[2] not in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_any_other_text_is_nobody(store, key):
    for n, sign in enumerate(key):
        changed = key[:n] + ("b" if sign != "b" else "c") + key[n + 1 :]
        assert store.who(changed, NOW) is None
    for text in ("", key + " ", key[:-1], key + "A", " " + key, key.upper(), "é" + key, "\ud800", key + "\n"):
        assert store.who(text, NOW) is None


@given(st.text())
def test_whatever_is_given_as_a_key_is_refused_in_words(text):
    with pytest.raises(BadToken):
        parse_key(text)


def test_keys_of_one_store_are_nobody_in_another(store, key, tmp_path):
    other = KeyStore(tmp_path / "other.json")
    assert other.who(key, NOW) is None
    other.create("bob", "viewer", NOW, fingerprint=CA)
    assert other.who(key, NOW) is None


def test_a_key_ends_when_it_should(store):
    key = store.create("ann", "viewer", NOW, fingerprint=CA, expires_s=NOW + 10)
    assert store.who(key, NOW + 9)
    assert store.who(key, NOW + 10) is None


def test_a_key_that_has_ended_is_listed_for_a_week(store):
    def create(user, now, expires_s):
        store.create(user, "viewer", now, fingerprint=CA, expires_s=expires_s)

    create("ann", NOW, NOW + 10)
    create("bob", NOW, None)
    create("cy", NOW + 7 * DAY, None)
    assert [i.user for i in store.list()] == ["ann", "bob", "cy"]
    create("dee", NOW + 10 + 7 * DAY, None)
    assert [i.user for i in store.list()] == ["bob", "cy", "dee"]


def test_revoking_holds_at_once_for_every_reader(store, key, tmp_path):
    reader = KeyStore(tmp_path / "keys.json")
    assert reader.who(key, NOW)
    assert store.revoke(parse_key(key).id)
    assert reader.who(key, NOW) is None
    assert not store.revoke(parse_key(key).id)


def test_the_list_says_all_but_the_secret(store, key):
    store.create("ann", "viewer", NOW + 1, fingerprint=CA, expires_s=NOW + 5)
    store.create("abe", "operator", NOW + 2, fingerprint=CA)
    assert [(i.user, i.scope, i.created_s, i.expires_s) for i in store.list()] == [
        ("abe", "operator", NOW + 2, None), ("ann", "submitter", NOW, None), ("ann", "viewer", NOW + 1, NOW + 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("user", "scope", "fingerprint"), [("", "viewer", CA), ("a b", "viewer", CA), ("ann", "root", CA), ("ann", "viewer", "x")]
)
def test_what_makes_no_key(store, user, scope, fingerprint):
    with pytest.raises((BadValue, BadToken)):
        store.create(user, scope, NOW, fingerprint=fingerprint)
    assert store.list() == []


def test_each_scope_allows_all_before_it():
    table = [[allows(have, need) for need in SCOPES] for have in SCOPES]
    assert table == [[True, False, False], [True, True, False], [True, True, True]]
