"""A pipe from owner to child, so that a child ends when its owner does, even by ``kill -9``.

The owner keeps the write end and never writes more than one byte; the child inherits the read end and waits in a thread. End of file
means that the owner is gone, whatever ended it: the kernel closes the pipe. One byte, ``RELEASE``, means that the child may go on alone.

`lifeline_preload` does the same for Dask's own processes. Standard library only, since every child imports it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

log = logging.getLogger(__name__)

#: Tells a scheduler the file with the policies of its head (`Home.policies_in_force`).
POLICIES_ENV: Final = "DGPUNET_POLICIES"
#: The same of the devices that an earlier scheduler had (`Home.expected_devices`).
EXPECTED_ENV: Final = "DGPUNET_EXPECTED_DEVICES"
#: What libraries read before they tell their makers of their use: nothing leaves this cluster.
NO_TELEMETRY: Final = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_TELEMETRY": "1", "OPENVINO_TELEMETRY_DISABLE": "1"}
ENV: Final = "DGPUNET_LIFELINE_FD"
RELEASE: Final = b"r"
#: A log that is longer when its process starts is moved aside once, so that logs never grow without end.
LOG_BYTES_MAX: Final = 4 << 20
_POLL_S: Final = 0.1
#: How long a killed process is waited for. It ends at once, unless it hangs inside a driver; whoever waits must not hang with it.
REAP_S: Final = 5.0


class OwnedProcess:
    """A child that ends when this process ends.

    Parameters
    ----------
    process
        The running child.
    line
        The write end of its lifeline.
    """

    def __init__(self, process: subprocess.Popen[bytes], line: int) -> None:
        self.process = process
        self._line: int | None = line

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self.process.poll()

    def release(self) -> None:
        """Let the child outlive this process."""
        if self._line is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._line, RELEASE)
        self.cut()

    def cut(self) -> None:
        """Close the lifeline: a child that was not released ends itself."""
        if self._line is not None:
            os.close(self._line)
            self._line = None

    def kill(self) -> None:
        """End the child at once and reap it; one that hangs inside a driver is not waited for longer than `REAP_S`."""
        if self.process.poll() is None:
            self.process.kill()
        try:
            self.process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            log.error("process %d does not end of a kill: it hangs inside the kernel", self.process.pid)
        self.cut()

    async def ended(self) -> int:
        """Wait for the child's end and return its exit status."""
        while self.process.poll() is None:
            await _pid_ends(self.pid)
        self.cut()
        return int(self.process.returncode)

    async def stop(self, grace_s: float) -> int:
        """Ask the child to end with SIGTERM, kill it after `grace_s` seconds, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.ended()
        self.kill()
        return int(self.process.returncode)


async def _pid_ends(pid: int) -> None:
    """Return soon after the child `pid` has ended; exactly then where the system has pidfds."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.sleep(_POLL_S)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    handle = os.pidfd_open(pid)
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_file: Path,
    cwd: Path | None = None,
    stdout: int | None = None,
) -> OwnedProcess:
    """Start `argv` as a child that ends when this process ends.

    Parameters
    ----------
    env
        The child's whole environment; the lifeline is added.
    log_file
        Takes the child's standard error, and its standard output unless `stdout` says otherwise. Readable by its owner only.
    cwd
        The child's working directory.
    stdout
        ``subprocess.PIPE`` to read what the child prints.

    Raises
    ------
    OSError
        If the program or the log file cannot be opened.
    """
    read, write = os.pipe()
    try:
        with open_log(log_file) as log:
            process = subprocess.Popen(
                list(argv),
                env={**env, ENV: f"{read}:{os.fstat(read).st_ino}"},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                pass_fds=(read,),
                start_new_session=True,  # the terminal's Ctrl-C is for the command alone; it decides what ends
            )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return OwnedProcess(process, write)


def watch(on_eof: Callable[[], None], environ: dict[str, str] | os._Environ[str] | None = None) -> bool:
    """Call `on_eof` from a daemon thread once the owner is gone; return whether this process has a lifeline.

    The variable is removed, so that it never reaches a grandchild. The pipe is recognised by its inode as well: after a
    ``multiprocessing`` spawn the number may belong to something else.
    """
    environ = os.environ if environ is None else environ
    fd, inode = _parse(environ.pop(ENV, ""))
    if fd is None or not _is_pipe(fd, inode):
        return False
    os.set_inheritable(fd, False)
    threading.Thread(target=_wait_for_eof, args=(fd, on_eof), name="lifeline", daemon=True).start()
    return True


def _parse(text: str) -> tuple[int | None, int]:
    fd, _, inode = text.partition(":")
    return (int(fd), int(inode)) if fd.isdigit() and inode.isdigit() else (None, 0)


def _is_pipe(fd: int, inode: int) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISFIFO(found.st_mode) and found.st_ino == inode


def _wait_for_eof(fd: int, on_eof: Callable[[], None]) -> None:
    word = os.read(fd, 1)
    os.close(fd)
    if word != RELEASE:
        on_eof()


def end_now() -> None:
    """End this process at once: its owner is gone, and there is nobody left to tell."""
    os._exit(1)


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for appending, mode 0600; a long one is moved to ``NAME.1`` first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_name(path.name + ".1"))
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        yield log


def python_argv(module: str, *args: str) -> list[str]:
    """Return the command that runs `module` with this interpreter, without the working directory on its path."""
    return [sys.executable, "-P", "-m", module, *args]


def child_env(extra: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment plus `extra`, with this package importable from any working directory."""
    base = dict(os.environ if environ is None else environ)
    package_root = str(Path(__file__).resolve().parents[2])
    inherited = [str(Path(p).absolute()) for p in base.get("PYTHONPATH", "").split(os.pathsep) if p]
    base["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([package_root, *inherited]))
    return {**base, **NO_TELEMETRY, **extra}


def wait_until(condition: Callable[[], bool], deadline_s: float, poll_s: float = 0.05) -> bool:
    """Poll `condition` until it holds or `deadline_s` seconds have gone; return whether it held."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(poll_s)
    return True
