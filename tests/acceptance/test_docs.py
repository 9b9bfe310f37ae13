"""What the how-tos show is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.client import Client
from tests.acceptance.conftest import Cli
from tests.helpers import ROOT

pytestmark = pytest.mark.long


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Any:
    """A cluster with the fleet of the how-to."""
    fleet = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    fleet.write_text(blocks("howto/use-a-fleet-file.md", "yaml")[0])
    cli = Cli(homes / "docs")
    up = cli("up", "--simulate", fleet, timeout_s=180)
    assert up.code == 0, up.err
    yield cli
    assert cli("down", timeout_s=60).code == 0


def test_the_workload_of_the_how_to_counts_words(simulated: Cli, tmp_path: Path) -> None:
    page = "howto/write-a-workload.md"
    folder, notes = tmp_path / "words", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    (folder / "job.yaml").write_text(blocks(page, "yaml")[0])
    (folder / "stages.py").write_text(blocks(page, "python")[0])
    (notes / "a.txt").write_text("to be or not to be")
    (notes / "b.txt").write_text("to do")
    done = simulated("submit", folder, "--set", f"path={notes}", "--set", "least=2", "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"] == {"files": 2, "words": 2}
    with Client(home=simulated.home) as client:
        assert list(client.results(done.json["job_id"])) == [("to", 3), ("be", 2)]


def test_annotated_dask_tasks_know_their_card(simulated: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, ask = blocks("howto/annotate-dask-tasks.md", "python")
    monkeypatch.setenv("DGPUNET_HOME", str(simulated.home))
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    names: dict[str, Any] = {"__name__": "__main__", "items": range(4)}
    exec(compile(f"{ask}    return name, item\n", "how-to", "exec"), names)
    command = f"[{sys.executable!r}, '-m', 'dgpunet_dask.cli.main', "
    exec(compile(connect.replace('["dgpunet-dask", ', command), "how-to", "exec"), names)
    with names["client"] as client:
        placed = client.gather(names["futures"])
    assert [item for _, item in placed] == [0, 1, 2, 3]
    assert {device for device, _ in placed} <= {"4070l", "5090"}


def test_the_python_example_of_the_quickstart(simulated: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "price.py").write_text('def parse_price(text):\n    """Return the price in cents."""\n    return int(float(text) * 100)\n')
    monkeypatch.setenv("DGPUNET_HOME", str(simulated.home))
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("quickstart.md", "python")[0], "quickstart", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.split() == ["done", "1"]
