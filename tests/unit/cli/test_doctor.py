"""`doctor` and `report` from the command line, in this process."""

from __future__ import annotations

import json
import tarfile

import pytest

from dgpunet_dask.cli import doctor as doctor_module
from dgpunet_dask.cli.main import run
from dgpunet_dask.cluster.config import ClusterConfig, write_config
from dgpunet_dask.errors import LoopbackOnly, NoHead, NotAllowed
from tests.unit.observe.facts import facts

HEX = "0123456789abcdef" * 4
SECRETS = {
    "key": f"DGK1{HEX}::id.KEYhunter2::", "token": f"DG10{HEX}::id.TOKhunter2::10.0.0.1:8787", "header": "Authorization: Bearer HEAhunter2",
    "url": "postgres://me:URLhunter2@host/x", "pem": "-----BEGIN EC PRIVATE KEY-----\nPEMhunter2\n-----END EC PRIVATE KEY-----",
    "named": "password=NAMhunter2", "env": "HF_TOKEN=ENVhunter2",
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch, home):
    """Facts of a healthy machine, to be changed; no probe of this one is asked."""
    changed = {}
    monkeypatch.setattr(doctor_module, "local_facts", lambda context, **asked: facts(**changed))
    return changed


class Head:
    """A head that answers what a test wants."""

    def __init__(self, document=None, error=None):
        self.document, self.error = document, error

    def doctor(self):
        if self.error is not None:
            raise self.error
        return self.document

    def status(self):
        return {"workers": [{"name": "w", "host": "pc", "device": "pc/cpu", "state": "running"}]}


@pytest.fixture
def reach(monkeypatch):
    def put(head):
        monkeypatch.setattr("dgpunet_dask.cli.context.CliContext.head_runs", lambda self: True)
        monkeypatch.setattr("dgpunet_dask.cli.context.CliContext.reach", lambda self: head)

    return put


def test_a_healthy_machine_is_code_0(machine, capfd):
    assert run(["doctor"]) == 0
    out, err = capfd.readouterr()
    assert "hardware\n--------\n" in out
    assert out.splitlines()[-1].endswith("0 warnings, 0 faults")
    assert err == ""


def test_warnings_alone_are_code_0_and_a_fault_is_3(machine, capfd):
    machine["power.source"] = "battery"
    assert run(["doctor"]) == 0
    machine["cards.0.present"] = False
    assert run(["doctor"]) == 3
    assert "cure" in capfd.readouterr().out


def test_json_alone_is_on_stdout(machine, capfd):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["error"] is None
    assert found["summary"]["fault"] == 0
    assert set(found["findings"][0]) == {"check", "level", "cause", "subject", "what", "evidence", "cure"}
    machine["cards.0.present"] = False
    assert run(["doctor", "--json"]) == 3
    found = json.loads(capfd.readouterr().out)
    assert found["error"]["code"] == "check_failed"
    assert found["summary"]["fault"] == 1


def test_quiet_says_only_what_is_wrong(machine, capfd):
    machine["power.source"] = "battery"
    assert run(["-q", "doctor"]) == 0
    assert [line for line in capfd.readouterr().out.splitlines() if ": " in line and not line.startswith(" ")] == [
        "! pc: runs on its battery: cards are slowed, and the machine will stop"
    ]


@pytest.mark.parametrize("words", [["--head", "10.0.0.1"], ["DG10x"], ["--pre", "not-a-token"], ["--pre", "--head", "a:b"]])
def test_usage(machine, words):
    assert run(["doctor", *words]) == 2


def test_before_joining_the_way_to_the_head_counts(machine, capfd):
    assert run(["doctor", "--pre"]) == 0
    capfd.readouterr()
    assert run(["doctor", "--pre", "--head", "127.0.0.1:1", "--json"]) == 3
    found = json.loads(capfd.readouterr().out)
    assert [f["check"] for f in found["findings"] if f["level"] == "fault"] == ["head_reach"]


def test_all_hosts_of_a_cluster_or_one(machine, reach, capfd):
    reach(Head({"hosts": {"a": {"facts": facts("a"), "state": "lost"}, "b": {"facts": facts("b"), "state": "ready"}}}))
    assert run(["doctor"]) == 3
    assert "× a: nothing has been heard of it" in capfd.readouterr().out
    assert run(["doctor", "--host", "b"]) == 0
    assert " a:" not in capfd.readouterr().out
    assert run(["doctor", "--host", "c"]) == 102


def test_the_heads_own_machine_is_asked_all(machine, reach, home, capfd):
    config = ClusterConfig(membership="head", cluster="c", host="a", address="127.0.0.1", api=("127.0.0.1:8787",), fingerprint="0" * 64)
    write_config(home.cluster_file, config)
    machine["power.source"] = "battery"
    reach(Head({"hosts": {"a": {"facts": {}, "state": "ready"}, "b": {"facts": {}, "state": "ready"}}}))
    assert run(["doctor"]) == 0
    assert "! a: runs on its battery" in capfd.readouterr().out


