"""The matrix of faults: every point of `failpoints`, and what may befall its process there, on a cluster that runs; and what must hold after.

What must hold: the job ends done with the bytes of an undisturbed run, the history in the ledger breaks no rule, every job that was
acknowledged has ended, no more units were computed again than the process that failed had in its hands, and every process has its owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil

from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.failpoints import LOG_VARIABLE, POINTS, VARIABLE
from dgpunet_dask.testing.livecluster import LiveCluster, wait_for

#: Stages of the workload that runs, by how their calls come about: one stream, one call a unit, one gather.
STAGES: Final = ("source", "heavy", "total")
#: How long a process stands still before somebody does something about it.
STILL_S: Final = 1.0
#: How long a job of the matrix may take, and a cluster to be whole again; these are for telling a hang from work, and no figures to reach.
END_S: Final = 60.0
WHOLE_S: Final = 45.0
REST_S: Final = 5.0
#: Units that may be computed again for each failed process: what it alone had in its hands. An agent has all that its devices compute.
AGAIN: Final = {"client": 0, "head": 0, "worker": 0, "scheduler": 0, "child": 1, "agent": 4, "supervisor": 4}


@dataclass(frozen=True)
class Case:
    """One fault.

    Parameters
    ----------
    point, fault, at, where
        As `failpoints` reads them: the `at`-th time that a process comes there with these facts.
    then
        What becomes of a process that stands still: ``continue``, ``kill``, or ``alone``: the cluster itself must deal with it. For a
        ``pause``: the role whose process is killed meanwhile.
    unload
        Whether the stages that earlier jobs have loaded are ended before, so that this one loads its own.
    """

    point: str
    fault: str
    then: str = ""
    at: int = 1
    where: tuple[tuple[str, str], ...] = ()
    unload: bool = False

    @property
    def role(self) -> str:
        """Whose process fails."""
        return self.then if self.fault == "pause" else POINTS[self.point].role

    @property
    def again(self) -> int:
        """How many units may be computed again. What a worker holds that stands still is copied elsewhere as slow, and its successor calls it too."""
        return AGAIN[self.role] + (self.role == "worker" and self.then == "alone")

    @property
    def name(self) -> str:
        """A short name for reports."""
        facts = "".join(f"[{value}]" for _, value in self.where)
        return f"{self.role}-{self.point}{facts}@{self.at}-{self.fault}{f'-{self.then}' if self.then else ''}"

    def armed(self, argument: str = "") -> str:
        """Return what a file of the point's name holds."""
        facts = ",".join(f"{name}={value}" for name, value in self.where)
        return f"{{{facts}}}@{self.at}={self.fault}{f':{argument}' if argument else ''}"


#: Points that a process comes to once in a job.
ONCE: Final = frozenset({
    "submit.sent", "submit.before", "submit.committed", "submit.answered", "wait.polled", "gather.before", "gather.done", "job.final",
})  # fmt: skip


def cases(seed: int, units: int) -> list[Case]:
    """Return every case, in the order of `POINTS`; at which unit it strikes is drawn by `seed` and the case's name. Pure."""
    # publishers come to theirs in jobs that make an index, which this is not: tests/acceptance/test_index_survives.py kills those
    found = [case for point in POINTS if POINTS[point].role != "publisher" for case in _at_point(point)]
    drawn = [replace(case, at=_drawn(case, seed, units)) for case in found]
    # what is published after the last unit is what the gather stage gave
    gathered = [Case("publish.written", "enospc", at=units + 1), Case("publish.renamed", "kill", at=units + 1)]
    paused = Case("stage.before", "pause", where=(("stage", "heavy"),))
    return drawn + gathered + [replace(paused, then=role, at=_drawn(paused, seed, units)) for role in ("scheduler", "supervisor", "agent", "worker")]


def _at_point(name: str) -> Iterator[Case]:
    point = POINTS[name]
    stages = [(("stage", stage),) for stage in STAGES] if point.role == "child" else [()]
    for where in stages:
        unload = name == "stage.loaded" and where == (("stage", "heavy"),)
        yield Case(name, "kill", where=where, unload=unload)
        yield Case(name, "stop", random.Random(f"{name}{where}").choice(("continue", "kill")), where=where, unload=unload)  # noqa: S311
    if name in {"task.before_call", "stage.before"}:
        yield Case(name, "stop", "alone", where=stages[-2] if len(stages) > 1 else ())
    if point.disk:
        yield Case(name, "enospc")


