"""`AsyncClient`, the same from asyncio: a task that is cancelled while it waits leaves nothing behind, and many may wait at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from dgpunet_dask.client import talk
from dgpunet_dask.client.reach import Reach, options_of, parcel_named
from dgpunet_dask.client.results import results_of
from dgpunet_dask.client.talk import Course, Talk
from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster import calls
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.async_api import AsyncApi
from dgpunet_dask.cluster.wire import JobArray
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.errors import DgpunetError, UsageError
from dgpunet_dask.model.job import JobStatus

T = TypeVar("T")


class AsyncClient(Reach):
    """`Client` for asyncio: the same methods, awaited.

    >>> async with AsyncClient() as client:
    ...     job = await client.submit("embed-codebase", {"path": ["."]})
    ...     async for event in client.events(job.job_id):
    ...         print(event)

    Parameters
    ----------
    cluster, home, say, start
        As of `Client`.
    """

    def __init__(
        self, cluster: str | None = None, *, home: Home | Path | str | None = None, say: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None, start: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(cluster, home=home, say=say, clock=clock, start=start)
        self._stack = contextlib.ExitStack()
        self._finding: asyncio.Future[ApiClient] | None = None

    async def __aenter__(self) -> Self:
        entering = asyncio.ensure_future(asyncio.to_thread(self._attach))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:  # a cluster that was reached, or started, meanwhile is let go again
            await asyncio.wait([entering])
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the cluster; an embedded one ends with its last client."""
        self._api = None
        await asyncio.to_thread(self._stack.close)

    @overload
    async def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: None = None,
    ) -> JobStatus: ...  # fmt: skip

    @overload
    async def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: Sequence[Mapping[str, Any]],
    ) -> JobArray: ...  # fmt: skip

    async def submit(
        self, workload: str | Path, params: Mapping[str, Any] | None = None, *, after: str | Sequence[str] = (), key: str | None = None,
        retry: int = 0, allow_failed: int = 0, shared: bool = False, array: Sequence[Mapping[str, Any]] | None = None,
    ) -> JobStatus | JobArray:  # fmt: skip
        """Submit a workload, as `Client.submit` does."""
        parcel, rows = await asyncio.to_thread(parcel_named, workload, params, array)
        options = options_of(after=after, key=key, retry=retry, allow_failed=allow_failed, shared=shared, array=rows)
        return await self._run(talk.submit(parcel, options, self.line()))

    async def jobs(self, *, state: str | None = None, owner: str | None = None) -> list[JobStatus]:
        """Return the jobs that the caller may read, oldest first; those in a state, or of an owner."""
        return await self._run(talk.jobs(state=state, owner=owner))

    async def show(self, job_id: str, *, timeout_s: float | None = None) -> JobStatus:
        """Return one job; StillRunning where no head answers within `timeout_s` seconds."""
        return await self._run(self.job(job_id, timeout_s).ask(calls.show(job_id)))

    async def progress(self, job_id: str) -> dict[str, Any]:
        """Return how far a job is, as `Client.progress` does."""
        return await self._run(self.job(job_id).ask(calls.progress(job_id)))

    async def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return the attempts at a job's units, as `Client.attempts` does."""
        return await self._run(self.job(job_id).ask(calls.attempts(job_id)))

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job; one that has ended stays as it is."""
        return await self._run(self.job(job_id).ask(calls.cancel(job_id)))

    async def retry(self, job_id: str) -> JobStatus:
        """Take a job that failed, was cancelled or lost back to the queue, under its id and with its committed units."""
        return await self._run(self.job(job_id).ask(calls.retry(job_id)))

    async def history(self, job_id: str) -> list[dict[str, Any]]:
        """Return the job's events so far."""
        return await self._run(self.job(job_id).ask(calls.events(job_id)))

    async def wait(
        self, job_id: str, timeout_s: float | None = None, on_event: Callable[[dict[str, Any]], None] = lambda _: None, *, since: int = 0
    ) -> JobStatus:
        """Wait for the job's end and return its status, as `Client.wait` does."""
        return await self._run(self.job(job_id, timeout_s).wait(since), on_event)

    async def events(self, job_id: str, *, since: int = 0, timeout_s: float | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yield the job's events after number `since` until it has ended, or `timeout_s` seconds are over."""
        course = Course(self.job(job_id, timeout_s).events(since))
        while (event := await self._next(course)) is not None:
            yield event
            course.go(None)

    async def results(self, job_id: str) -> AsyncIterator[Any]:
        """Yield the items that a finished job of this host's head left, as `Client.results` does."""
        found = results_of(self.home, (await self.show(job_id)))
        end = object()
        while (item := await asyncio.to_thread(next, found, end)) is not end:
            yield item

    async def search(
        self, index: str, query: str, *, k: int = 10, path: str | None = None, lang: str | None = None, kind: str | Sequence[str] = (),
        rerank: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Search an index of the head's home, as `Client.search` does."""
        return await self._run(talk.search(index, talk.search_request(query, k=k, path=path, lang=lang, kind=kind, rerank=rerank)))

    def _attach(self) -> None:
        self._api = self._stack.enter_context(attach(self.home, self.cluster, start=self._start))
        self._api.tls()  # made here: it may ask the network, which must not block the loop

    async def _run(self, steps: Talk[T], on_event: Callable[[dict[str, Any]], None] = lambda _: None) -> T:
        course = Course(steps)
        while (event := await self._next(course)) is not None:
            on_event(event)
            course.go(None)
        return course.result

    async def _next(self, course: Course[Any]) -> dict[str, Any] | None:
        """Carry a talk on to the next event, and return it; ``None`` at the end."""
        while (step := course.step) is not None:
            if isinstance(step, talk.Tell):
                return step.event
            try:
                found = await self._done(step)
            except DgpunetError as error:
                course.fail(error)
            else:
                course.go(found)
        return None

    async def _done(self, step: talk.Step) -> object:
        if isinstance(step, talk.Ask):
            return await AsyncApi(self._connected()).do(step.call)
        if isinstance(step, talk.Find):
            self._api = await self._found_once()
        elif isinstance(step, talk.Pause):
            await asyncio.sleep(step.seconds)
        elif isinstance(step, talk.Do):
            return await asyncio.to_thread(step.work)
        return None

    async def _found_once(self) -> ApiClient:
        """Return the head that answers now; those who ask for it at once look once."""
        if self._finding is None:
            self._finding = asyncio.ensure_future(asyncio.to_thread(self.found))
            self._finding.add_done_callback(self._looked)
        return await asyncio.shield(self._finding)

    def _looked(self, found: asyncio.Future[ApiClient]) -> None:
        self._finding = None
        if not found.cancelled():
            found.exception()  # nobody may be left who wants to know

    def _connected(self) -> ApiClient:
        if self._api is None:
            raise UsageError(detail="The client is not open. Use it inside `async with`.")
        return self._api
