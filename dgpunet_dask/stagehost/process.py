"""One stage host as the agent sees it: started, spoken with, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import DgpunetError, StageHostLost, StageHung
from dgpunet_dask.stagehost.asyncwire import AsyncWire
from dgpunet_dask.stagehost.evidence import Evidence, exit_of, oom_counter, oom_kills, with_evidence
from dgpunet_dask.stagehost.logs import LogFile
from dgpunet_dask.stagehost.reports import disk_full
from dgpunet_dask.stagehost.spec import StageCallSpec
from dgpunet_dask.stagehost.wire import Packet

#: A disk with less room than this is full: a stage host that ended on it ended of that.
FULL_BYTES: Final = 64 << 10
#: The messages that tell what was printed meanwhile.
_WITH_LOG: Final = frozenset({"loaded", "result", "end"})
#: The messages that end an exchange; the others are on the way.
_LAST: Final = frozenset({"loaded", "facts", "error", "end"})
#: How long a process whose connection is gone may take to be gone itself.
_EXIT_S: Final = 5.0

Deliver = Callable[[Packet], Awaitable[None]]


@dataclass(frozen=True)
class Launch:
    """How to start a stage host."""

    command: Sequence[str]
    environ: Mapping[str, str]
    folder: Path
    log: Path
    lifeline: int


@dataclass(frozen=True)
class Grace:
    """How long a stage host may take to end: to unload its stage, then after SIGTERM. In seconds."""

    unload_s: float = 10.0
    term_s: float = 3.0


@dataclass(frozen=True)
class _Began:
    """How things stood when an exchange began: by the loop's clock, in the log, in the count of what the kernel killed."""

    at_s: float
    place: int
    kills: int | None


