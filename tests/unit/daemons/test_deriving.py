"""The head's generated policies follow what joins and what succeeds."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from dgpunet_dask.cluster.fleets import fleet_to_json
from dgpunet_dask.cluster.generated import generated_folder, past_standings
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import deriving as deriving_module
from dgpunet_dask.daemons.deriving import Deriving
from dgpunet_dask.errors import StartFailed
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.placement.derive import TRIAL_UNITS
from dgpunet_dask.placement.estimate import Estimates

OLD = Device(name="old", host="a", model="Old", vram_mib=24576, capability=(8, 9), speed=1.0)
NEW = Device(name="new", host="b", model="New", vram_mib=16384, capability=(8, 6), speed=1.0)
HERE = Fleet((Host(name="a"),), (OLD,))
WITH_NEW = Fleet((Host(name="a"), Host(name="b")), (OLD, NEW))


def seen(fleet, **succeeded):
    return {**fleet_to_json(fleet), "charges": [], "states": {}, "succeeded": succeeded}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "h").ensure()


@pytest.fixture
def deriving(home):
    found = Deriving(home, HERE)
    found.refresh()
    return found


def texts(home):
    return {path.name: path.read_text() for path in generated_folder(home).iterdir()}


def rules(home):
    return [line for text in texts(home).values() for line in text.splitlines() if line.startswith("- name:")]


def test_a_machine_that_joins_is_tried(home, deriving):
    assert list(texts(home)) == ["a.yaml"]
    assert generated_folder(home).stat().st_mode & 0o777 == 0o700
    assert home.policy.stat().st_mode & 0o777 == 0o700
    deriving.learned = lambda: Estimates().with_run("s", None, "Old", 1.0).with_run("s", None, "New", 2.0)
    deriving.met(seen(WITH_NEW, old=7))
    assert rules(home) == ["- name: probation-new"]
    deriving.met(seen(WITH_NEW, old=9, new=1))
    deriving.met(seen(WITH_NEW, old=9, new=1))
    assert past_standings(generated_folder(home))["new"].units == 1
    deriving.met(seen(WITH_NEW, new=1))  # a scheduler that counts anew
    assert past_standings(generated_folder(home))["new"].units == 1  # the same count says nothing
    deriving.met(seen(WITH_NEW, new=TRIAL_UNITS))
    assert rules(home) == []
    assert past_standings(generated_folder(home))["new"].speed == 0.5


def test_a_restart_does_not_begin_again_and_writes_nothing(home, deriving):
    deriving.met(seen(WITH_NEW, new=2))
    before = texts(home)
    times = {path: path.stat().st_mtime_ns for path in generated_folder(home).iterdir()}
    again = Deriving(home, WITH_NEW)
    again.refresh()
    again.met(seen(WITH_NEW))
    assert texts(home) == before
    assert {path: path.stat().st_mtime_ns for path in generated_folder(home).iterdir()} == times
    again.met(seen(WITH_NEW, new=1))
    assert past_standings(generated_folder(home))["new"].tried


def test_a_new_driver_is_tried_anew(home, deriving):
    deriving.met(seen(WITH_NEW, new=TRIAL_UNITS))
    upgraded = Fleet(WITH_NEW.hosts, (OLD, replace(NEW, driver=(999,))))
    Deriving(home, upgraded).refresh()
    assert rules(home) == ["- name: probation-new"]


def test_what_is_not_there_at_the_moment_is_not_forgotten(home, deriving):
    deriving.met(seen(WITH_NEW))
    before = texts(home)
    deriving.met(seen(HERE))
    deriving.met(seen(Fleet()))
    assert texts(home) == before


def test_a_machine_that_was_renamed_keeps_the_standing_of_its_cards(home, deriving):
    deriving.met(seen(WITH_NEW, new=1))
    renamed = Fleet((Host(name="a"), Host(name="z")), (OLD, replace(NEW, host="z")))
    Deriving(home, renamed).refresh()
    assert sorted(texts(home)) == ["a.yaml", "z.yaml"]
    assert past_standings(generated_folder(home))["new"].units == 1
    assert rules(home) == ["- name: probation-new"]


def test_files_of_people_are_left_alone(home, deriving):
    human = home.policy / "human"
    human.mkdir()
    (human / "a.yaml").write_text("version: 1\n")
    deriving.met(seen(WITH_NEW))
    assert (human / "a.yaml").read_text() == "version: 1\n"


def test_a_folder_that_cannot_be_written_costs_no_cluster(home, caplog):
    home.policy.write_text("in the way")
    Deriving(home, HERE).refresh()
    assert "not up to date" in caplog.text


async def test_it_goes_on_while_the_scheduler_is_away(home, deriving, monkeypatch):
    monkeypatch.setattr(deriving_module, "PERIOD_S", 0.0)
    answers = [StartFailed(why="away", logs="x"), seen(WITH_NEW)]
    done = asyncio.Event()

    async def ask():
        if not answers:
            done.set()
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = asyncio.create_task(deriving.run(ask))
    await done.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert rules(home) == ["- name: probation-new"]


def test_rules_of_simulated_machines_are_not_in_force_for_real_ones(home, deriving):
    real = texts(home)
    elsewhere = replace(HERE, hosts=(*HERE.hosts, Host(name="simulated")))
    Deriving(home, elsewhere, simulated=True).refresh()
    Deriving(home, elsewhere, simulated=True).refresh()
    assert sorted(texts(home)) == ["a.yaml", "simulated.yaml"]
    Deriving(home, HERE).refresh()
    assert texts(home) == real, "and those of real machines stay"
    assert [path.name for path in home.policy.iterdir()] == ["generated"]


def test_rules_of_simulated_machines_are_written_into_a_new_home_too(tmp_path):
    home = Home(tmp_path / "new").ensure()
    assert not home.policy.exists()
    Deriving(home, replace(HERE, hosts=(*HERE.hosts, Host(name="simulated"))), simulated=True).refresh()
    assert "simulated.yaml" in texts(home)
