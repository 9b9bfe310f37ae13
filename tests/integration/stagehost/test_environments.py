"""Stages in interpreters of their own: other versions than ours, built once, and nothing left of a build that failed."""

import asyncio
import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from dgpunet_dask.errors import EnvironmentFailed
from dgpunet_dask.stagehost import environments
from dgpunet_dask.stagehost.environments import MARKER, ensure_environment, environment_digest, is_complete
from dgpunet_dask.stagehost.frames import pack, unpack
from tests.integration.stagehost.helpers import DIGEST, Agent, spec, until

STAGES = """
import importlib.util, sys
import numpy
from dgpunet_dask import Stage, Demand

class Old(Stage):
    demand = Demand(vram="1GiB")
    def __call__(self, batch):
        return [(numpy.__version__, importlib.util.find_spec("distributed") is None, sys.prefix) for _ in batch]
"""


def wheel(folder: Path, name: str, version: str, source: str) -> Path:
    """Write a wheel with one module into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {f: base64.urlsafe_b64encode(hashlib.sha256(t.encode()).digest()).rstrip(b"=").decode() for f, t in files.items()}
    record = [f"{file},sha256={digests[file]},{len(text)}" for file, text in files.items()]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return path


def lock(folder: Path, *requirements: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "old.lock"
    path.write_text("\n".join(["--no-index", "--find-links wheels", *requirements]) + "\n")
    return path


@pytest.fixture
def old_numpy(agent: Agent) -> Path:
    """A workload whose lock wants a numpy that nothing of ours could work with."""
    agent.write(STAGES)
    folder = agent.home.workloads / DIGEST
    wheel(folder / "wheels", "numpy", "0.0.1", '__version__ = "0.0.1"\n')
    return lock(folder, "numpy==0.0.1")


def test_a_stage_has_other_versions_than_ours(agent, old_numpy):
    called = spec("Old", env="old.lock")
    ((version, ours_hidden, prefix),) = unpack(agent.client.call(called, pack([1])).frames)
    assert version == "0.0.1" != importlib.metadata.version("numpy")
    assert ours_hidden
    assert Path(prefix).parent == agent.home.envs
    facts = agent.client.inspect(DIGEST, {"old": ("stages:Old", "old.lock"), "new": ("stages:Old", None)})
    assert facts["old"]["demand"] == facts["new"]["demand"] == {"vram": "1GiB"}
    assert not facts["old"]["light"]
    assert facts["new"]["light"]


async def test_builders_at_once_build_once(tmp_path, monkeypatch):
    wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    wanted = lock(tmp_path / "w", "tiny==1.0")
    ran = []
    real = environments._run

    async def counted(command, held, folder):
        ran.append(command)
        return await real(command, held, folder)

    monkeypatch.setattr(environments, "_run", counted)
    found = await asyncio.gather(*(ensure_environment(wanted, tmp_path / "envs", "s") for _ in range(3)))
    assert len(set(found)) == 1
    assert len([c for c in ran if "venv" in c]) == 1
    marker = json.loads((found[0].parent.parent / MARKER).read_text())
    assert marker["lock"] == hashlib.sha256(wanted.read_bytes()).hexdigest()


async def test_a_half_build_is_removed_and_built_again(tmp_path):
    wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    wanted = lock(tmp_path / "w", "tiny==1.0")
    folder = tmp_path / "envs" / environment_digest(wanted)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to("/nonexistent")
    (folder / "rubbish").touch()
    python = await ensure_environment(wanted, tmp_path / "envs", "s")
    assert python.parent.parent == folder
    assert is_complete(folder)
    assert not (folder / "rubbish").exists()


async def test_what_pip_said_is_told_and_nothing_is_left(tmp_path):
    wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    wanted = lock(tmp_path / "w", "tiny==2.0")
    with pytest.raises(EnvironmentFailed, match=r"No matching distribution found for tiny==2\.0") as caught:
        await ensure_environment(wanted, tmp_path / "envs", "embed")
    assert caught.value.fields["stage"] == "embed"
    assert [p.suffix for p in (tmp_path / "envs").iterdir()] == [".lock"]


async def test_hashes_in_a_lock_are_required_of_all(tmp_path):
    made = wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    assert await ensure_environment(lock(tmp_path / "w", f"tiny==1.0 --hash=sha256:{digest}"), tmp_path / "envs", "s")
    wheel(tmp_path / "w" / "wheels", "other", "1.0", "")
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash"):
        await ensure_environment(lock(tmp_path / "w", f"tiny==1.0 --hash=sha256:{digest}", "other==1.0"), tmp_path / "envs", "s")
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash"):
        await ensure_environment(lock(tmp_path / "w", f"tiny==1.0 --hash=sha256:{'0' * 64}"), tmp_path / "envs", "s")


async def test_a_lock_that_is_not_there_is_said(tmp_path):
    with pytest.raises(EnvironmentFailed, match=r"missing\.lock") as caught:
        await ensure_environment(tmp_path / "missing.lock", tmp_path / "envs", "embed")
    assert caught.value.fields["stage"] == "embed"


async def test_a_build_that_is_cancelled_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_steps", lambda folder, wanted: [["mkdir", str(folder)], ["sleep", "600"]])
    wanted = lock(tmp_path / "w", "tiny==1.0")
    building = asyncio.create_task(ensure_environment(wanted, tmp_path / "envs", "s"))
    folder = tmp_path / "envs" / environment_digest(wanted)
    await asyncio.to_thread(until, folder.is_dir, "the build began")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert not folder.exists()


async def test_the_pip_of_a_killed_agent_is_waited_for(tmp_path):
    wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    wanted = lock(tmp_path / "w", "tiny==1.0")
    folder = tmp_path / "envs" / environment_digest(wanted)
    async with environments.locked(folder.with_suffix(".lock")) as held:
        orphan = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, pass_fds=(held,))
    building = asyncio.create_task(ensure_environment(wanted, tmp_path / "envs", "s"))
    done, _ = await asyncio.wait({building}, timeout=0.5)
    assert not done
    assert not folder.exists()
    orphan.stdin.close()
    await orphan.wait()
    assert os.access(await building, os.X_OK)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_real_package_in_a_version_that_conflicts_with_ours(agent):
    agent.write(
        """
        import click
        from importlib.metadata import version
        from dgpunet_dask import Stage
        class Old(Stage):
            def __call__(self, batch): return [version("click")]
        """
    )
    (agent.home.workloads / DIGEST / "old.lock").write_text("click==7.1.2\n")
    assert unpack(agent.client.call(spec("Old", env="old.lock"), pack([1])).frames) == ["7.1.2"]
    assert importlib.metadata.version("click") != "7.1.2"


@pytest.mark.long
async def test_an_environment_whose_python_is_gone_is_built_again(tmp_path):
    wheel(tmp_path / "w" / "wheels", "tiny", "1.0", "")
    wanted = lock(tmp_path / "w", "tiny==1.0")
    python = await ensure_environment(wanted, tmp_path / "envs", "s")
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert await ensure_environment(wanted, tmp_path / "envs", "s") == python
    assert shutil.which(str(python))
