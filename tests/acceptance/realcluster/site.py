"""A cluster of hosts in namespaces as its tests drive it: brought up by the commands of an owner, looked at through the head's API."""

from __future__ import annotations

import http.client
import json
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dgpunet_dask.testing.fake_nvml import compiler
from dgpunet_dask.testing.homelab import HomeLab
from dgpunet_dask.testing.netns import Lan, permitted
from tests.acceptance.realcluster.inside import inside
from tests.acceptance.realcluster.wire import Heard, Wiretap
from tests.helpers import until

#: Why there is no such cluster here; ``None`` where there can be one.
WHY_NOT = permitted() or (None if compiler() else "no C compiler: apt-get install gcc")
FIVE = ("m18", "xps", "tower", "legion", "rig")
PACED = Path(__file__).parent / "paced"
SLOW_HOST, SLOW_RATE = "legion", "200mbit"


class Site:
    """A lab with its head. Everything that waits has a deadline and tells the logs' last lines where it fails."""

    def __init__(self, lab: HomeLab, head: str) -> None:
        self.lab, self.head = lab, head
        self.notes_file = lab.folder / "notes.jsonl"
        self.figures: dict[str, float] = {}
        self.tap: Wiretap | None = None
        self.began_s = time.monotonic()

    # Bringing up

    def start_head(self, *words: str) -> None:
        """Run `head` and wait until it says that the cluster is up."""
        head = self.lab.start(self.head, "head", "--name", self.head, *words)

        def up() -> bool:
            assert head.process.poll() is None, head.text
            return "the cluster is up" in head.text

        until(up, 90, "the head", every_s=0.2)

    def join_all(self, names: Sequence[str]) -> None:
        """Let hosts join, all at once."""
        tokens = {name: self.lab.token(self.head, name) for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            joins = {name: pool.submit(self.lab.cli, name, "join", token, "--name", name, timeout_s=180) for name, token in tokens.items()}
            for name, join in joins.items():
                assert join.result().code == 0, f"{name}: {join.result()}"

    # Asking

    def api(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Ask the head as its own machine's commands do; status 0 where nothing answers."""
        try:
            told = json.loads((self.lab.home(self.head) / "run" / "head.json").read_text())
            where = urllib.parse.urlsplit(told["api"])
            return inside(self.lab.lan.host(self.head).namespace, lambda: _ask(where.hostname, where.port, told["key"], path, method, body))
        except (OSError, ValueError, http.client.HTTPException):
            return 0, None

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the hosts by name; empty where nothing answers."""
        status, found = self.api("/v1/nodes")
        return {node["host"]: node for node in found} if status == 200 else {}

    def host(self, name: str) -> dict[str, Any]:
        """Return one host, empty where there is no answer."""
        return self.nodes().get(name, {})

    def state(self, name: str) -> str:
        """Return the state of one host."""
        return str(self.host(name).get("state"))

    def device(self, name: str) -> dict[str, Any]:
        """Return one device."""
        return next((d for node in self.nodes().values() for d in node["devices"] if d["name"] == name), {})

    def card(self, host: str) -> dict[str, Any]:
        """Return the one card of a host."""
        return next((d for d in self.host(host).get("devices", ()) if "/" not in d["name"]), {})

    def ready(self, *names: str) -> bool:
        """Whether these hosts are ready, and all their workers are there."""
        nodes = self.nodes()
        return all(
            nodes.get(name, {}).get("state") == "ready" and {d["state"] for d in nodes[name]["devices"]} == {"running"} for name in names
        )

    def until_ready(self, *names: str, timeout_s: float = 60) -> float:
        """Wait until these hosts are ready; return how long it took."""
        began = time.monotonic()
        try:
            until(lambda: self.ready(*names), timeout_s, f"{', '.join(names)} ready", every_s=0.1)
        except AssertionError as error:
            told = {name: (node["state"], node["devices"]) for name, node in self.nodes().items() if name in names}
            raise AssertionError(f"{error}\n{told}\n{self.logs(*names)}") from error
        return time.monotonic() - began

    def logs(self, *names: str, lines: int = 12) -> str:
        """Return the last lines of the logs of hosts."""
        files = [file for name in names for file in sorted((self.lab.home(name) / "run" / "logs").glob("*.log"))]
        return "\n".join(f"== {file}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) for file in files)

    # Jobs

    def begin(self, tag: str, count: int, seconds: float) -> str:
        """Submit units that take so many seconds each on a card; return the job's id."""
        settings = {"tag": tag, "count": count, "seconds": seconds, "notes": self.notes_file}
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        return str(self.lab.ok(self.head, "submit", str(PACED), *words, "--detach", "--json").json["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job, empty where there is no answer."""
        status, found = self.api(f"/v1/jobs/{job_id}")
        return found if status == 200 else {}

    def ended(self, job_id: str, timeout_s: float = 90) -> dict[str, Any]:
        """Wait for a job's end and return it."""

        def look() -> dict[str, Any] | None:
            found = self.job(job_id)
            return found if found.get("state") not in (None, "queued", "running") else None

        return until(look, timeout_s, f"the end of {job_id}: {self.job(job_id)}", every_s=0.1)

    def notes(self, tag: str, what: str = "begun") -> list[dict[str, Any]]:
        """Return what units of a job have noted, as they ran."""
        text = self.notes_file.read_text() if self.notes_file.exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row for row in rows if row["tag"] == tag and row["what"] == what]

    def running_on(self, tag: str, host: str) -> bool:
        """Whether a unit of a job runs on a host."""
        begun, ended = ([row["number"] for row in self.notes(tag, what) if row["host"] == host] for what in ("begun", "ended"))
        return len(begun) > len(ended)

    def collected(self, tag: str) -> list[dict[str, Any]]:
        """Return what was committed of a job, in order."""
        return json.loads((self.notes_file.with_name(f"{tag}.json")).read_text())

    def check_whole(self, job_id: str, tag: str, count: int, timeout_s: float = 90) -> dict[str, Any]:
        """Wait for a job's end; fail unless each of its units was committed, once."""
        job = self.ended(job_id, timeout_s)
        assert job["state"] == "done", f"{job}\n{self.logs(self.head)}"
        assert sorted(row["number"] for row in self.collected(tag)) == list(range(count))
        assert (job["units"]["done"], job["units"]["failed"]) == (count, 0)
        return job

    # What runs

    def heard(self) -> Heard:
        """Return what the hosts have said to one another, and to whomever else."""
        assert self.tap is not None, "it was brought up with tapped=True"
        return self.tap.heard

    def pids(self, host: str, word: str) -> list[int]:
        """Return the processes of a host whose command line has `word`."""
        return [pid for pid, line in self.lab.left(host).items() if word in line]

    def age(self) -> float:
        """Return for how many seconds there has been this site."""
        return time.monotonic() - self.began_s

    def measured(self, name: str, seconds: float) -> float:
        """Note a figure; it is printed at the end."""
        self.figures[name] = seconds
        print(f"figure: {name}: {seconds:.1f} s")
        return seconds


def _ask(host: str | None, port: int | None, key: str, path: str, method: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(str(host), port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def timed(call: Callable[[], object], timeout_s: float, what: str) -> float:
    """Wait for something to come true; return how long that took."""
    began = time.monotonic()
    until(call, timeout_s, what, every_s=0.05)
    return time.monotonic() - began


@contextmanager
def site(
    folder: Path, names: Sequence[str], joining: Sequence[str], *, more: Sequence[str] = (), tapped: bool = False, **lab: Any
) -> Iterator[Site]:
    """Bring up hosts `names`, the first of them the head, let `joining` join, and end all in the end; `more` are hosts that only stand by."""
    with ExitStack() as standing:
        lan = standing.enter_context(Lan(*names, *more))
        made = Site(HomeLab(lan, folder, **lab), names[0])
        if tapped:
            made.tap = standing.enter_context(Wiretap(lan))
        if SLOW_HOST in names:
            lan.rate_limit(SLOW_HOST, SLOW_RATE)
        made.start_head()
        if joining:
            made.join_all(joining)
            made.until_ready(names[0], *joining)
        yield made
        for name, seconds in made.figures.items():
            print(f"figure: {name}: {seconds:.1f} s")


def corpus(folder: Path, name: str, files: int, functions: int) -> Path:
    """Write Python files, whose texts no other corpus has, and return their folder."""
    made = folder / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for file in range(files):
        body = [
            f"def {name}_{file}_{n}(value, other):\n"
            f'    """Combine value {n} of {name} with another by rule {file}, and return what comes of it."""\n'
            f"    total = value * {n} + other - {file}\n    for step in range({n + file}):\n        total += step * {n}\n    return total, '{name}'\n"
            for n in range(functions)
        ]
        (made / f"{name}_{file}.py").write_text("\n\n".join(body))
    return made


def short_folder(root: Path, name: str) -> Path:
    """Make a folder for the homes of a lab."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
