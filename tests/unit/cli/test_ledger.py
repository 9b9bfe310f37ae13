"""`dgpunet-dask ledger`: what its commands print and how they end."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.cli.main import run
from tests.unit.daemons.ledger_homes import Kept
from tests.unit.jobs.ledgers import held


@pytest.fixture
def kept(home):
    made = Kept(home)
    made.begin("a")
    made.commit("a", 0, 1)
    return made


def test_a_good_ledger(kept, capsys):
    assert run(["ledger", "check"]) == 0
    assert "1 jobs, 2 units, 2 attempts" in capsys.readouterr().out
    assert run(["ledger", "check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["jobs"], told["units"], told["faults"], told["error"]) == (1, 2, [], None)


def test_a_ledger_that_does_not_agree_with_itself_is_code_3(kept, capsys):
    with held(kept.home.ledger) as one:
        one.sql("UPDATE tallies SET attempts = attempts + 1")
    assert run(["ledger", "check"]) == 3
    assert "fault: a tally that does not agree with the units (a)" in capsys.readouterr().out
    assert run(["ledger", "check", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "check_failed"


def test_a_damaged_ledger_is_code_3_and_none_at_all_code_2(kept, capsys):
    kept.home.ledger.write_bytes(b"\xff" * 65536)
    assert run(["ledger", "check", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["jobs"] is None
    (fault,) = told["faults"]
    assert "dgpunet-dask ledger restore" in fault["fault"]
    assert "submit again" not in fault["fault"]
    assert run(["ledger", "check"]) == 3
    assert capsys.readouterr().out.endswith("\n1 fault\n")
    kept.home.ledger.unlink()
    assert run(["ledger", "check"]) == 2


def test_putting_a_copy_back_tells_what_was_done(kept, capsys):
    copy = kept.copy(at=0.0)
    kept.begin("b")
    kept.lose_results("a")
    assert run(["ledger", "restore"]) == 0
    done = capsys.readouterr()
    assert "has 2 jobs and 0 committed units" in done.out
    assert "1 jobs were taken from what lies here" in done.out
    assert "2 commits have no files here" in done.out
    assert "the ledger before is in" in done.out
    assert "d" * 64 in done.err
    assert run(["ledger", "restore", "--from", str(kept.home.backups / copy.name), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["jobs"], told["units"], told["from_disk"], told["error"]) == (2, 0, ["b"], None)


def test_a_ledger_is_made_anew(kept, capsys):
    kept.home.ledger.unlink()
    assert run(["ledger", "rebuild", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["jobs"], told["units"]) == (1, 2)


@pytest.mark.parametrize("command", ["restore", "rebuild"])
def test_beside_a_head_nothing_is_done(kept, capsys, monkeypatch, command):
    kept.copy()
    monkeypatch.setattr("dgpunet_dask.daemons.restoring.current_head", lambda home: object())
    before = kept.home.ledger.read_bytes()
    assert run(["ledger", command]) == 2
    assert "dgpunet-dask down" in capsys.readouterr().err
    assert kept.home.ledger.read_bytes() == before


def test_without_a_copy_it_says_where_it_looked(kept, capsys):
    assert run(["ledger", "restore"]) == 2
    assert "backups" in capsys.readouterr().err
