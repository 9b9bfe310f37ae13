"""`submit` and `jobs` against a head over a real socket: what they ask, what they print, with which exit code."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.cli.forms import FORMS
from dgpunet_dask.cli.jobs import _told
from dgpunet_dask.cli.wording import failed_lines, progress_lines
from dgpunet_dask.cluster.wire import job_to_wire
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DependencyFailed, NotAllowed, StageFailed, TooManyJobs
from dgpunet_dask.model.job import UnitCounts
from tests.unit.client.serving import Server, a_workload


@pytest.fixture
async def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    monkeypatch.delenv("DGPUNET_API_KEY", raising=False)
    made = Server(home)
    await made.start()
    yield made
    await made.kill()


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(a_workload(tmp_path / "words"))


@pytest.fixture
def run(server: Server, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command; gives exit code, stdout and stderr."""

    async def call(*args: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli_main.run, list(args))
        return code, *capfd.readouterr()

    return call


def checked(form: str, text: str) -> Any:
    """Return JSON that has the published form."""
    FORMS[form].model_validate_json(text, strict=True)
    return json.loads(text)


async def accepted(run: Any, words: str, *more: str) -> str:
    code, out, err = await run("submit", words, "--detach", *more)
    assert code == 0, err
    return str(out.strip())


def failed(server: Server, job_id: str) -> None:
    error = StageFailed(stage="count", kind="ValueError", why="seven is no number")
    server.end(job_id, "failed", error=error.to_json(), exit_code=100)


# submit


async def test_every_option_reaches_the_head(run: Any, server: Server, words: str) -> None:
    await accepted(run, words, "--set", "n=3", "--after", "a", "--after", "b", "--retry", "2", "--allow-failed", "5", "--key", "mine", "--shared")
    asked = server.ledger.requests[0]
    want = {"after": ["a", "b"], "retry": 2, "allow_failed": 5, "key": "mine", "shared": True, "params": {"n": 3, "tags": []}}
    assert {name: asked[name] for name in want} == want
    await accepted(run, words)
    await accepted(run, words)
    keys = [request["key"] for request in server.ledger.requests]
    assert len(set(keys)) == 3
    assert all(len(key) >= 20 for key in keys[1:])


async def test_waiting_for_the_result(run: Any, server: Server, words: str) -> None:
    running = asyncio.create_task(run("submit", words, "--json"))
    await server.until(lambda: server.waiting == 1)
    server.tell("job-1", "progress", done=3, total=6, failed=1, metrics={"files": 9}, expected_items=None, rate_per_s=1.25, eta_s=130.0)
    server.end("job-1", metrics={"files": 9})
    code, out, err = await running
    assert code == 0
    assert checked("job", out)["state"] == "done"
    assert err == "words: 3/6 units, 1.25 units/s, about 2 min left, 1 failed, 9 files\n"


async def test_a_killed_head_is_waited_for_and_told_once(run: Any, server: Server, words: str) -> None:
    running = asyncio.create_task(run("submit", words, "--json"))
    await server.until(lambda: server.waiting == 1)
    await server.kill(forget_port=True)
    server.key = "key-2"
    await server.start()
    await server.until(lambda: server.waiting == 1)
    server.end("job-1")
    code, out, err = await running
    assert (code, checked("job", out)["state"]) == (0, "done")
    assert err == "the head does not answer; waiting for it\n"


async def test_a_job_that_the_next_head_does_not_know_is_lost(run: Any, server: Server, words: str) -> None:
    running = asyncio.create_task(run("submit", words, "--json"))
    await server.until(lambda: server.waiting == 1)
    await server.kill()
    server.ledger.jobs.clear()
    await server.start()
    code, out, _ = await running
    assert (code, checked("failure", out)["error"]["code"]) == (104, "lost")


