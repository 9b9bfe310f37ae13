"""`install-service`: a unit for what this machine is, written where it belongs, started only where asked."""

from __future__ import annotations

import os
import sys

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.cluster.config import ClusterConfig, write_config


@pytest.fixture
def run(home, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(*words):
        return cli_main.run(list(words)), *capfd.readouterr()

    return call


def member(home, membership):
    write_config(
        home.cluster_file,
        ClusterConfig(membership=membership, cluster="c", host="h", address="10.0.0.1", api=("10.0.0.1:8787",), fingerprint="ab"),
    )


def test_a_machine_in_no_cluster_is_told_what_to_do_first(run, tmp_path):
    code, out, err = run("install-service", "--dry-run")
    assert (code, out) == (2, "")
    assert "dgpunet-dask head" in err
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize(("membership", "words"), [("head", "head"), ("node", "join --foreground")])
def test_a_dry_run_prints_the_unit_and_changes_nothing(run, home, tmp_path, membership, words):
    member(home, membership)
    code, out, err = run("install-service", "--dry-run", "--user")
    assert (code, err) == (0, "")
    assert f"ExecStart={sys.executable} -P -m dgpunet_dask.cli.main {words}\n" in out
    assert f"Environment=DGPUNET_HOME={home.root}\n" in out
    assert "Restart=always\n" in out
    assert "WantedBy=default.target\n" in out
    assert not (tmp_path / "config").exists()


def test_a_unit_is_written_and_not_started(run, home, tmp_path):
    member(home, "head")
    _, want, _ = run("install-service", "--dry-run", "--user")
    code, out, err = run("install-service", "--user", "--no-start")
    assert (code, out) == (0, "")
    folder = tmp_path / "config" / "systemd" / "user"
    assert (folder / "dgpunet-dask.service").read_text() == want
    assert os.listdir(folder) == ["dgpunet-dask.service"]
    assert "systemctl --user enable --now dgpunet-dask.service" in err


def test_a_folder_that_is_none_is_named(run, home, tmp_path):
    member(home, "head")
    (tmp_path / "config").write_text("a file")
    code, _, err = run("install-service", "--user", "--no-start")
    assert code == 2
    assert str(tmp_path / "config") in err


def test_what_systemctl_refuses_is_told(run, home, tmp_path, monkeypatch):
    member(home, "head")
    fake = tmp_path / "bin" / "systemctl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    code, _, err = run("install-service", "--user")
    assert code == 2
    assert "no bus" in err
    assert "systemctl --user daemon-reload" in err