class StageProcess:
    """A child process and the connection to it. `start` makes one."""

    def __init__(self, spec: StageCallSpec, process: asyncio.subprocess.Process, wire: AsyncWire, log: Path) -> None:
        self.spec = spec
        self.log = LogFile(log)
        self._process = process
        self._wire = wire
        self._moved = 0.0
        self._exchanging = asyncio.Lock()
        self._credits: int | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._deadline_s = spec.deadline_s
        self._stood_s: float | None = None
        self._oom_counter = oom_counter(process.pid)
        self._began = self._now()

    @classmethod
    async def start(cls, spec: StageCallSpec, launch: Launch) -> StageProcess:
        """Start the process; the stage is not loaded yet."""
        ours, theirs = socket.socketpair()
        log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *launch.command, "--socket", str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=launch.folder, env=dict(launch.environ),
                pass_fds=(theirs.fileno(), launch.lifeline), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log)
        return cls(spec, process, AsyncWire(ours), launch.log)

    @property
    def pid(self) -> int:
        """The process id, also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs: a process that died a moment ago has closed its connection before the loop hears of its end."""
        return self._process.returncode is None and not self._wire.closed_by_peer()

    async def gone(self) -> None:
        """Wait until the process has ended, then end what it left in its group."""
        await self._process.wait()
        self._signal(signal.SIGKILL)

    async def exchange(self, request: Packet, deliver: Deliver, allowed: int | None = None) -> Packet:
        """Send `request`, hand each answer on the way to `deliver` and return the last one.

        Each result, and the end, has in its field ``log`` what the process has printed since the one before; an error has its `Evidence`.

        Parameters
        ----------
        allowed
            For a stream: how many results it may give before `credit` allows more. While it has none, its deadline stands still.

        Raises
        ------
        StageHung
            If there was no progress for the request's deadline; the process is killed.
        StageHostLost
            If the process ended.
        """
        async with self._exchanging:
            return await self._exchange(request, deliver, allowed)

    async def _exchange(self, request: Packet, deliver: Deliver, allowed: int | None) -> Packet:
        self._credits, self._deadline_s = allowed, _deadline_of(request, self.spec)
        self._began, told = self._now(), self.log.place()
        self._moved = self._began.at_s
        try:
            await self._wire.send(request)
            while True:
                answer = await self._answer()
                told = self._annotate(answer, told)
                if answer.kind in _LAST or (answer.kind == "result" and allowed is None):
                    return answer
                if answer.kind == "result" and self._credits is not None:
                    self._credits -= 1
                if answer.kind != "progress":
                    await deliver(answer)
        except (ConnectionError, OSError) as error:
            raise await self._lost() from error
        finally:
            if self._killer is not None:
                self._killer.cancel()

    def _annotate(self, answer: Packet, told: int) -> int:
        """Add to `answer` what was printed since the place `told`, or the evidence; return up to where that is told now."""
        if answer.kind == "error":
            answer.fields["error"] = with_evidence(answer.fields["error"], self._evidence())
        elif answer.kind in _WITH_LOG:
            told, since = self.log.place(), told
            answer.fields["log"] = self.log.text(since, told)
        return told

    def _now(self) -> _Began:
        return _Began(asyncio.get_running_loop().time(), self.log.place(), oom_kills(self._oom_counter))

    def _evidence(self, returncode: int | None = None) -> Evidence:
        began, now = self._began, self._now()
        exit_signal, exit_status = exit_of(returncode)
        return Evidence(
            pid=self.pid,
            device=self.spec.device,
            seconds=now.at_s - began.at_s,
            exit_signal=exit_signal,
            exit_status=exit_status,
            cgroup_oom_kills=None if now.kills is None or began.kills is None else now.kills - began.kills,
            log_tail=self.log.tail(began.place),
        )

    async def _answer(self) -> Packet:
        """Return the next message; a missing one ends the process after the deadline."""
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(self._wire.receive())
        try:
            while True:
                left = self._moved + self._deadline_s - loop.time()
                done, _ = await asyncio.wait({waiting}, timeout=max(0.0, left))
                if done:
                    break
                if self._credits is not None and self._credits <= 0:
                    self._moved = loop.time()
                elif loop.time() >= self._moved + self._deadline_s:
                    raise await self._hung()
        except BaseException:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)  # its socket must not be closed under it
            raise
        self._moved = loop.time()
        packet = waiting.result()
        if packet is None:
            raise ConnectionResetError("the stage host closed its connection")
        return packet

    async def credit(self, n: int) -> None:
        """Allow `n` more results of the running stream."""
        if self._credits is not None:
            self._credits += n
            self._moved = asyncio.get_running_loop().time()
            await self._wire.send(Packet.of("credit", {"n": n}))

    async def cancel(self, within_s: float) -> None:
        """Ask the running stream to stop; if it has not after `within_s`, the process is killed."""
        self._killer = asyncio.get_running_loop().call_later(within_s, self._signal, signal.SIGKILL)
        await self._wire.send(Packet.of("cancel"))

    async def end(self, grace: Grace) -> None:
        """End the process and wait until it is gone: unload, then SIGTERM, then SIGKILL. The stage must be idle."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                await self._wire.send(Packet.of("end"))
            if not await self._gone_within(grace.unload_s):
                self._signal(signal.SIGTERM)
                if not await self._gone_within(grace.term_s):
                    await self.kill()
        await self.gone()

    async def close(self) -> None:
        """Close the connection to a process that is gone, once the exchange that is going on has seen its end."""
        async with self._exchanging:
            self._wire.close()

    async def kill(self) -> None:
        """Kill the process with its whole group, at once, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        await self.gone()

    def kill_stopped(self, stood_s: float) -> None:
        """Kill a process that a signal had stopped for `stood_s` seconds, with its whole group; a call that it serves fails and says why."""
        self._stood_s = stood_s
        self._signal(signal.SIGKILL)

    async def _gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            os.killpg(self.pid, number)

    async def _hung(self) -> DgpunetError:
        await self.kill()
        return self._ended(StageHung, self._evidence(), deadline_s=self._deadline_s)

    async def _lost(self) -> DgpunetError:
        left = await self._gone_within(_EXIT_S)
        await self.kill()
        how = how_ended(self._process.returncode) if left else "it closed its connection and was killed"
        if self._stood_s is not None:
            how += f", since a signal had stopped it for {self._stood_s:.0f} s"
        if shutil.disk_usage(self.log.path.parent).free < FULL_BYTES:
            return disk_full(self.log.path.parent)  # another start would end like this one
        return self._ended(StageHostLost, self._evidence(self._process.returncode if left else None), how=how, attempts=1)

    def _ended(self, kind: type[DgpunetError], evidence: Evidence, **more: object) -> DgpunetError:
        return kind(stage=self.spec.stage, log=str(self.log.path), **evidence.fields(), **more)


def _deadline_of(request: Packet, spec: StageCallSpec) -> float:
    return float(request.fields.get("spec", {}).get("deadline_s", spec.deadline_s))


def how_ended(returncode: int | None) -> str:
    """Return ``SIGKILL`` or ``exit status 3``."""
    name, status = exit_of(returncode)
    if name is not None:
        return name
    return "it is not known how" if status is None else f"exit status {status}"
