"""The settings at a head's start: the file's, else those of the head that was killed, never the defaults in place of what was set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import DEFAULTS, SettingsWatch
from dgpunet_dask.daemons.handing_on import followed_settings, hand_on_settings, load_settings
from dgpunet_dask.errors import MalformedFile

RIGHT = "version: 1\nquotas: {jobs: 7}\n"
WRONG = "version: 1\nquotas: {jobs: seven}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


def started(home: Home, *, resumes: bool) -> SettingsWatch:
    watch = followed_settings(home)
    load_settings(watch, home.settings_in_force, resumes=resumes)
    return watch


def test_the_file_counts_from_the_start(home: Home) -> None:
    home.config.write_text(RIGHT)
    for resumes in (False, True):
        assert started(home, resumes=resumes).settings.quotas.everybody.jobs == 7


def test_a_wrong_file_ends_a_head_that_is_started_anew(home: Home) -> None:
    home.config.write_text(RIGHT)
    started(home, resumes=False)
    home.config.write_text(WRONG)
    with pytest.raises(MalformedFile, match=rf"{home.config}:2:16"):
        started(home, resumes=False)


def test_a_head_that_comes_back_keeps_what_was_in_force(home: Home) -> None:
    home.config.write_text(RIGHT)
    started(home, resumes=False)
    home.config.write_text(WRONG)
    for _ in range(2):  # a second kill changes nothing
        watch = started(home, resumes=True)
        assert watch.settings.quotas.everybody.jobs == 7
        assert isinstance(watch.error, MalformedFile)


def test_without_a_file_the_defaults_were_in_force(home: Home) -> None:
    started(home, resumes=False)
    home.config.write_text(WRONG)
    watch = started(home, resumes=True)
    assert (watch.settings, type(watch.error)) == (DEFAULTS, MalformedFile)


def test_a_change_is_handed_on(home: Home) -> None:
    watch = started(home, resumes=False)
    home.config.write_text(RIGHT)
    watch._take()
    home.config.write_text(WRONG)
    assert started(home, resumes=True).settings.quotas.everybody.jobs == 7


@pytest.mark.parametrize("left", [None, "{", "7", '"version: 99"', f'"{WRONG!r}"'])
def test_where_nothing_is_known_to_be_in_force_the_mistake_ends_the_head(home: Home, left: str | None) -> None:
    home.config.write_text(WRONG)
    if left is not None:
        home.settings_in_force.write_text(left)
    with pytest.raises(MalformedFile, match=":2:16"):
        started(home, resumes=True)


def test_what_cannot_be_written_leaves_nothing_older(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config.write_text(RIGHT)
    watch = started(home, resumes=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    hand_on_settings(watch, home.settings_in_force)
    assert not home.settings_in_force.exists()