def _drawn(case: Case, seed: int, units: int) -> int:
    """Return at which hit a case strikes. A source's and a gather's host, and a load, come to their points once or as often as units."""
    if case.point in ONCE or case.where[:1] == (("stage", "total"),) or case.point == "stage.loaded":
        return 1
    if case.where[:1] == (("stage", "source"),) and case.point == "stage.before":
        return 1
    # a point in a worker or a stage host is met by one of several processes: what each surely meets is fewer
    most = units if case.role in {"head", "agent"} or case.where[:1] == (("stage", "source"),) else max(1, units // 4)
    return random.Random(f"{seed}:{case.name}").randint(1, most)  # noqa: S311  # a test's choice, to be had again by its seed


@dataclass(frozen=True)
class Outcome:
    """What a case has led to.

    `again`: calls of the heavy stage beyond one for each unit. `attempts`: as the job tells. `whole_s`: from the job's end until every
    worker ran. `faults`: what should not be.
    """

    case: str
    state: str
    seconds: float
    attempts: int
    again: int
    whole_s: float
    faults: tuple[str, ...] = ()


class Arming:
    """The folder through which failures are armed in processes that run, and the log of those that have happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.armed = folder / "armed"
        self.log = folder / "fired.jsonl"
        self.gate = folder / "gate"
        self.armed.mkdir(parents=True, exist_ok=True)

    @property
    def variables(self) -> dict[str, str]:
        """What the processes must be started with."""
        return {VARIABLE: f"@{self.armed}", LOG_VARIABLE: str(self.log)}

    def arm(self, case: Case) -> None:
        """Arm one failure in place of any other; a reader sees the file whole."""
        self.clear()
        if case.fault == "pause":
            self.gate.touch()
        fresh = self.folder / "fresh"
        fresh.write_text(case.armed(str(self.gate) if case.fault == "pause" else ""), encoding="utf-8")
        fresh.rename(self.armed / case.point)

    def clear(self) -> None:
        """Disarm everything, and let go what waits."""
        self.gate.unlink(missing_ok=True)
        for file in self.armed.iterdir():
            file.unlink(missing_ok=True)

    def fired(self) -> list[dict[str, Any]]:
        """Return the lines of what has happened."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@dataclass
class Trial:
    """Runs cases on one cluster.

    Parameters
    ----------
    cluster
        It is up, and was started with the variables of `arming`.
    workload
        The folder of a workload with the stages of `STAGES`.
    units, workers
        Of one job, and of the cluster.
    history
        Returns what in the ledger breaks a rule, given its file and the home.
    """

    cluster: LiveCluster
    arming: Arming
    workload: Path
    units: int
    workers: int
    history: Callable[[Path, Path], Sequence[str]]
    wanted: bytes = b""
    acknowledged: set[str] = field(default_factory=set)

    @property
    def notes(self) -> Path:
        """The file in which the heavy stage notes its calls."""
        return self.arming.folder / "notes.jsonl"

    def calm(self) -> None:
        """Run the job undisturbed, and keep its bytes."""
        job = self._submit("calm")
        status = self.cluster.ended(job, END_S)
        if status.state != "done":
            raise RuntimeError(f"the undisturbed run ended {status.state}: {status.error}")
        self.wanted = self.cluster.result(job)

    def run(self, case: Case, number: int) -> Outcome:
        """Let one case happen and look at what it has led to."""
        tag = f"{number:03d}-{case.name}"
        self.arming.clear()
        if case.unload:
            self._unload()
        seen = len(self.arming.fired())
        self.arming.arm(case)
        began, faults = time.monotonic(), []
        with self._submitting(tag, client=case.role == "client") as submitting:
            try:
                line = wait_for(f"{case.name} happens", lambda: self.arming.fired()[seen:], END_S)[0]
                self._meanwhile(case, int(line["pid"]))
            except TimeoutError as error:
                faults.append(str(error))
            finally:
                self.arming.clear()
        job = submitting.job or self._submit(tag)  # a client that was killed asks again, with its key
        return self._looked_at(case, job, tag, began, faults + submitting.faults)

    def _looked_at(self, case: Case, job: str, tag: str, began: float, faults: list[str]) -> Outcome:
        self.acknowledged.add(job)
        try:
            status = self.cluster.ended(job, END_S)
        except DgpunetError as error:
            return Outcome(case.name, "?", time.monotonic() - began, 0, 0, 0.0, (*faults, f"no end: {error}"))
        seconds = time.monotonic() - began
        if status.state != "done":
            faults.append(f"it ended {status.state}: {status.error}")
        elif self.cluster.result(job) != self.wanted:
            faults.append("its result is another than that of the undisturbed run")
        elif status.units.attempts < self.units:
            faults.append(f"{status.units.attempts} starts are told for {self.units} units")
        whole_s = self._whole(faults)
        again = self._again(tag)
        if again > case.again:
            faults.append(f"{again} units were computed again, and {case.again} may be")
        faults += self._history()
        ended = {job.job_id for job in self.cluster.asked(lambda api: api.jobs())}
        faults += [f"the acknowledged job {missing} is not known any more" for missing in sorted(self.acknowledged - ended)]
        return Outcome(case.name, status.state, seconds, status.units.attempts, again, whole_s, tuple(faults))

    def _history(self) -> list[str]:
        """Return what in the history breaks a rule, once the head is at rest: it clears up after a job has its last state."""
        found: list[str] = []

        def good() -> bool:
            found[:] = self.history(self.cluster.home.root / "ledger.db", self.cluster.root)
            return not found

        with contextlib.suppress(TimeoutError):
            wait_for("a history without faults", good, REST_S)
        return [f"history: {fault}" for fault in found]

    def _whole(self, faults: list[str]) -> float:
        """Wait until every worker runs and every process has its owner."""
        began = time.monotonic()
        try:
            self.cluster.ready(self.workers, WHOLE_S)
            wait_for("the end of what has no owner", lambda: not self.cluster.orphans(), WHOLE_S)
        except TimeoutError as error:
            faults.append(f"{error}; without an owner: {self.cluster.orphans()}")
        return time.monotonic() - began

    def _again(self, tag: str) -> int:
        lines = [json.loads(line) for line in self.notes.read_text(encoding="utf-8").splitlines()]
        calls = Counter(line["number"] for line in lines if line["tag"] == tag)
        return sum(count - 1 for count in calls.values())

    # What happens meanwhile

    def _meanwhile(self, case: Case, pid: int) -> None:
        """Do what follows upon a process that stands still."""
        if case.fault == "pause":
            victim = self._victim(case.then)
            os.kill(victim, signal.SIGKILL)
            wait_for(f"the end of the {case.then}", lambda: not psutil.pid_exists(victim) or _zombie(victim), END_S)
            self.arming.clear()
            if case.then == "supervisor":  # it was all there is above the cluster; its owner starts it again
                wait_for("the end of all that was below", lambda: not any(self.cluster.roles().values()), END_S)
                self.cluster.up()
        elif case.fault == "stop" and case.then != "alone":
            time.sleep(STILL_S)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT if case.then == "continue" else signal.SIGKILL)

    def _victim(self, role: str) -> int:
        """Return a process of `role`."""
        return int(wait_for(f"a {role}", lambda: self.cluster.roles()[role], END_S)[0].pid)

    def _unload(self) -> None:
        for process in self.cluster.roles()["child"]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_for("the end of the stage hosts", lambda: not self.cluster.roles()["child"], END_S)

    # Submitting

    def _asked(self, tag: str) -> dict[str, Any]:
        return {"tag": tag, "count": self.units, "notes": str(self.notes)}

    def _submit(self, tag: str) -> str:
        job_id = self.cluster.submit(self.workload, self._asked(tag), key=tag).job_id
        self.acknowledged.add(job_id)
        return job_id

    @contextlib.contextmanager
    def _submitting(self, tag: str, *, client: bool) -> Iterator[Submitting]:
        """Submit beside what else happens: from a thread of this process, or where the client is to fail, from a command of its own."""
        made = Submitting()
        command = self._command(tag) if client else None
        work = threading.Thread(target=made.read, args=(command,)) if command else threading.Thread(target=made.ask, args=(self._submit, tag))
        work.start()
        try:
            yield made
        finally:
            work.join(END_S)
            if command is not None and work.is_alive():
                command.kill()
                made.faults.append("the client does not end")

    def _command(self, tag: str) -> subprocess.Popen[str]:
        sets = [word for name, value in self._asked(tag).items() for word in ("--set", f"{name}={value}")]
        return self.cluster.command("submit", self.workload, *sets, "--key", tag, "--json")


