"""Commands and clients over a head that is killed, and what `submit` and `jobs` print, as a user has them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.cli.forms import FORMS
from dgpunet_dask.client import AsyncClient, Client
from tests.acceptance.conftest import Cli, Ran
from tests.acceptance.counting import kill_head, workload
from tests.helpers import ROOT, until

pytestmark = pytest.mark.long

WORKLOAD = """\
version: 1
name: gated
params:
  gate: {type: string, required: true}
  count: {type: int, default: 20}
  bad: {type: int, default: -1}
stages:
  read: {run: "stages:Read", unit: {items: 1}}
  work: {run: "stages:Work", after: read, retries: 0}
"""

#: The first half of the units passes at once, the rest once the gate is open. The bad one fails as long as the gate is shut.
WORK = """\
class Work(Stage):
    demand = Demand(vram="1GiB", cpu_ok=True)

    def load(self, *, gate: str, count: int, bad: int) -> None:
        self.gate, self.half, self.bad = Path(gate), count // 2, bad

    def __call__(self, batch):
        for item in batch:
            if item == self.bad and not self.gate.exists():
                raise ValueError(f"{item} is bad")
            print("worked on", item, flush=True)
            while self.bad < 0 and item >= self.half and not self.gate.exists():
                time.sleep(0.01)
        return batch
