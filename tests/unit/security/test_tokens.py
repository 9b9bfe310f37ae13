from __future__ import annotations

import stat
import string
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadToken, BadValue, TokenRefused
from dgpunet_dask.security.tokens import REPEAT_S, TokenStore, parse_token
from tests.helpers import ROOT

CA = "0123456789abcdef" * 4
NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "tokens.json")


@pytest.fixture
def token(store):
    return store.create("xps", ["10.1.0.1:8787"], CA, ttl_s=600, now=NOW)


def reason(store, token, host="xps", now=NOW, digest="") -> str:
    with pytest.raises(TokenRefused) as caught:
        store.redeem(token, host=host, now=now, request_digest=digest)
    assert caught.value.reasons == [{"code": caught.value.fields["reason"]}]
    return caught.value.fields["reason"]


def test_a_token_says_where_the_head_is_and_which_authority_it_has(store):
    text = store.create("xps", ["10.1.0.1:8787", ("fd00::1", 8787), "[FD00::2]:1", "m18.home:65535"], CA, ttl_s=600, now=NOW)
    assert text.startswith(f"DG10{CA}::")
    parsed = parse_token(f"  {text}\n")
    assert parsed.addresses == ("10.1.0.1:8787", "[fd00::1]:8787", "[FD00::2]:1", "m18.home:65535")
    assert parsed.fingerprint == CA
    assert parsed.text == text
    assert parsed.secret not in repr(parsed)


def test_every_token_is_another(store):
    texts = {store.create("xps", ["a:1"], CA, ttl_s=1, now=NOW) for _ in range(20)}
    assert len({parse_token(t).id for t in texts}) == len({parse_token(t).secret for t in texts}) == 20


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: "", "does not begin with DG10"),
        (lambda t: t.replace("DG10", "DG11"), "does not begin with DG10"),
        (lambda t: t[4:], "does not begin with DG10"),
        (lambda t: t[:68], "1 of 3 parts"),
        (lambda t: t[:100], "2 of 3 parts"),
        (lambda t: t[:-12], "no address"),
        (lambda t: t.replace(CA, CA[:-1]), "fingerprint"),
        (lambda t: t.replace(CA, CA.upper()), "fingerprint"),
        (lambda t: t.replace(".", "", 1), "id and a secret"),
        (lambda t: t + ",", "no address"),
        (lambda t: t.replace(":8787", ":0"), "no address"),
        (lambda t: t.replace(":8787", ":65536"), "no address"),
        (lambda t: t.replace(":8787", ":٤"), "no token has"),
        (lambda t: t.replace(":8787", ""), "no address"),
        (lambda t: t.replace("10.1.0.1:", "fd00::1:"), "no address"),
        (lambda t: t.replace("10.1.0.1", "[10.1.0.1]"), "no address"),
        (lambda t: t.replace("10.1.0.1", "[fe80::1%eth0]"), "no address"),
        (lambda t: t.replace("10.1.0.1", "a/b"), "no address"),
        (lambda t: t.replace("10.1.0.1", "a@b"), "no address"),
        (lambda t: t + "\nx", "no address"),
        (lambda t: t + "\0", "no address"),
        (lambda t: t + ",a:1" * 2000, "longer than any"),
    ],
)
def test_a_token_that_is_not_whole_is_refused_in_words_that_do_not_repeat_it(token, change, why):
    with pytest.raises(BadToken, match=why) as caught:
        parse_token(change(token))
    assert parse_token(token).secret not in str(caught.value)


@given(st.one_of(
    st.text(),
    st.text(alphabet="DG10:.,[]%/@\n\0" + string.hexdigits, max_size=300),
    st.tuples(st.text(max_size=60), st.text(max_size=60)).map(lambda pair: f"DG10{CA}::{'a' * 12}.{'A' * 43}::{pair[0]}:{pair[1]}"),
    st.text(alphabet="0123456789:.,[]abf", max_size=60).map(lambda end: f"DG10{CA}::{'a' * 12}.{'A' * 43}::{end}"),
))  # fmt: skip
def test_whatever_is_given_as_a_token_is_refused_or_comes_back_the_same(text):
    try:
        parsed = parse_token(text)
    except BadToken:
        return
    assert parse_token(parsed.text) == parsed
    assert all(0 < int(address.rpartition(":")[2]) < 65_536 for address in parsed.addresses)
    assert not set(parsed.text) & set("/@%\n\0 ")


def test_a_token_works_once(store, token):
    info = store.redeem(token, host="xps", now=NOW + 1)
    assert (info.host, info.state, info.used_s) == ("xps", "used", NOW + 1)
    assert reason(store, token, now=NOW + 2) == "used"


def test_the_secret_is_not_kept(store, token, tmp_path):
    text = (tmp_path / "tokens.json").read_text()
    assert parse_token(token).secret not in text
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600


