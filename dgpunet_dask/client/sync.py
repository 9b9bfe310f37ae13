"""`Client`, which waits where it stands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

from dgpunet_dask.client import talk
from dgpunet_dask.client.reach import Reach, options_of, parcel_named, parcel_of
from dgpunet_dask.client.results import results_of
from dgpunet_dask.client.talk import Course, JobOptions, Talk
from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.wire import JobArray
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.failpoints import hit
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.model.pipeline import Workload

T = TypeVar("T")


class Client(Reach):
    """A connection to a cluster: a head's, or an embedded one for as long as the client is open.

    It survives a killed head: what is under way is asked again of the one that follows, for up to 60 seconds.

    Parameters
    ----------
    cluster
        Name or address of a head's HTTP API; ``None``: ``$DGPUNET_CLUSTER``, the head under `home`, else an embedded cluster.
    home
        Instead of ``$DGPUNET_HOME``.
    say
        Is told that the head is away and waited for.
    start
        Whether an embedded cluster is started where no head runs.

    Raises
    ------
    NoHead
        If a named cluster does not answer, or without `start` no head runs.
    """

    def __init__(
        self, cluster: str | None = None, *, home: Home | Path | str | None = None, say: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None, pause: Callable[[float], None] = time.sleep, start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(cluster, home=home, say=say, clock=clock, start=start)
        self._stack = contextlib.ExitStack()
        self._pause = pause

    def __enter__(self) -> Self:
        self.api  # noqa: B018  # connects
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    @property
    def api(self) -> ApiClient:
        """The connection, made when first asked for."""
        if self._api is None:
            self._api = self._stack.enter_context(attach(self.home, self.cluster, start=self._start))
        return self._api

    def close(self) -> None:
        """Let go of the cluster; an embedded one ends with its last client."""
        self._api = None
        self._stack.close()

    @overload
    def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: None = None,
    ) -> JobStatus: ...  # fmt: skip

    @overload
    def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: Sequence[Mapping[str, Any]],
    ) -> JobArray: ...  # fmt: skip

    def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: Sequence[Mapping[str, Any]] | None = None,
    ) -> JobStatus | JobArray:  # fmt: skip
        """Submit a workload by shipped name or folder, and return at once. Relative paths are taken from the working directory.

        Parameters
        ----------
        after
            Ids of jobs that must be done before it starts.
        key
            Names this submission: sent again with the same key, it is the same job.
        retry
            How often the job is started again by itself if it fails; its committed units are kept.
        allow_failed
            How many units may fail for good while the job still counts as done.
        shared
            Whether every user of the cluster may read the job.
        array
            A mapping of parameters for each job of an array; a JobArray is returned.

        Raises
        ------
        UsageError, NotFound
            For an unknown workload or a bad parameter, before anything is sent.
        TooManyJobs
            If the user has as many jobs as he may; ``error.fields["wait_s"]`` says when to ask again.
        """
        parcel, rows = parcel_named(workload, params, array)
        options = options_of(after=after, key=key, retry=retry, allow_failed=allow_failed, shared=shared, array=rows)
        return self._run(talk.submit(parcel, options, self.line()))

    def submit_read(self, workload: Workload, params: Mapping[str, Any], options: JobOptions) -> JobStatus | JobArray:
        """Submit a workload that was read, and parameters that were cast; `options` has a key."""
        return self._run(talk.submit(parcel_of(workload, params), options, self.line()))

    def plan(self, workload: Workload, params: Mapping[str, Any], after: Sequence[str] = ()) -> dict[str, Any]:
        """Return where each stage could go now, without running it; NoSuchJob if one of the jobs `after` is not there."""
        return self._run(talk.plan(parcel_of(workload, params), after))

    def jobs(self, *, state: str | None = None, owner: str | None = None) -> list[JobStatus]:
        """Return the jobs that the caller may read, oldest first; those in a state, or of an owner."""
        return self._run(talk.jobs(state=state, owner=owner))

    def show(self, job_id: str, *, timeout_s: float | None = None) -> JobStatus:
        """Return one job; StillRunning where no head answers within `timeout_s` seconds."""
        return self._run(self.job(job_id, timeout_s).ask(calls.show(job_id)))

    def progress(self, job_id: str) -> dict[str, Any]:
        """Return how far a job is: ``units``, ``rate_per_s``, ``eta_s`` (``None``: not known), ``stages`` and ``devices``."""
        return self._run(self.job(job_id).ask(calls.progress(job_id)))

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return the attempts at a job's units, each with its device, state, and the cause if it failed."""
        return self._run(self.job(job_id).ask(calls.attempts(job_id)))

    def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; one that has ended stays as it is."""
        return self._run(self.job(job_id).ask(calls.cancel(job_id)))

    def retry(self, job_id: str) -> JobStatus:
        """Take a job that failed, was cancelled or lost back to the queue, under its id and with its committed units."""
        return self._run(self.job(job_id).ask(calls.retry(job_id)))

    def events(self, job_id: str, *, since: int = 0, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield the job's events after number `since` until it has ended, or `timeout_s` seconds are over."""
        return self._told(self.job(job_id, timeout_s).events(since))

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's events so far."""
        return self._run(self.job(job_id).ask(calls.events(job_id)))

    def wait(
        self, job_id: str, timeout_s: float | None = None, on_event: Callable[[dict[str, Any]], None] = lambda _: None, *, since: int = 0
    ) -> JobStatus:
        """Wait for the job's end and return its status, whatever the end was.

        Raises
        ------
        StillRunning
            After `timeout_s` seconds; the job goes on.
        JobLost
            If its head is gone and none followed within 60 seconds, or the one that did does not know it.
        """
        return self._run(self.job(job_id, timeout_s).wait(since), on_event)

    def results(self, job_id: str) -> Iterator[Any]:
        """Yield the items that a finished job of this host's head left: those of its gather stage, else of the ends of its graph.

        Their classes are imported from the workload's own code, so read only results of workloads you trust.

        Raises
        ------
        ResultsElsewhere
            If its files are not under this client's home: results are read on the head's host.
        """
        return results_of(self.home, self.show(job_id))

    def search(
        self, index: str, query: str, *, k: int = 10, path: str | None = None, lang: str | None = None, kind: str | Sequence[str] = (),
        rerank: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Search an index of the head's home; return the object of ``search --json``, best hits first.

        Parameters
        ----------
        path
            A glob as in ``.gitignore``.
        lang
            A language, in lower case.
        kind
            Only parts of such a definition (``function``, ``class``, …), of any of several.
        rerank
            A reranker of the head's settings, which reads the best hits again.

        Raises
        ------
        NoSuchIndex
            If there is none that the caller may read.
        BadValue
            For a kind or a glob that is none.
        RerankerUnavailable
            If the head has no such reranker.
        """
        return self._run(talk.search(index, talk.search_request(query, k=k, path=path, lang=lang, kind=kind, rerank=rerank)))

    def _run(self, course: Talk[T], on_event: Callable[[dict[str, Any]], None] = lambda _: None) -> T:
        told = self._told(course)
        while True:
            try:
                on_event(next(told))
            except StopIteration as end:
                return cast("T", end.value)

    def _told(self, steps: Talk[T]) -> Generator[dict[str, Any], None, T]:
        """Carry a talk out, and yield what it tells."""
        course = Course(steps)
        while (step := course.step) is not None:
            if isinstance(step, talk.Tell):
                yield step.event
                course.go(None)
                continue
            try:
                found = self._done(step)
            except DgpunetError as error:
                course.fail(error)
            else:
                course.go(found)
        return course.result

    def _done(self, step: talk.Step) -> object:
        if isinstance(step, talk.Ask):
            answer = self.api.do(step.call)
            _came(step.call)
            return answer
        if isinstance(step, talk.Find):
            self._api = self.found()
        elif isinstance(step, talk.Pause):
            self._pause(step.seconds)
        elif isinstance(step, talk.Do):
            return step.work()
        return None


def _came(call: calls.Call[Any]) -> None:
    """Come to the points at which a client may fail once it has an answer."""
    if (call.method, call.path) == ("POST", "/v1/jobs"):
        hit("submit.answered")
    elif "/events?" in call.path:
        hit("wait.polled")