async def test_an_array(run: Any, server: Server, words: str) -> None:
    running = asyncio.create_task(run("submit", words, "--array", "n=1..2", "--array", "tags=x,y", "--set", "tags=z", "--json"))
    code, out, _ = await running
    assert (code, checked("failure", out)["error"]["code"]) == (2, "bad_value")
    running = asyncio.create_task(run("submit", words, "--array", "n=1..2", "--array", "tags=x,y", "--json"))
    await server.until(lambda: server.waiting == 1)
    rows = [{"n": n, "tags": [tag]} for n in (1, 2) for tag in ("x", "y")]
    assert server.ledger.requests[0]["array"] == rows
    assert server.ledger.requests[0]["params"] == {}
    failed(server, "job-2")
    for job_id in ("job-1", "job-3", "job-4"):
        server.end(job_id)
    code, out, err = await running
    found = checked("array", out)
    assert code == 100
    assert [job["state"] for job in found["jobs"]] == ["done", "failed", "done", "done"]
    assert (found["array_id"], found["error"]["code"]) == ("array-1", "stage_failed")
    assert "job job-2 failed: Stage count raised ValueError" in err


async def test_what_detach_prints(run: Any, server: Server, words: str) -> None:
    _, out, _ = await run("submit", words, "--detach", "--json")
    assert checked("accepted", out) == {"job_id": "job-1", "state": "running"}
    _, out, _ = await run("submit", words, "--detach", "--array", "n=1,2", "--json")
    assert [job["job_id"] for job in checked("accepted-array", out)["jobs"]] == ["job-2", "job-3"]
    _, out, _ = await run("submit", words, "--detach", "--array", "n=1,2")
    assert out.split() == ["job-4", "job-5"]


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("POST /v1/jobs", TooManyJobs(user="ann", most="4 jobs", wait_s=30.0), "ann has as much work in the cluster as is allowed"),
        ("PUT", NotAllowed(what="PUT", why="it needs an operator's key"), "words brings its own code"),
    ],
)
async def test_refusals_are_usage_errors(run: Any, server: Server, words: str, path: str, error: Any, text: str) -> None:
    from dgpunet_dask.jobs.store import read_workload

    path = f"PUT /v1/workloads/{read_workload(Path(words)).digest}" if path == "PUT" else path
    server.refuse[path] = (429 if "jobs" in path else 403, error)
    code, out, err = await run("submit", words, "--json")
    assert code == 2
    assert text in checked("failure", out)["error"]["message"]
    assert text in err


# jobs


async def test_show_tells_how_far_a_job_is_and_what_failed(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    code, out, _ = await run("jobs", "show", job_id)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"job {job_id} (")
    assert lines[1:] == [
        "  units: 3 of 4 done, 1 failed, 6 attempts, 1.5 units/s, about 2 min left",
        "  stage embed: 3 done, 1 running, 0 waiting",
        "  device 5090: 3 done in 2.2 s, 1 running",
        "  failed attempts: 1",
        "    unit 7 on 5090 tower: the card's memory was too small (gpu-oom): its peak was 9 GiB",
    ]
    code, out, _ = await run("jobs", "show", job_id, "--json")
    assert checked("job", out)["state"] == "running"
    assert (await run("jobs", "show", "none"))[0] == 102


async def test_list_filters(run: Any, server: Server, words: str) -> None:
    ids = [await accepted(run, words) for _ in range(4)]
    server.end(ids[1])
    server.end(ids[2])
    _, out, _ = await run("jobs", "list", "--json")
    assert [row["job_id"] for row in checked("listing", out)] == ids
    _, out, _ = await run("jobs", "list", "--state", "done", "--limit", "1", "--json")
    assert [row["job_id"] for row in checked("listing", out)] == [ids[2]]
    assert (await run("jobs", "list", "--state", "asleep"))[0] == 2
    _, out, _ = await run("jobs", "list", "--limit", "1")
    assert out.startswith(ids[3])


