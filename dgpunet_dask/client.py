"""`Client`: submit, wait and read results from Python. The command line is written with it.

>>> with Client() as client:
...     job = client.submit("embed-codebase", {"path": ["."], "index": "here"})
...     status = client.wait(job.job_id)
"""

from __future__ import annotations

import contextlib
import getpass
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.config.home import Home, home_from
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.errors import StillRunning
from dgpunet_dask.jobs.params import cast_params, complete_params
from dgpunet_dask.jobs.store import find_workload, pack_workload, read_workload
from dgpunet_dask.model.job import FINAL_STATES, JobStatus
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.stagehost import loader
from dgpunet_dask.stagehost.frames import read_frames, unpack

#: How long one question for events may stay unanswered.
POLL_S: Final = 20.0


class Client:
    """A connection to a cluster: a head's, or an embedded one for as long as the client is open.

    Parameters
    ----------
    cluster
        Name or address of a head's HTTP API; ``None``: ``$DGPUNET_CLUSTER``, the head under `home`, else an embedded cluster.
    home
        Instead of ``$DGPUNET_HOME``.

    Raises
    ------
    NoHead
        If a named cluster does not answer.
    """

    def __init__(self, cluster: str | None = None, *, home: Home | Path | str | None = None) -> None:
        self.home = home if isinstance(home, Home) else home_from() if home is None else Home(Path(home).absolute())
        self.cluster = cluster
        self._stack = contextlib.ExitStack()
        self._api: ApiClient | None = None

    def __enter__(self) -> Self:
        self.api  # noqa: B018  # connects
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    @property
    def api(self) -> ApiClient:
        """The connection, made when first asked for."""
        if self._api is None:
            self._api = self._stack.enter_context(attach(self.home, self.cluster))
        return self._api

    def close(self) -> None:
        """Let go of the cluster; an embedded one ends with its last client."""
        self._api = None
        self._stack.close()

    def submit(self, workload: str | Path, params: Mapping[str, Any] | None = None) -> JobStatus:
        """Submit a workload by shipped name or folder, and return at once. Relative paths are taken from the working directory.

        Raises
        ------
        UsageError, NotFound
            For an unknown workload or a bad parameter, before anything is sent.
        """
        found = read_workload(find_workload(str(workload), cwd=Path.cwd()))
        return self.submit_read(found, complete_params(found, params or {}, cwd=Path.cwd()))

    def submit_settings(self, workload: str, pairs: list[tuple[str, str]]) -> JobStatus:
        """Submit with parameters as text, as ``--set`` gives them."""
        found = read_workload(find_workload(workload, cwd=Path.cwd()))
        return self.submit_read(found, cast_params(found, pairs, cwd=Path.cwd()))

    def submit_read(self, workload: Workload, params: Mapping[str, Any], *, shared: bool = False) -> JobStatus:
        """Submit a workload that was read and parameters that were cast. `shared`: every user of the cluster may read the job."""
        return self.api.submit({**self._request(workload, params), "shared": shared})

    def plan(self, workload: Workload, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return where each stage could go now, without running it."""
        return self.api.plan(self._request(workload, params))

    def _request(self, workload: Workload, params: Mapping[str, Any]) -> dict[str, Any]:
        if not self.api.has_workload(workload.digest):
            self.api.add_workload(workload.digest, pack_workload(Path(workload.folder)))
        return {"workload": workload.digest, "params": dict(params), "user": _user()}

    def events(self, job_id: str, *, since: int = 0, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield the job's events from number `since` on until it has ended, or `timeout_s` seconds are over."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        ended = False
        while True:
            left = POLL_S if until is None else min(POLL_S, until - time.monotonic())
            found = self.api.events(job_id, since=since, wait_s=max(0.0, left))
            for event in found:
                since = max(since, int(event["seq"]))
                yield event
                if event["kind"] == "state" and event["state"] in FINAL_STATES:
                    return
            if ended or (until is not None and time.monotonic() >= until):
                return
            # a job of a lost head has no last event; what came between that answer and this one is asked for once more
            ended = not found and self.api.show(job_id).state in FINAL_STATES

    def wait(
        self, job_id: str, timeout_s: float | None = None, on_event: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> JobStatus:
        """Wait for the job's end and return its status, whatever the end was.

        Raises
        ------
        StillRunning
            After `timeout_s` seconds; the job goes on.
        """
        for event in self.events(job_id, timeout_s=timeout_s):
            on_event(event)
        status = self.api.show(job_id)
        if status.state not in FINAL_STATES:
            raise StillRunning(job_id=job_id, timeout_s=timeout_s)
        return status

    def results(self, job_id: str) -> Iterator[Any]:
        """Yield the items that a finished job of this host's head left: those of its gather stage, else of the ends of its graph.

        Their classes are imported from the workload's own code, so read only results of workloads you trust.
        """
        loader.install(self.home.workloads)
        folder = self.home.jobs / self.api.show(job_id).job_id
        gathered = folder / "result.frames"
        for file in [gathered] if gathered.is_file() else sorted((folder / "results").glob("*.frames")):
            yield from unpack(read_frames(file))


def _user() -> str | None:
    """Return the name of who calls, as policies match it; ``None`` where the system has none for this user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
