"""What a head that is started again takes over: ports where they are free, the fleet as it was, policies that were in force."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from dgpunet_dask.cluster.fleets import fleet_digest, fleet_to_json
from dgpunet_dask.cluster.policy_watch import Places
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.policies import Policies
from dgpunet_dask.daemons.resuming import free_port, head_before, kept_fleet, listen_again, load_policies, port_of
from dgpunet_dask.errors import MalformedFile
from dgpunet_dask.hardware.simulated import simulated_fleet

RIGHT = "version: 1\nrules:\n- {name: a, deny: [{host: x}]}\n"
WRONG = "version: 1\nrules:\n- {name: a, dny: []}\n"


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_is_read_from_an_address():
    assert port_of("tcp://127.0.0.1:8786") == 8786
    assert port_of("http://127.0.0.1:43351/status") == 43351
    assert [port_of(text) for text in (None, "", "http://127.0.0.1", "http://127.0.0.1:port")] == [0, 0, 0, 0]


def test_a_port_that_is_taken_is_not_free(taken):
    assert free_port(taken) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert free_port(port) == port
    assert free_port(1 << 20) == 0


def test_who_cannot_listen_where_it_was_listens_elsewhere(caplog):
    asked = []

    def listen(port):
        asked.append(port)
        if port:
            raise OSError(98, "in use")
        return "server"

    assert listen_again(listen, 8000) == "server"
    assert asked == [8000, 0]
    assert "8000" in caplog.text


@pytest.mark.parametrize("text", [None, "{", '{"version": 99}'])
def test_without_a_readable_file_there_was_no_head(home, text):
    if text is not None:
        home.head_file.write_text(text)
    assert head_before(home) is None


def test_the_fleet_stays_what_it_was(tmp_path):
    fleet = simulated_fleet(Path("policies/fleets/home5.yaml"))
    file = tmp_path / "fleet.json"
    file.write_text(json.dumps({**fleet_to_json(fleet), "probed": False}))
    assert fleet_digest(kept_fleet(file)) == fleet_digest(fleet)


@pytest.mark.parametrize("text", [None, "[", "[]", "{}"])
def test_a_fleet_that_cannot_be_read_is_looked_at_anew(tmp_path, text):
    file = tmp_path / "fleet.json"
    if text is not None:
        file.write_text(text)
    assert kept_fleet(file) is None


@pytest.fixture
def policies(home, tmp_path):
    """Those of a file that was right when the head before read it."""
    file = tmp_path / "mine.yaml"
    file.write_text(RIGHT)

    async def tell(sources):
        pass

    before = Policies(Places(home, [file]), tell)
    before.load()
    home.policies_in_force.write_text(json.dumps(list(before.sources)))
    return file, before, Policies(Places(home, [file]), tell)


def test_policies_that_have_become_wrong_leave_those_in_force(home, policies):
    file, before, after = policies
    file.write_text(WRONG)
    load_policies(after, home.policies_in_force)
    assert after.policy == before.policy
    assert after.sources == before.sources
    assert isinstance(after.error, MalformedFile)
    assert not after.told


def test_policies_that_have_changed_count(home, policies):
    file, before, after = policies
    file.write_text(RIGHT.replace("host: x", "host: y"))
    load_policies(after, home.policies_in_force)
    assert after.policy != before.policy
    assert after.error is None


def test_without_any_in_force_the_mistake_is_told(home, policies):
    file, _, after = policies
    file.write_text(WRONG)
    home.policies_in_force.write_text("{")
    with pytest.raises(MalformedFile):
        load_policies(after, home.policies_in_force)