def test_each_refusal_has_its_reason(store, token):
    parsed = parse_token(token)
    assert reason(store, token, host="zen") == "other_host"
    assert reason(store, token, now=NOW + 600) == "expired"
    assert reason(store, token.replace(CA, "f" * 64)) == "other_cluster"
    assert reason(store, token.replace(parsed.id, "0" * 12)) == "unknown"
    assert reason(store, token.replace(parsed.secret, "A" * 43)) == "unknown"
    assert store.redeem(token, host="XPS", now=NOW).host == "xps"  # none of the refusals used it up


def test_who_has_no_secret_learns_nothing_of_a_token(store, token):
    parsed = parse_token(token)
    store.redeem(token, host="xps", now=NOW)
    forged = token.replace(parsed.secret, "A" * 43)
    assert reason(store, forged) == reason(store, forged, host="zen") == reason(store, forged, now=NOW + 10_000) == "unknown"


def test_a_store_without_tokens_knows_none(store):
    assert reason(store, f"DG10{CA}::{'a' * 12}.{'A' * 43}::a:1") == "unknown"
    with pytest.raises(BadToken):
        store.redeem("x", host="xps", now=NOW)


def test_the_same_request_may_be_repeated_for_a_minute(store, token):
    store.redeem(token, host="xps", now=NOW, request_digest="one")
    assert store.redeem(token, host="xps", now=NOW + REPEAT_S - 1, request_digest="one").used_s == NOW
    assert reason(store, token, digest="two") == "used"
    assert reason(store, token, digest="") == "used"
    assert reason(store, token, host="zen", digest="one") == "other_host"
    assert reason(store, token, now=NOW + REPEAT_S, digest="one") == "used"


def test_without_a_digest_nothing_may_be_repeated(store, token):
    store.redeem(token, host="xps", now=NOW)
    assert reason(store, token, digest="") == "used"


def test_revoking(store, token):
    name = parse_token(token).id
    assert store.revoke(name)
    assert not store.revoke(name)
    assert not store.revoke("f" * 12)
    assert reason(store, token) == "revoked"
    store.create("zen", ["a:1"], CA, ttl_s=600, now=NOW)
    used = store.create("zen", ["a:1"], CA, ttl_s=600, now=NOW)
    store.redeem(used, host="zen", now=NOW)
    assert store.revoke_host("ZEN") == 1
    assert store.revoke_host("zen") == 0


def test_the_list_tells_states_and_forgets_after_a_week(store, token):
    used = store.create("zen", ["a:1"], CA, ttl_s=10, now=NOW + 1)
    store.redeem(used, host="zen", now=NOW + 2)
    gone = store.create("box", ["a:1"], CA, ttl_s=10, now=NOW + 3)
    store.revoke(parse_token(gone).id)
    assert [(i.host, i.state) for i in store.list(NOW + 5)] == [("box", "revoked"), ("zen", "used"), ("xps", "open")]
    assert [i.state for i in store.list(NOW + 601)] == ["revoked", "used", "expired"]
    store.create("new", ["a:1"], CA, ttl_s=10, now=NOW + 8 * 86_400)
    assert [i.host for i in store.list(NOW + 8 * 86_400)] == ["new"]


@pytest.mark.parametrize(
    ("host", "addresses", "error"),
    [("", ["a:1"], BadValue), ("a b", ["a:1"], BadValue), ("x", [], BadValue), ("x", ["a"], BadToken), ("x", ["a::1:1"], BadToken),
     ("a" * 65, ["a:1"], BadValue), ("10.0.0.1", ["a:1"], BadValue), ("a..b", ["a:1"], BadValue)],
)  # fmt: skip
def test_what_makes_no_token(store, host, addresses, error):
    with pytest.raises(error):
        store.create(host, addresses, CA, ttl_s=1, now=NOW)
    assert store.list(NOW) == []


def test_of_many_threads_one_redeems(tmp_path, token):
    told, go = [], threading.Barrier(8)

    def try_it(n):
        other = TokenStore(tmp_path / "tokens.json")
        go.wait()
        try:
            told.append(other.redeem(token, host="xps", now=NOW, request_digest=f"request {n}").state)
        except TokenRefused as error:
            told.append(f"refused: {error.fields['reason']}")

    threads = [threading.Thread(target=try_it, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["refused: used"] * 7 + ["used"]


def test_of_several_processes_one_redeems(tmp_path, token):
    code = f"""
import sys
from pathlib import Path
from dgpunet_dask.errors import TokenRefused
from dgpunet_dask.security.tokens import TokenStore
store = TokenStore(Path({str(tmp_path / "tokens.json")!r}))
sys.stdin.read(1)
try:
    store.redeem({token!r}, host="xps", now={NOW}, request_digest=sys.argv[1])
    print("won")
except TokenRefused as error:
    print(error.fields["reason"])
"""
    start = [sys.executable, "-c", code]
    children = [
        subprocess.Popen([*start, str(n)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(3)
    ]
    for child in children:
        child.stdin.write("go")
        child.stdin.flush()
    assert sorted(child.communicate()[0].strip() for child in children) == ["used", "used", "won"]