"""


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return workload(tmp_path / "gated", WORKLOAD, WORK)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that lets units go on; it is there at the latest when the test ends, so that nothing waits for it for ever."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def checked(form: str, ran: Ran) -> Any:
    """Return what a command printed, which has the published form."""
    FORMS[form].model_validate_json(ran.out, strict=True)
    return ran.json


def half_done(cluster: Cli, job_id: str, count: int = 10) -> None:
    until(lambda: cluster("jobs", "show", job_id, "--json").json["units"]["done"] >= count, timeout_s=60)


def rest_of(command: subprocess.Popen[str]) -> tuple[tuple[str, str], int]:
    """Return what a command still writes, also what lies in a buffer since a line was read, which `communicate` would lose; and its status."""
    assert command.stdout is not None
    assert command.stderr is not None
    return (command.stdout.read(), command.stderr.read()), command.wait(120)


def test_commands_and_clients_go_on_over_a_killed_head(cli: Cli, gated: Path, gate: Path) -> None:
    assert cli("up").code == 0
    submitting = cli.start("submit", gated, "--set", f"gate={gate}", "--key", "one", "--json")
    until(lambda: cli("jobs", "list", "--json").json, timeout_s=60)
    job_id = cli("jobs", "list", "--json").json[0]["job_id"]
    half_done(cli, job_id)
    waiter, logs = cli.start("jobs", "wait", job_id, "--json"), cli.start("jobs", "logs", "-f", "--json", job_id)
    assert waiter.stderr is not None
    assert logs.stdout is not None
    waiter.stderr.readline()
    first = logs.stdout.readline()  # both have the head's ear now
    followers = [submitting, waiter, logs]

    async def wait_in_python() -> tuple[str, list[int]]:
        async with AsyncClient(home=cli.home) as client:
            waiting = [asyncio.create_task(client.wait(job_id, 120)) for _ in range(20)]
            await client.show(job_id)
            await asyncio.to_thread(kill_head, cli)
            await asyncio.to_thread(until, lambda: cli("jobs", "show", job_id).code == 0, 60)
            await asyncio.to_thread(gate.touch)
            states = {status.state for status in await asyncio.gather(*waiting)}
            assert states == {"done"}
            return states.pop(), [event["seq"] async for event in client.events(job_id)]

    state, seqs = asyncio.run(wait_in_python())
    ended = [rest_of(command) for command in followers]
    assert [code for _, code in ended] == [0, 0, 0], ended
    results = [json.loads(out) for (out, _), _ in ended[:2]]
    assert state == "done"
    assert results[0] == results[1]
    assert (results[0]["units"]["total"], results[0]["units"]["done"], results[0]["units"]["failed"]) == (20, 20, 0)
    assert [told.count("the head does not answer") for (_, told), _ in ended] == [1, 1, 1]
    assert [json.loads(line)["seq"] for line in [first, *ended[2][0][0].splitlines()]] == seqs == list(range(1, len(seqs) + 1))
    with Client(home=cli.home) as client:
        assert list(client.results(job_id)) == list(range(20))
        assert client.submit(gated, {"gate": str(gate)}, key="one").job_id == job_id


def test_a_failed_job_is_tried_again_with_what_it_had(shared_cluster: Cli, gated: Path, gate: Path) -> None:
    given = ("submit", gated, "--set", f"gate={gate}", "--set", "bad=17", "--json")
    first = shared_cluster(*given)
    assert first.code == 100, first.err
    job = checked("job", first)
    assert job["error"]["code"] in {"stage_failed", "units_failed"}
    shown = shared_cluster("jobs", "show", job["job_id"])
    assert "the stage's own code failed (user)" in shown.out or "could not be worked on (data)" in shown.out, shown.out
    told = shared_cluster("jobs", "logs", job["job_id"], "--unit", "17")
    assert "17 is bad" in told.out
    gate.touch()
    assert checked("changed", shared_cluster("jobs", "retry", job["job_id"], "--json"))["jobs"][0]["job_id"] == job["job_id"]
    again = shared_cluster("jobs", "wait", job["job_id"], "--json")
    assert again.code == 0, again.err
    assert checked("job", again)["units"]["done"] == 20
    attempts = checked("job", again)["units"]["attempts"]
    assert 21 <= attempts < 40  # what was finished is not computed again


def test_a_job_may_lose_units_and_try_itself_again(shared_cluster: Cli, gated: Path, gate: Path) -> None:
    given = ("submit", gated, "--set", f"gate={gate}", "--set", "bad=3", "--json")
    enough = shared_cluster(*given, "--allow-failed", "1")
    assert (enough.code, enough.json["units"]["failed"], enough.json["units"]["done"]) == (0, 1, 19), enough.err
    tried = shared_cluster(*given, "--retry", "1")
    assert tried.code == 100
    kinds = [json.loads(line)["kind"] for line in shared_cluster("jobs", "logs", tried.json["job_id"], "--json").out.splitlines()]
    assert kinds.count("again") == 1


def test_arrays_and_dependencies(shared_cluster: Cli, gated: Path, gate: Path) -> None:
    first = shared_cluster("submit", gated, "--set", f"gate={gate}", "--detach", "--json")
    first_id = checked("accepted", first)["job_id"]
    after = shared_cluster.start("submit", gated, "--set", f"gate={gate}", "--array", "count=1..3", "--after", first_id, "--json")
    until(lambda: len(shared_cluster("jobs", "list", "--state", "queued", "--json").json) == 3, timeout_s=60)
    half_done(shared_cluster, first_id)
    gate.touch()
    out, told = after.communicate(timeout=120)
    assert after.returncode == 0, told
    array = checked("array", Ran(after.returncode, out, told))
    assert [job["units"]["done"] for job in array["jobs"]] == [1, 2, 3]
    ids = [job["job_id"] for job in array["jobs"]]
    assert checked("jobs", shared_cluster("jobs", "wait", first_id, *ids, "--json"))["error"] is None


def test_what_waits_for_a_job_that_fails_fails_too(shared_cluster: Cli, gated: Path, gate: Path) -> None:
    first = checked("accepted", shared_cluster("submit", gated, "--set", f"gate={gate}", "--detach", "--json"))["job_id"]
    second = checked("accepted", shared_cluster("submit", gated, "--set", f"gate={gate}", "--detach", "--after", first, "--json"))["job_id"]
    assert shared_cluster("jobs", "cancel", first).code == 0
    ended = shared_cluster("jobs", "wait", second, "--json")
    assert (ended.code, checked("job", ended)["error"]["code"]) == (100, "dependency_failed")


def test_everything_printed_has_the_published_form(shared_cluster: Cli, gated: Path, gate: Path) -> None:
    given = (gated, "--set", f"gate={gate}")
    checked("plan", shared_cluster("submit", *given, "--dry-run", "--json"))
    job_id = checked("accepted", shared_cluster("submit", *given, "--detach", "--json"))["job_id"]
    half_done(shared_cluster, job_id)
    assert checked("explanation", shared_cluster("jobs", "explain", job_id, "--json"))["job_id"] == job_id
    assert checked("job", shared_cluster("jobs", "show", job_id, "--json"))["state"] == "running"
    assert job_id in {row["job_id"] for row in checked("listing", shared_cluster("jobs", "list", "--state", "running", "--json"))}
    checked("failure", shared_cluster("jobs", "wait", job_id, "--timeout", "0.1", "--json"))
    gate.touch()
    assert shared_cluster("jobs", "wait", job_id).code == 0
    logs = shared_cluster("jobs", "logs", job_id, "--json").out.splitlines()
    events = [checked("event", Ran(0, line, "")) for line in logs]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert "worked on 4" in shared_cluster("jobs", "logs", job_id, "--stage", "work").out
    shown = shared_cluster("jobs", "show", job_id).out
    assert "20 of 20 done" in shown


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / "howto" / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_how_to_is_true(shared_cluster: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {
        "words/job.yaml": blocks("write-a-workload.md", "yaml")[0],
        "words/stages.py": blocks("write-a-workload.md", "python")[0],
        "notes/a.txt": "to be or not to be",
        "letters/b.txt": "dear all, all the best",
        "folders.txt": "notes\nletters\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGPUNET_HOME", str(shared_cluster.home))
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    blocking, waiting = blocks("jobs.md", "python")
    exec(compile(blocking, "how-to", "exec"), {"__name__": "__main__"})
    exec(compile(waiting, "how-to", "exec"), {"__name__": "__main__"})
    told = capsys.readouterr().out.split("\n")
    assert "done 1 [('to', 2)]" in told
    assert [line.split()[1] for line in told if re.match(r"\d{14}-", line)] == ["done"] * 3
    given = [line for block in blocks("jobs.md", "console") for line in block.splitlines() if line.startswith("$ dgpunet-dask submit")]
    assert len(given) >= 8
    done = shared_cluster("submit", "./words", "--set", "path=./notes", "--json", cwd=tmp_path).json["job_id"]
    for line in given:
        words = shlex.split(line.replace("OTHER_ID", done).replace("JOB_ID", done), comments=True)[2:]
        ran = shared_cluster(*words, "--json", cwd=tmp_path)
        assert ran.code == 0, (line, ran.err)