class Submitting:
    """A submission on its way: the job's id once it is known, and what went wrong."""

    def __init__(self) -> None:
        self.job: str | None = None
        self.faults: list[str] = []

    def ask(self, submit: Callable[[str], str], tag: str) -> None:
        """Submit as a Python client does."""
        try:
            self.job = submit(tag)
        except DgpunetError as error:  # a full disk is told, and the next try is the caller's
            if error.code != "disk_full":
                self.faults.append(f"not accepted: {error}")

    def read(self, command: subprocess.Popen[str]) -> None:
        """Take what a command tells; one that was killed tells nothing."""
        out, told = command.communicate()
        if command.returncode == 0:
            self.job = str(json.loads(out)["job_id"])
        elif command.returncode != -signal.SIGKILL:
            self.faults.append(f"the client ended with status {command.returncode}: {told[-500:]}")


def _zombie(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True


def table(outcomes: Sequence[Outcome]) -> str:
    """Return outcomes as lines, those with faults told in full. Pure."""
    lines = [f"{'case':64} {'state':9} {'s':>6} {'tries':>5} {'again':>5} {'whole s':>7}"]
    for found in outcomes:
        lines.append(f"{found.case:64} {found.state:9} {found.seconds:6.1f} {found.attempts:5} {found.again:5} {found.whole_s:7.1f}")
        lines += [f"    {fault}" for fault in found.faults]
    return "\n".join(lines)


def to_json(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Return what a run of the matrix has found. Pure."""
    return {
        "what": "a fault at each numbered step, the job's result, its history and its processes afterwards", "seed": seed,
        "cases": len(outcomes), "with_faults": sum(bool(o.faults) for o in outcomes), "again": sum(o.again for o in outcomes),
        "slowest_s": max((o.seconds for o in outcomes), default=0.0), "outcomes": [asdict(o) for o in outcomes],
    }  # fmt: skip
