"""`join` and `head`: what they refuse before anything is started."""

from __future__ import annotations

import io

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.cluster.config import ClusterConfig, write_config


@pytest.fixture
def run(home, capfd):
    def call(*words):
        return cli_main.run(list(words)), *capfd.readouterr()

    return call


def member(home, membership):
    config = ClusterConfig(membership=membership, cluster="c", host="h", address="127.0.0.1", api=("127.0.0.1:1",), fingerprint="ab", pinned=True)
    write_config(home.cluster_file, config)


@pytest.mark.parametrize("words", [[], ["--foreground"]])
@pytest.mark.parametrize("membership", [None, "head"])
def test_a_machine_that_never_joined_needs_a_token(run, home, words, membership):
    if membership is not None:
        member(home, membership)
    code, out, err = run("join", *words)
    assert (code, out) == (2, "")
    assert "token create" in err


@pytest.mark.parametrize("token", ["", "x", "DG10", "DG10" + "a" * 400, "\udcff"])
def test_a_token_that_is_not_whole_is_refused(run, home, token):
    code, _, err = run("join", token)
    assert code == 2
    assert "Traceback" not in err
    assert not home.cluster_file.exists()


@pytest.mark.parametrize("words", [("join",), ("doctor", "--pre", "--no-canary")])
def test_a_dash_reads_the_token_from_standard_input(run, home, monkeypatch, words):
    monkeypatch.setattr("sys.stdin", io.StringIO("no token\nnor this\n"))
    told = run(*words, "-")
    assert told == run(*words, "no token")
    assert told[0] == 2


def test_a_node_does_not_become_a_head(run, home):
    member(home, "node")
    code, _, err = run("head")
    assert code == 2
    assert str(home.cluster_file) in err


def test_a_head_does_not_listen_where_this_machine_is_not(run, home):
    code, _, err = run("head", "--listen", "192.0.2.7")
    assert code == 2
    assert "192.0.2.7" in err
    assert not home.cluster_file.exists()
