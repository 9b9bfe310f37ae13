"""``cluster.json`` and addresses with ports."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.cluster.config import ClusterConfig, Ports, join_host_port, read_config, split_host_port, write_config
from dgpunet_dask.errors import BadValue, NewerFormat, UsageError

CONFIG = ClusterConfig(
    membership="node", cluster="home", host="xps", address="10.0.0.2", api=("10.0.0.1:8787", "[fd00::1]:8787"), fingerprint="ab" * 32,
    roles=("batch",), pinned=True, ports=Ports(peer=9000),
)  # fmt: skip
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=6), lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=6), i), max_leaves=5)


def test_what_is_written_is_read_back_and_nobody_elses(tmp_path):
    file = tmp_path / "home" / "cluster.json"
    assert read_config(file) is None
    write_config(file, CONFIG)
    assert read_config(file) == CONFIG
    assert file.stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(["membership", "cluster", "host", "address", "api", "fingerprint", "roles", "ports", "more"]), value=JSON)
def test_a_damaged_file_names_itself_and_the_cure(tmp_path, name, value):
    """Whatever is read is of the kinds that the rest goes by."""
    file = tmp_path / "cluster.json"
    write_config(file, CONFIG)
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    try:
        found = read_config(file)
    except UsageError as error:
        told = str(error)
    else:
        told = f"{file} Remove it"
        assert found.membership in ("head", "node")
        assert all(isinstance(text, str) for text in (found.cluster, found.host, found.address, found.fingerprint, *found.api, *found.roles))
        assert all(isinstance(port, int) for port in vars(found.ports).values())
    assert str(file) in told
    assert "Remove it" in told


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "{}", "\xff", '{"version": 1}'])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "cluster.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="Remove it"):
        read_config(file)


def test_a_newer_file_is_not_touched(tmp_path):
    file = tmp_path / "cluster.json"
    file.write_text('{"version": 2}')
    with pytest.raises(NewerFormat):
        read_config(file)
    assert file.read_text() == '{"version": 2}'


def test_a_heads_api_moves_with_it_and_a_nodes_does_not():
    assert CONFIG.at("10.9.9.9").api == CONFIG.api
    head = ClusterConfig(membership="head", cluster="h", host="h", address="1.1.1.1", api=("1.1.1.1:8787",), fingerprint="")
    assert (head.at("fd00::2").api, head.at("fd00::2").scheduler) == (("[fd00::2]:8787",), "tls://[fd00::2]:8786")


@given(host=st.ip_addresses().map(str) | st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), port=st.integers(1, 65535))
def test_an_address_is_split_as_it_was_joined(host, port):
    assert split_host_port(join_host_port(host, port), 1) == (host, port)
    assert split_host_port(host, port) == (host, port)


@pytest.mark.parametrize("text", ["h:0", "h:65536", "h:x", "h:", "h:１", "h:-1", "[::1]:99999", "[::1]:", ":80", "[]:80", ""])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(BadValue):
        split_host_port(text, 8787)
