"""A head over a real socket, in this process's loop: it can be killed, and begins again with what it had written down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from dgpunet_dask.cluster.headfile import HeadFile, write_head_file
from dgpunet_dask.cluster.wire import error_to_wire, job_to_wire
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, NoSuchJob
from dgpunet_dask.model.job import FINAL_STATES, JobStatus


class Ledger:
    """What survives a head: jobs, their events, and the keys of submissions."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobStatus] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, list[str]] = {}
        self.workloads: set[str] = set()
        self.requests: list[dict[str, Any]] = []

    def accept(self, request: dict[str, Any]) -> list[str]:
        self.requests.append(request)
        if request.get("key") not in self.keys:
            ids = [f"job-{len(self.jobs) + n}" for n in range(1, len(request.get("array", [0])) + 1)]
            for job_id in ids:
                self.jobs[job_id] = JobStatus(job_id=job_id, workload=request["workload"], state="running", owner=request["user"])
                self.tell(job_id, "state", state="running")
            self.keys[request["key"]] = ids
        return self.keys[request["key"]]

    def tell(self, job_id: str, kind: str, **facts: Any) -> None:
        told = self.events.setdefault(job_id, [])
        told.append({"seq": len(told) + 1, "time": 1e9 + len(told), "kind": kind, **facts})

    def end(self, job_id: str, state: Any = "done", **more: Any) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], state=state, seconds=1.5, **more)
        self.tell(job_id, "state", state=state)


