"""The policies of a head: taken at once where they are right, never where they are not, and told to each scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.cluster.policy_watch import Places
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import policies as policies_module
from dgpunet_dask.daemons.policies import Policies
from dgpunet_dask.errors import MalformedFile, StartFailed

OFF = "version: 1\nrules:\n- {name: off, deny: [{device: %s}]}\n"


class Plugin:
    """Takes policies, unless it is away."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.away = False

    async def __call__(self, sources: Sequence[tuple[str, str, str]]) -> None:
        if self.away:
            raise StartFailed(why="the scheduler does not answer", logs="-")
        self.told.append([text for text, _, _ in sources])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "mine.yaml"
    made.write_text(OFF % "b")
    return made


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def made(tmp_path: Path, plugin: Plugin, *given: Path) -> Policies:
    return Policies(Places(Home(tmp_path / "h"), given), plugin)


async def test_without_files_there_is_nothing_to_tell(tmp_path: Path, plugin: Plugin) -> None:
    policies = made(tmp_path, plugin)
    policies.load()
    assert policies.told
    policies.lost()
    assert policies.told
    assert policies.status()["files"] == []


async def test_a_change_is_taken_and_told(tmp_path: Path, plugin: Plugin, file: Path) -> None:
    policies = made(tmp_path, plugin, file)
    policies.load()
    before = policies.policy.digest
    assert not policies.told
    write(file, OFF % "a")
    found = await policies.reload()
    assert plugin.told == [[OFF % "a"]]
    assert policies.told
    assert found["digest"] != before
    assert found["error"] is None


async def test_a_bad_file_leaves_the_old_one_in_force_until_it_is_mended(tmp_path: Path, plugin: Plugin, file: Path) -> None:
    policies = made(tmp_path, plugin, file)
    policies.load()
    before = policies.policy
    for bad in ("version: 1\nrules: [{nme: x}]\n", "\x00", "version: 99\n"):
        write(file, bad)
        found = await policies.reload()
        assert found["error"]["code"] in {"malformed_file", "newer_format"}
        assert policies.policy is before
    file.unlink()  # noqa: ASYNC240  # a file of this test
    assert (await policies.reload())["error"]["code"] == "missing_path"
    write(file, OFF % "b")
    assert (await policies.reload())["error"] is None
    assert policies.policy == before


async def test_a_malformed_file_at_the_start_is_an_error(tmp_path: Path, plugin: Plugin, file: Path) -> None:
    write(file, "version: 1\nrules: [{nme: x}]\n")
    with pytest.raises(MalformedFile):
        made(tmp_path, plugin, file).load()


async def test_a_new_scheduler_is_told_again_however_long_it_is_away(
    tmp_path: Path, plugin: Plugin, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies_module, "RETRY_S", 0.001)
    policies = made(tmp_path, plugin, file)
    policies.load()
    plugin.away = True
    running = asyncio.create_task(policies.run())
    await asyncio.sleep(0)
    assert not policies.told
    plugin.away = False
    await asyncio.wait_for(policies.settled(), 5)
    policies.lost()
    assert not policies.told
    await asyncio.wait_for(policies.reload(), 5)
    assert policies.told
    running.cancel()
    assert len(plugin.told) >= 2


async def test_the_watch_reads_what_has_come_to_rest(tmp_path: Path, plugin: Plugin, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies_module, "PERIOD_S", 0.001)
    policies = made(tmp_path, plugin, file)
    policies.load()
    running = asyncio.create_task(policies.run())
    await asyncio.wait_for(policies.settled(), 5)
    before = policies.policy.digest
    write(file, OFF % "a")
    async with asyncio.timeout(5):
        while policies.policy.digest == before:  # noqa: ASYNC110  # a file gives no event
            await asyncio.sleep(0.001)
    running.cancel()


async def test_cases_that_have_passed_are_not_run_again_for_generated_files(
    tmp_path: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "h")
    for part, text in (("human", OFF % "b"), ("generated", "version: 1\nrules: []\n")):
        write(home.policy / part / "p.yaml", text)
    write(home.policy / "tests" / "p.yaml", "version: 1\npolicies: [../human/p.yaml]\ncases: []\n")
    runs: list[Any] = []
    monkeypatch.setattr(policies_module, "check_cases", runs.append)
    policies = made(tmp_path, plugin)
    policies.load()
    for comment in ("a", "b"):
        write(home.policy / "generated" / "p.yaml", f"# {comment}\nversion: 1\nrules: []\n")
        assert (await policies.reload())["error"] is None
    assert len(runs) == 1
    write(home.policy / "human" / "p.yaml", OFF % "a")
    await policies.reload()
    assert len(runs) == 2
