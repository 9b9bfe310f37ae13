"""A cluster that `up` has started, seen from outside: its processes by role, its API whatever head serves it, and what must end with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.headfile import read_head_file
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, JobLost, NoHead, StillRunning
from dgpunet_dask.jobs.params import complete_params
from dgpunet_dask.jobs.store import find_workload, pack_workload, read_workload
from dgpunet_dask.model.job import FINAL_STATES, JobStatus
from dgpunet_dask.testing.processes import processes_of

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parents[2]
#: What the command line of each role's process names.
MODULES: Final = {
    "supervisor": ("dgpunet_dask.daemons.supervisor",),
    "head": ("dgpunet_dask.daemons.head",),
    "scheduler": ("distributed.cli.dask_scheduler", "dgpunet_dask.daemons.scheduler_main"),
    "agent": ("dgpunet_dask.daemons.agent", "dgpunet_dask.daemons.node_agent"),
    "worker": ("distributed.cli.dask_worker", "dgpunet_dask.daemons.worker_main"),
    "child": ("dgpunet_dask.stagehost.child",),
}
_LOOK_S: Final = 0.05


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """Return the first true value of `look`.

    Raises
    ------
    TimeoutError
        If there is none within `timeout_s` seconds; it says `what` was waited for.
    """
    end = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(_LOOK_S)
    return found


@dataclass
class LiveCluster:
    """One cluster under a home of its own. Making the value starts nothing.

    Parameters
    ----------
    root
        The home. Short, for the sockets' sake.
    fleet
        A fleet file to simulate; ``None``: this machine as it is.
    extra
        Variables for every process of the cluster.
    """

    root: Path
    fleet: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Home:
        """Its paths."""
        return Home(self.root)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a command."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("DGPUNET_")}
        path = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH")]))
        return {**ours, "DGPUNET_HOME": str(self.root), "PYTHONPATH": path, "COLUMNS": "200", **self.extra}

    def command(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a ``dgpunet-dask`` command."""
        return subprocess.Popen(
            [sys.executable, "-m", "dgpunet_dask.cli.main", *map(str, words)],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def up(self, timeout_s: float = 180.0) -> None:
        """Start it, or find it running.

        Raises
        ------
        RuntimeError
            If the command fails; with what it wrote.
        """
        self._done("up", *(() if self.fleet is None else ("--simulate", self.fleet)), timeout_s=timeout_s)

    def down(self, timeout_s: float = 60.0) -> list[str]:
        """End it; return the command lines of what outlived that."""
        self._done("down", timeout_s=timeout_s)
        with contextlib.suppress(TimeoutError):
            wait_for("the end of every process", lambda: not processes_of(self.root), 10.0)
        return [_line(process) for process in processes_of(self.root)]

    def _done(self, *words: str | Path, timeout_s: float) -> None:
        process = self.command(*words)
        try:
            _, told = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            _, told = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))} ended with status {process.returncode}: {told}")

    # Processes

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Return its processes by role. The guard that a stage host forks off, and a nanny's worker, are not counted beside them."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in MODULES}
        for process in processes_of(self.root):
            with contextlib.suppress(psutil.Error):
                role, parent = _role(process), process.parent()
                if role is not None and (parent is None or _role(parent) != role):
                    found[role].append(process)
        return found

    def pid(self, role: str) -> int:
        """Return the only process of a role, once it is there.

        Raises
        ------
        TimeoutError
            If there is none, or more than one, for long.
        """
        return int(wait_for(f"one {role}", lambda: _only(self.roles()[role]), 30.0).pid)

    def orphans(self) -> list[str]:
        """Return the command lines of processes that no living supervisor is above: nobody would end them."""
        found = processes_of(self.root)
        top = {process.pid for process in found if _role(process) == "supervisor"}
        lost = []
        for process in found:
            with contextlib.suppress(psutil.Error):
                if process.pid not in top and not top & {parent.pid for parent in process.parents()}:
                    lost.append(_line(process))
        return lost

    # Jobs

    def api(self) -> ApiClient:
        """Return a client of the head that serves now.

        Raises
        ------
        NoHead
            If no head has ever served.
        """
        head = read_head_file(self.home.head_file)
        if head is None:
            raise NoHead(where=self.root)
        return ApiClient(head.api, head.key)

    def asked(self, ask: Callable[[ApiClient], T], timeout_s: float = 60.0) -> T:
        """Return what a head answers; one that is away is asked again until another has taken its place.

        Raises
        ------
        DgpunetError
            What the head says; NoHead once `timeout_s` seconds are over.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                return ask(self.api())
            except (NoHead, JobLost):
                if time.monotonic() > end:
                    raise
            time.sleep(_LOOK_S)

    def submit(self, folder: Path, params: Mapping[str, Any], **asked: Any) -> JobStatus:
        """Submit a workload's folder; `asked` are further fields of the request. Asks heads until one has answered.

        Give it a ``key``: a request whose answer was lost is sent again.
        """
        workload = read_workload(folder)
        request = {"workload": workload.digest, "params": complete_params(workload, params, cwd=Path.cwd()), **asked}
        return self.asked(lambda api: _submitted(api, folder, request))

    def submit_named(self, name: str, params: Mapping[str, Any], **asked: Any) -> JobStatus:
        """Submit a shipped workload, as `submit` does."""
        return self.submit(find_workload(name, cwd=Path("/")), params, **asked)

    def ended(self, job_id: str, timeout_s: float = 60.0) -> JobStatus:
        """Wait for a job's end, over however many heads.

        Raises
        ------
        StillRunning
            If it has not ended in time.
        """
        end = time.monotonic() + timeout_s
        while (status := self.asked(lambda api: api.show(job_id))).state not in FINAL_STATES:
            if time.monotonic() > end:
                raise StillRunning(job_id=job_id, timeout_s=timeout_s)
            time.sleep(_LOOK_S)
        return status

    def result(self, job_id: str) -> bytes:
        """Return the bytes that a job's gather stage left."""
        return (self.home.jobs / job_id / "result.frames").read_bytes()

    def ready(self, workers: int, timeout_s: float = 60.0) -> float:
        """Wait until a head serves and `workers` of its workers run; return how many seconds that took.

        Raises
        ------
        TimeoutError
            If they do not.
        """
        began = time.monotonic()
        wait_for(f"{workers} running workers", lambda: self._running() >= workers, timeout_s)
        return time.monotonic() - began

    def _running(self) -> int:
        with contextlib.suppress(DgpunetError):
            return sum(worker["state"] == "running" for worker in self.api().status()["workers"])
        return 0


@contextlib.contextmanager
def live_cluster(root: Path, fleet: Path | None = None, extra: Mapping[str, str] | None = None) -> Iterator[LiveCluster]:
    """Give a cluster that is up; take it down afterwards, whatever has become of it."""
    made = LiveCluster(root, fleet, extra or {})
    made.home.ensure()
    try:
        made.up()
        yield made
    finally:
        for process in processes_of(root):  # one that stands still would keep `down` waiting
            with contextlib.suppress(psutil.Error):
                process.resume()
        made.down()


def _submitted(api: ApiClient, folder: Path, request: Mapping[str, Any]) -> JobStatus:
    if not api.has_workload(str(request["workload"])):
        api.add_workload(str(request["workload"]), pack_workload(folder))
    return api.submit(request)


def _only(found: list[psutil.Process]) -> Any:
    return found[0] if len(found) == 1 else None


def _role(process: psutil.Process) -> str | None:
    try:
        words = set(process.cmdline())
    except psutil.Error:  # it has ended between two looks
        return None
    return next((role for role, modules in MODULES.items() if words.intersection(modules)), None)


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline()[:7])}"
    return f"{process.pid}"
