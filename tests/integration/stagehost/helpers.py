"""Helpers: an agent's stage hosts in a thread, workloads written on the spot, and polling with a deadline."""

import asyncio
import os
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgpunet_dask.config.home import Home
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.hosts import Limits
from dgpunet_dask.stagehost.manager import StageHosts
from dgpunet_dask.stagehost.process import Grace
from dgpunet_dask.stagehost.spec import StageCallSpec

DIGEST = "5a" * 32


class Agent:
    """Stage hosts served by an event loop in a thread, as an agent serves them."""

    def __init__(self, root: Path, **options: Any) -> None:
        options.setdefault("limits", Limits(cpu_hosts=4, grace=Grace(unload_s=2.0, term_s=2.0), cancel_s=2.0))
        self.home = Home(root).ensure()
        self.hosts = StageHosts(self.home, **options)
        self.client = AgentClient(self.home.agent_socket)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agent")

    def start(self) -> None:
        self._thread.start()
        self.do(self.hosts.start())

    def do(self, work: Any) -> Any:
        """Run a coroutine on the agent's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def now(self, read: Callable[[], Any]) -> Any:
        """Call `read` on the agent's loop."""

        async def reading() -> Any:
            return read()

        return self.do(reading())

    def stop(self) -> None:
        if self._thread.is_alive():
            self.do(self.hosts.stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=30)
            self._loop.close()

    def pids(self) -> list[int]:
        return sorted(self.now(self.hosts.pids))

    def write(self, source: str, name: str = "stages.py", digest: str = DIGEST) -> None:
        folder = self.home.workloads / digest
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(source))


def spec(name: str, **fields: Any) -> StageCallSpec:
    """Return the spec of the class `name` in stages.py, on a CPU with a deadline that no healthy test meets."""
    defaults = {"stage": name.lower(), "run": f"stages:{name}", "digest": DIGEST, "device": "h/cpu", "deadline_s": 60.0, "job_id": "j1"}
    return StageCallSpec(**(defaults | fields))


def until(holds: Callable[[], Any], what: str, within_s: float = 20.0) -> Any:
    """Poll until `holds` gives something true and return it; fail, saying `what`, after `within_s`."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return found


def exists(pid: int) -> bool:
    """Whether the process `pid` is there and no zombie."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def in_thread(work: Callable[[], Any]) -> tuple[list[Any], threading.Thread]:
    """Run `work` in a thread; return what it gave or raised, in a list, and the thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return found, thread