class Server:
    """One head after another over the same ledger."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.ledger = Ledger()
        self.key = "key-1"
        self.port = 0
        self.served = 0
        self.refuse: dict[str, tuple[int, DgpunetError]] = {}
        self.answers: dict[str, Any] = {}  # instead of its own
        self.drop_next: str | None = None
        self.open: set[asyncio.StreamWriter] = set()
        self.waiting = 0  # questions for events that there are none of yet
        self.changed = asyncio.Event()  # for those who wait for events
        self.moved = asyncio.Event()  # for the test: connections came or went, or the head did
        self.serving = False
        self.stages: list[str] | None = ["count", "embed"]
        self.silent = False  # it takes questions for events, and never answers
        self._server: asyncio.Server | None = None

    async def start(self, *, embedded: bool = False) -> None:
        """Listen, and write the head file as a head that serves does."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.home.ensure()
        created = psutil.Process().create_time()
        head = HeadFile(pid=os.getpid(), created=created, api=f"http://127.0.0.1:{self.port}", key=self.key, scheduler="", embedded=embedded)
        write_head_file(self.home.head_file, head)
        self.serving = True

    async def kill(self, *, forget_port: bool = False) -> None:
        """Be gone at once, with every connection; the head file then names a process that is dead."""
        assert self._server is not None
        self._server.close()
        self.serving = False
        self.moved.set()
        for writer in list(self.open):
            writer.transport.abort()
        write_head_file(self.home.head_file, HeadFile(pid=os.getpid(), created=1.0, api=f"http://127.0.0.1:{self.port}", key=self.key, scheduler=""))
        self.port = 0 if forget_port else self.port

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(30):
            while not so():
                self.moved.clear()
                await self.moved.wait()

    async def asked(self) -> None:
        """Wait until a connection comes or goes."""
        self.moved.clear()
        await self.moved.wait()

    def tell(self, job_id: str, kind: str, **facts: Any) -> None:
        self.ledger.tell(job_id, kind, **facts)
        self.news()

    def end(self, job_id: str, state: Any = "done", **more: Any) -> None:
        self.ledger.end(job_id, state, **more)
        self.news()

    def news(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        self.moved.set()
        try:
            await self._request(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            self.moved.set()
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = lines[0].split(" ")
        path, _, query = target.partition("?")
        self.served += 1
        if path == "/v1/lease":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"lease": 1}\n')
            await reader.read()
            return
        answering = asyncio.create_task(self._answered(method, path, dict(urllib.parse.parse_qsl(query)), headers, body))
        leaving = asyncio.create_task(reader.read())
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait([answering])
            return
        status, answer = answering.result()
        if self.drop_next == f"{method} {path}":  # it was done, and nobody hears of it
            self.drop_next = None
            await self.kill()
            return
        text = json.dumps(answer).encode()
        more = f"Retry-After: {answer['error']['wait']}\r\n" if status == 429 else ""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + (b"" if method == "HEAD" else text))
        await writer.drain()

    async def _answered(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": {"code": "http_401", "message": "the API key is missing or wrong", "reasons": []}}
        if f"{method} {path}" in self.refuse:
            status, error = self.refuse[f"{method} {path}"]
            return status, {"error": {**error_to_wire(error), "wait": error.fields.get("wait_s")}}
        if f"{method} {path}" in self.answers:
            return 200, self.answers[f"{method} {path}"]
        try:
            return await self._routed(method, path.split("/")[2:], query, body)
        except DgpunetError as error:
            return 404, {"error": error_to_wire(error)}

    async def _routed(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if parts[0] == "workloads":
            if method == "PUT":
                self.ledger.workloads.add(parts[1])
            return (200 if parts[1] in self.ledger.workloads else 404), {}
        if parts == ["status"]:
            return 200, {"head_pid": 1}
        if parts == ["jobs"]:
            return self._jobs(json.loads(body)) if method == "POST" else (200, self._listed(query))
        if parts == ["lease", "1", "release"]:
            return 200, {"last": False}
        return 200, await self._of_job(parts[1], "".join(parts[2:]), query)

    def _jobs(self, request: dict[str, Any]) -> tuple[int, Any]:
        jobs = [job_to_wire(self.ledger.jobs[job_id]) for job_id in self.ledger.accept(request)]
        return 201, {"array_id": "array-1", "jobs": jobs} if "array" in request else jobs[0]

    def _listed(self, query: dict[str, str]) -> list[Any]:
        return [job_to_wire(job) for job in self.ledger.jobs.values() if query.get("state") in {None, job.state}]

    async def _of_job(self, job_id: str, what: str, query: dict[str, str]) -> Any:
        if job_id not in self.ledger.jobs:
            raise NoSuchJob(job_id=job_id)
        if what == "events" and self.silent:
            await asyncio.Event().wait()
        if what == "events":
            return await self._events(job_id, int(query["since"]), float(query["wait"]))
        if what == "progress":
            units = {"total": 4, "done": 3, "reused": 0, "failed": 1, "attempts": 6}
            stages = [{"stage": "embed", "waiting": 0, "running": 1, "done": 3}]
            devices = [{"device": "5090", "running": 1, "done": 3, "seconds": 2.25}]
            return {"units": units, "rate_per_s": 1.5, "eta_s": 150.0, "stages": stages, "devices": devices, "all_stages": self.stages}
        if what == "attempts":
            about = {"epoch": 4294967297, "device": "5090", "host": "tower", "started_s": 1e9, "ended_s": 1e9 + 1}
            failed = {"unit": 7, "state": "failed", "cause": "gpu-oom", "evidence": {"why": "its peak was 9 GiB"}, **about}
            return [failed, {"unit": 8, "state": "committed", "cause": None, "evidence": {}, **about}]
        if what == "cancel" and self.ledger.jobs[job_id].state not in FINAL_STATES:
            self.end(job_id, "cancelled", exit_code=103)
        if what == "retry":
            self.ledger.jobs[job_id] = replace(self.ledger.jobs[job_id], state="queued", error=None, exit_code=0)
            self.tell(job_id, "state", state="queued")
        return job_to_wire(self.ledger.jobs[job_id])

    async def _events(self, job_id: str, since: int, wait_s: float) -> list[dict[str, Any]]:
        with contextlib.suppress(TimeoutError), self._counted():
            async with asyncio.timeout(wait_s):
                while len(self.ledger.events[job_id]) <= since and self.ledger.jobs[job_id].state not in FINAL_STATES:
                    self.moved.set()
                    await self.changed.wait()
        return self.ledger.events[job_id][since:]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self.moved.set()


def a_workload(folder: Path) -> Path:
    """Write a workload and return its folder."""
    folder.mkdir()
    (folder / "job.yaml").write_text(
        "version: 1\nname: words\nparams: {n: {type: int, default: 1}, tags: {type: string, list: true}}\n"
        'stages:\n  read: {run: "stages:Read"}\n  count: {run: "stages:Count", after: read}\n'
    )
    (folder / "stages.py").write_text("from dgpunet_dask import Stage\n\n\nclass Read(Stage):\n    pass\n\n\nclass Count(Stage):\n    pass\n")
    return folder
