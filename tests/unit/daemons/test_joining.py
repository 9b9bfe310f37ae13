"""What `head` and `join` do before and after the daemons run, on this machine and without a network."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from cryptography import x509

from dgpunet_dask.cluster.config import ClusterConfig, read_config, write_config
from dgpunet_dask.daemons import joining
from dgpunet_dask.daemons.joining import choose_address, enrol, last_error, own_name, prepare_head, until_ready
from dgpunet_dask.errors import BadValue, NoHead, StartFailed, UsageError
from dgpunet_dask.security.tokens import JoinToken

NOW = 1.9e9


def head(home, **options):
    return prepare_head(home, **{"name": None, "listen": "127.0.0.1", "roles": (), "now": NOW, **options})


@pytest.mark.parametrize("name", ["a b", "a/b", "x.y", "-a", "a-", ""])
def test_a_name_that_no_device_may_have_is_refused(name):
    with pytest.raises(BadValue, match="domain"):
        own_name(name)


def test_a_host_is_called_what_the_system_calls_it_without_its_domain(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box-1.home.example")
    assert own_name(None) == "Box-1"
    assert own_name("box_2") == "box_2"


def test_an_address_that_this_machine_has_not_is_refused():
    assert choose_address("127.0.0.1", None) == ("127.0.0.1", None)
    with pytest.raises(UsageError, match=r"192\.0\.2\.7"):
        choose_address("192.0.2.7", None)


def test_a_second_start_finds_the_head_as_it_was(home):
    first = head(home, name="alpha", roles=("batch",))
    assert (first.host, first.roles, first.pinned, first.api) == ("alpha", ("head", "batch"), True, ("127.0.0.1:8787",))
    before = x509.load_pem_x509_certificate((home.pki / "node.pem").read_bytes())
    again = head(home, listen=None)
    assert again == first == read_config(home.cluster_file)
    after = x509.load_pem_x509_certificate((home.pki / "node.pem").read_bytes())
    assert after.serial_number != before.serial_number


def test_a_head_keeps_its_name_and_a_node_does_not_become_one(home):
    first = head(home, name="alpha")
    with pytest.raises(UsageError, match="alpha"):
        head(home, name="beta")
    write_config(home.cluster_file, ClusterConfig(**{**vars(first), "membership": "node"}))
    with pytest.raises(UsageError, match="down"):
        head(home)


def test_a_token_that_reaches_no_head_changes_nothing(home):
    token = JoinToken(fingerprint="ab" * 32, id="01" * 6, secret="c" * 32, addresses=("127.0.0.1:1",))
    with pytest.raises((NoHead, UsageError)):
        enrol(home, token.text, name="node-a", listen="127.0.0.1", roles=(), force=False, say=lambda _: None)
    assert read_config(home.cluster_file) is None
    assert not (home.pki / "node.pem").exists()


# Waiting for workers


def row(*states, state="ready", facts_known=True, seen=0.0):
    devices = [{"name": f"d{number}", "state": one} for number, one in enumerate(states)]
    return {"state": state, "why": "too old", "devices": devices, "seen_s_ago": seen, "facts_known": facts_known}


@pytest.fixture
def answers(monkeypatch):
    """The rows that the head gives, one after the other, the last for ever; an error is raised."""
    told = []

    class Api:
        def __init__(self, *_):
            self.turn = itertools.chain(told, itertools.repeat(told[-1]))

        def me(self):
            found = next(self.turn)
            if isinstance(found, Exception):
                raise found
            return found

    monkeypatch.setattr(joining, "AgentApi", Api)
    monkeypatch.setattr(joining, "Identity", lambda _: None)
    monkeypatch.setattr(joining, "_POLL_S", 0.001)
    return told


CONFIG = ClusterConfig(membership="node", cluster="c", host="h", address="127.0.0.1", api=("127.0.0.1:1",), fingerprint="")


def test_a_host_is_ready_once_its_cards_are_known_and_all_its_workers_run(home, answers):
    answers += [NoHead(where="here"), row("lost", facts_known=False, seen=None), row("running", facts_known=False), row("running", "lost"), row("running", "cordoned")]
    said = []
    assert until_ready(home, CONFIG, lambda: True, said.append) == answers[-1]
    assert said[-1] == "2 of 2 workers have joined"


def test_a_refused_host_is_told_at_once(home, answers):
    answers += [row("lost"), row("lost", state="refused")]
    with pytest.raises(StartFailed, match="too old"):
        until_ready(home, CONFIG, lambda: True, timeout_s=600)


def test_a_drained_host_comes_back_without_workers(home, answers):
    answers += [row("drained", state="drained", seen=1e3), row("drained", state="drained", facts_known=False), row("drained", state="drained")]
    said = []
    assert until_ready(home, CONFIG, lambda: True, said.append, timeout_s=600) == answers[-1]
    assert "uncordon h" in said[-1]


def test_what_an_earlier_agent_said_does_not_count(home, answers):
    answers += [row("running", state="refused", seen=1e3), row("running", seen=1e3), row("lost"), row("running", facts_known=True)]
    said = []
    assert until_ready(home, CONFIG, lambda: True, said.append) == answers[-1]
    assert said == ["0 of 1 workers have joined", "1 of 1 workers have joined"]


def test_daemons_that_end_are_waited_for_no_longer(home, answers):
    answers.append(row("lost"))
    living = iter([True, True, False])
    with pytest.raises(StartFailed, match="daemons ended"):
        until_ready(home, CONFIG, lambda: next(living), timeout_s=600)


def test_waiting_ends_with_what_was_seen_last(home, answers):
    answers.append(row("running", "lost"))
    with pytest.raises(StartFailed, match="1 of 2 workers"):
        until_ready(home, CONFIG, lambda: True, timeout_s=0.05)


def test_the_last_error_is_told_without_what_its_teller_says_again(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_text(
        "2026-11-27 16:00:00 ERROR dgpunet: The cluster did not start: the agent cannot listen on 10.0.0.1:8786 (Address already in use)."
        " Its logs are in /h/run/logs.\n"
    )
    told = str(StartFailed(why=f"its daemons ended{last_error(tmp_path)}", logs="/h/run/logs"))
    assert told.count("Its logs are in") == told.count("did not start") == 1
    assert "(Address already in use). Its" in told
