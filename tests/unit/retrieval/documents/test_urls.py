from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import MalformedFile
from dgpunet_dask.retrieval.documents.urls import BadUrlError, Target, is_public, target_of, urls_in


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "::7f00:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_that_are_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(address):
    assert is_public(f"::ffff:{address}") == is_public(f"64:ff9b::{address}") == is_public(str(address))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://example.com", Target(False, "example.com", 80, "/")),
        ("HTTPS://Example.com:8443/a/b?c=d#e", Target(True, "example.com", 8443, "/a/b?c=d")),
        ("https://bücher.example/ü?ö", Target(True, "xn--bcher-kva.example", 443, "/%C3%BC?%C3%B6")),
        ("http://[::1]:8080/x", Target(False, "::1", 8080, "/x")),
    ],
)
def test_an_address_says_where_it_leads(url, target):
    assert target_of(url) == target


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "file:///etc/passwd", "javascript:x", "//example.com/"])
def test_what_is_not_of_the_web_is_refused(url):
    with pytest.raises(BadUrlError):
        target_of(url)


@pytest.mark.parametrize(
    "rest",
    [
        "", "/x", "a b", "a/\r\nX: y", "u:p@example.com/", "u@example.com", "example.com:99999/", "example.com:x/", "[::1", "a\\b", "x" * 5000,
        "\u2100.example..com/", "a\x00b/",
    ],
)  # fmt: skip
def test_what_is_no_address_to_fetch_is_refused(rest):
    with pytest.raises(BadUrlError):
        target_of("http://" + rest)


@given(st.text(max_size=40).map("http://{}".format))
def test_whatever_is_accepted_makes_one_request_line(url):
    try:
        target = target_of(url)
    except BadUrlError:
        return
    assert target.host.isascii()
    assert target.target.startswith("/")
    assert target.target.isascii()
    assert not any(c.isspace() or ord(c) < 33 for c in target.target)


def test_a_list_gives_each_address_once():
    text = "# pages\n\nhttp://example.com/a#one\r\n  https://example.com/b  \nhttp://example.com/a#two\n"
    assert urls_in(text, "list.txt") == ["http://example.com/a", "https://example.com/b"]


def test_every_mistake_of_a_list_is_told_at_once():
    with pytest.raises(MalformedFile) as caught:
        urls_in("http://example.com\nftp://example.com\nwhat\n", "list.txt")
    assert [(p.line, p.col) for p in caught.value.problems] == [(2, 1), (3, 1)]
    with pytest.raises(MalformedFile, match=r"list.txt:3:1.*2 addresses"):
        urls_in("http://a.example\nhttp://b.example\nhttp://c.example\nhttp://d.example", "list.txt", urls_max=2)
