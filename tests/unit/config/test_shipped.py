"""The shipped folders are found in a checkout and in an installed wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dgpunet_dask.config.shipped import shipped
from dgpunet_dask.errors import MissingPath
from tests.helpers import ROOT


@pytest.mark.parametrize("kind", ["workloads", "policies"])
def test_a_checkout_uses_its_own_folders(kind):
    assert shipped(kind) == ROOT / kind


def test_an_installation_without_the_folder_says_where_it_looked(tmp_path):
    with pytest.raises(MissingPath, match="_shipped"):
        shipped("workloads", package=tmp_path / "dgpunet_dask")


def test_a_folder_beside_an_installed_package_is_not_taken_for_ours(tmp_path):
    (tmp_path / "workloads").mkdir()
    with pytest.raises(MissingPath):
        shipped("workloads", package=tmp_path / "dgpunet_dask")


@pytest.mark.long
def test_the_wheel_carries_the_folders(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", ROOT], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "target", wheel], check=True, capture_output=True)
    code = "from dgpunet_dask.config.shipped import shipped; print(shipped('workloads')); print(shipped('policies'))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'target')!r}); {code}"]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [Path(line) for line in out]
    assert found == [tmp_path / "target/dgpunet_dask/_shipped/workloads", tmp_path / "target/dgpunet_dask/_shipped/policies"]
    for folder in found:
        ours = _tracked(ROOT / folder.name)
        assert ours
        assert ours <= {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def _tracked(folder: Path) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "."], cwd=folder, check=True, capture_output=True, text=True).stdout
    return {line for line in listed.splitlines() if (folder / line).exists()}