async def test_logs_are_followed_over_a_killed_head(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    server.tell(job_id, "log", text="a line\nand one more\n", stage="count", device="5090", unit=3)
    following = asyncio.create_task(run("jobs", "logs", "-f", job_id))
    await server.until(lambda: server.waiting == 1)
    await server.kill()
    server.ledger.tell(job_id, "attempt", unit=3, epoch=1, state="failed", device="5090", cause="network", why="the host is away")
    await server.start()
    await server.until(lambda: server.waiting == 1)
    failed(server, job_id)
    code, out, err = await following
    assert code == 0
    assert [line[9:] if line[:1].isdigit() else line for line in out.splitlines()] == [
        "state: running",
        "[count 5090 unit 3] a line",
        "and one more",
        "attempt at unit 3 on 5090 failed: the connection to the host was lost (network): the host is away",
        "state: failed",
    ]
    assert err == "the head does not answer; waiting for it\n"


async def test_logs_of_a_stage_or_a_unit(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    for unit, stage in ((1, "count"), (11, "count"), (1, "read")):
        server.tell(job_id, "log", text=f"{stage} {unit}", stage=stage, unit=unit, device=None)
    server.tell(job_id, "stage", stage="read", state="running")
    for words_, want in ((("--unit", "1"), ["count 1", "read 1"]), (("--stage", "count"), ["count 1", "count 11"]), (("--unit", "1", "--stage", "read"), ["read 1"])):
        _, out, _ = await run("jobs", "logs", job_id, *words_, "--json")
        assert [event["text"] for event in (checked("event", line) for line in out.splitlines()) if event["kind"] == "log"] == want
    _, out, _ = await run("jobs", "logs", job_id, "--json")
    assert [checked("event", line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4, 5]


async def test_waiting_for_several_leaves_with_the_first_that_did_not_end_well(run: Any, server: Server, words: str) -> None:
    ids = [await accepted(run, words) for _ in range(3)]
    waiting = asyncio.create_task(run("jobs", "wait", *ids, "--json"))
    await server.until(lambda: server.waiting == 1)
    server.end(ids[2], "cancelled", exit_code=103)
    failed(server, ids[1])
    server.end(ids[0])
    code, out, _ = await waiting
    found = checked("jobs", out)
    assert code == 100
    assert [job["state"] for job in found["jobs"]] == ["done", "failed", "cancelled"]
    assert found["error"]["code"] == "stage_failed"
    code, out, _ = await run("jobs", "wait", ids[2], "--json")
    assert (code, checked("job", out)["state"]) == (103, "cancelled")
    assert (await run("jobs", "wait", ids[0], ids[0]))[0] == 0


async def test_a_misspelt_job_is_told_before_the_others_are_waited_for(run: Any, server: Server, words: str) -> None:
    ids = [await accepted(run, words) for _ in range(2)]  # which never end
    code, out, err = await asyncio.wait_for(run("jobs", "wait", *ids, "nope", "--json"), 20)
    assert (code, checked("failure", out)["error"]["code"]) == (102, "no_job")
    assert "nope" in err
    assert server.waiting == 0


async def test_waiting_has_an_end_also_while_the_head_is_away(run: Any, server: Server, words: str) -> None:
    ids = [await accepted(run, words) for _ in range(2)]
    server.drop_next = f"GET /v1/jobs/{ids[0]}"
    code, _, _ = await run("jobs", "wait", *ids, "--timeout", "0.05")
    assert code == 101


async def test_waiting_has_an_end(run: Any, server: Server, words: str) -> None:
    ids = [await accepted(run, words) for _ in range(2)]
    server.end(ids[0])
    code, out, _ = await run("jobs", "wait", *ids, "--timeout", "0.05", "--json")
    assert (code, checked("failure", out)["error"]["code"]) == (101, "still_running")
    assert "after 0.05 s" in out, "as it was asked for, and not what was left of it"


async def test_cancel_and_retry_go_on_past_an_error(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    code, out, err = await run("jobs", "cancel", "none", job_id, "--json")
    found = checked("changed", out)
    assert (code, found["error"]["code"], found["jobs"]) == (102, "no_job", [{"job_id": job_id, "state": "cancelled"}])
    assert "no job 'none'" in err
    code, out, _ = await run("jobs", "retry", job_id)
    assert (code, out) == (0, f"job {job_id} is queued\n")


async def test_a_retry_that_ends_at_once_says_so(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    error = DependencyFailed(job_id=job_id, after="job-0", state="cancelled")
    ended = replace(server.ledger.jobs[job_id], state="failed", error=error.to_json(), exit_code=100)
    server.answers[f"POST /v1/jobs/{job_id}/retry"] = job_to_wire(ended)
    code, out, err = await run("jobs", "retry", job_id, "--json")
    assert (code, checked("changed", out)["error"]["code"]) == (100, "dependency_failed")
    assert "job-0, which is cancelled" in err


async def test_a_key_without_a_letter_is_refused(run: Any, server: Server, words: str) -> None:
    code, _, err = await run("submit", words, "--detach", "--key", "")
    assert code == 2
    assert "key" in err
    assert server.ledger.requests == []


@pytest.mark.parametrize("named", ["ftp://x:1", "http://localhost:99999", "//:80", "a:b:c"])
async def test_what_is_no_address_of_a_cluster_is_a_bad_value(run: Any, server: Server, named: str) -> None:
    code, _, err = await run("--cluster", named, "jobs", "list")
    assert code == 2, err
    assert named in err


async def test_logs_of_what_is_not_there_are_refused(run: Any, server: Server, words: str) -> None:
    job_id = await accepted(run, words)
    server.tell(job_id, "log", text="x", stage="count", unit=1, device=None)
    server.end(job_id, units=UnitCounts(total=4, done=4))
    for words_, told in ((("--stage", "nope"), "count, embed"), (("--unit", "999"), "4 units"), (("--unit", "-1"), "4 units")):
        code, out, err = await run("jobs", "logs", job_id, *words_)
        assert (code, out) == (2, ""), err
        assert told in err
    for words_ in (("--stage", "embed"), ("--unit", "3")):
        assert (await run("jobs", "logs", job_id, *words_)) == (0, "", "")


async def test_logs_of_an_ended_job_deny_no_stage_that_said_nothing(run: Any, server: Server, words: str) -> None:
    """What ended under an earlier head has no counts by stage, and only its gather stage may have told anything."""
    job_id = await accepted(run, words)
    server.tell(job_id, "stage", stage="total", state="running")
    server.end(job_id, units=UnitCounts(total=4, done=4))
    server.stages = ["files", "count", "total"]
    assert await run("jobs", "logs", job_id, "--stage", "count", "--unit", "1") == (0, "", "")
    code, _, err = await run("jobs", "logs", job_id, "--stage", "nope")
    assert code == 2
    assert "files, count, total" in err
    server.stages = None  # the workload has been cleared away: nobody knows
    code, out, err = await run("jobs", "logs", job_id, "--stage", "count")
    assert (code, out) == (0, "")
    assert "nothing was told of a stage count" in err


async def test_who_detaches_is_told_that_alone(run: Any, server: Server, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dgpunet_dask.client.Client.wait", interrupt)
    code, _, err = await run("submit", words)
    assert (code, err) == (130, "dgpunet-dask: Detached; the job goes on. `dgpunet-dask jobs wait job-1` joins it again.\n")


async def test_without_a_head_jobs_are_not_found(run: Any, server: Server) -> None:
    await server.kill()
    for words in (["list"], ["show", "j"], ["wait", "j"], ["logs", "j"], ["cancel", "j"], ["retry", "j"]):
        assert (await run("jobs", *words))[0] == 102


def test_a_job_that_waits_for_others_says_so() -> None:
    awaited = [{"job_id": "a", "state": "running"}, {"job_id": "b", "state": "queued"}]
    progress: dict[str, Any] = {"units": {"total": None, "done": 0}, "rate_per_s": None, "eta_s": None, "stages": [], "devices": [], "waits_for": awaited}
    assert list(progress_lines(progress))[:2] == ["  waits for job a (running)", "  waits for job b (queued)"]
    found: dict[str, Any] = {"job_id": "c", "workload": "w", "state": "queued", "units": {}, "job_error": None, "waiting": [], "running": [], "light": 0}
    assert list(_told({**found, "waits_for": awaited}))[1:] == ["  waits for job a (running)", "  waits for job b (queued)"]
    assert list(_told({**found, "waits_for": []}))[1:] == ["it waits for its turn: other jobs run"]


def test_what_ended_with_the_job_or_had_not_begun_has_not_failed() -> None:
    def attempt(state: str, **more: Any) -> dict[str, Any]:
        return {"unit": 1, "state": state, "cause": None, "evidence": {}, "began": True, "device": "a0", "host": "h", **more}

    gone = attempt("lost", cause="system", evidence={"why": "the head that had started it ended"})
    told = list(failed_lines([gone, attempt("cancelled"), attempt("lost", began=False), attempt("cancelled", began=False), attempt("committed")]))
    assert told == [
        "  cancelled attempts: 1",
        "  failed attempts: 1",
        "    unit 1 on a0 h: a process of the cluster ended (system): the head that had started it ended",
    ]