def test_a_head_on_loopback_knows_this_machine_alone(machine, reach, capfd):
    reach(Head(error=LoopbackOnly(what="doctor")))
    assert run(["doctor"]) == 3  # the card has no worker
    assert "1 cards, and 0 workers" in capfd.readouterr().out


def test_a_head_that_does_not_answer_is_a_fault_here_and_102_elsewhere(machine, reach):
    reach(Head(error=NoHead(where="x")))
    assert run(["doctor"]) == 3
    assert run(["--cluster", "https://127.0.0.1:8787", "doctor"]) == 102


@pytest.fixture
def member(home):
    """Make this machine a host of a cluster."""
    config = ClusterConfig(membership="node", cluster="c", host="xps", address="127.0.0.1", api=("10.0.0.1:8787",), fingerprint="0" * 64)
    write_config(home.cluster_file, config)


def test_on_a_host_whose_head_does_not_answer_the_cure_is_told(machine, member, reach, capfd):
    reach(Head(error=NoHead(where="x")))
    assert run(["doctor", "--json"]) == 3
    (fault,) = [f for f in json.loads(capfd.readouterr().out)["findings"] if f["level"] == "fault"]
    assert (fault["check"], fault["subject"]) == ("head_reach", "xps -> head")
    assert "token create xps" in fault["cure"]
    assert "join TOKEN" in fault["cure"]


def test_on_a_host_without_a_key_its_own_machine_is_examined(machine, member, reach, capfd):
    reach(Head(error=NotAllowed(what="GET /v1/doctor", why="no key")))
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["findings"]
    assert [f["check"] for f in found if f["level"] == "warn"] == ["head"]
    assert "disk" in {f["check"] for f in found}
    assert run(["--cluster", "https://127.0.0.1:8787", "doctor"]) == 2


@pytest.fixture
def logs(home):
    """Logs with a secret in each place that they may stand in, and a stage's output."""
    folder = home.run / "logs"
    folder.mkdir()
    text = "".join(f"2026-01-01 10:00:00,1 INFO x: {secret}\n" for secret in SECRETS.values())
    (home.run / "dashboard.secret").write_text("d1hunter2")
    text += "2026-01-01 10:00:00,1 INFO dashboard at: http://127.0.0.1:8787/d1hunter2/status\n"
    (folder / "head.log").write_text(f"{text}2026-01-01 10:00:01,0 INFO x: all is well in {home.root}\n")
    (folder / "stage-embed.log").write_text("2026-01-01 10:00:00,1 INFO y: loaded\nthe user's prompt\nValueError: the user's prompt\n")
    (home.policy / "human").mkdir(parents=True)
    (home.policy / "human" / "mine.yaml").write_text("version: 1\nrules: []\n# a remark\n")
    (home.root / "decisions").mkdir()
    (home.root / "decisions" / "decisions-000001.jsonl").write_text('{"event": "placed", "device": "4090l"}\n')
    return folder


def unpacked(path):
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2]: archive.extractfile(member).read().decode() for member in archive.getmembers()}


def test_a_report_holds_no_secret_and_no_text_of_the_user(machine, logs, tmp_path, capfd):
    path = tmp_path / "r.tar.gz"
    assert run(["report", "--yes", "--out", str(path)]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = unpacked(path)
    assert {"CONTENTS.txt", "versions.json", "cluster.json", "findings.json", "jobs.json", "policies.txt", "logs/head.log"} <= set(found)
    whole = "\n".join(found.values())
    assert "hunter2" not in whole
    assert "the user's prompt" not in whole
    assert "a remark" not in whole
    assert "human/mine.yaml" in found["policies.txt"]
    assert "all is well" in found["logs/head.log"]
    assert "4090l" in found["decisions-000001.jsonl"]
    assert json.loads(found["cluster.json"])["hosts"]["pc"]["facts"]["cards"]
    assert [line.split()[0] for line in err.splitlines()[1:]] == [*found]
    assert "lines left out: 1" in err


def test_a_report_with_all_that_is_asked_for(machine, logs, tmp_path):
    path = tmp_path / "r.tar.gz"
    assert run(["report", "--yes", "--with-policies", "--with-stage-logs", "--anonymous", "--out", str(path)]) == 0
    found = unpacked(path)
    assert "the user's prompt" in found["logs/stage-embed.log"]
    assert "a remark" in found["policies/human_mine.yaml"]
    assert "pc" not in json.loads(found["cluster.json"])["hosts"]
    assert "hunter2" not in "\n".join(found.values())
    assert "10.0.0.2" not in found["cluster.json"]


def test_without_a_terminal_nothing_is_written_unless_told(machine, logs, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["report"]) == 0
    assert "Nothing was written. Add --yes" in capfd.readouterr().err
    assert run(["report", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["path"] is None
    assert not list(tmp_path.iterdir())


def test_a_report_replaces_no_file(machine, tmp_path):
    path = tmp_path / "r.tar.gz"
    path.write_text("mine")
    assert run(["report", "--yes", "--out", str(path)]) == 2
    assert path.read_text() == "mine"
    assert run(["report", "--yes", "--out", str(tmp_path / "no" / "r.tar.gz")]) == 2
