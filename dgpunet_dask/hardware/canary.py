"""A known computation, compared bit for bit: it finds a card that computes wrong without saying so, as consumer cards without ECC may.

Each step has one right result, whatever the order in which a device adds: whole numbers small enough that every partial sum is exact, integer
arithmetic, patterns in memory. What is rounded (the chain) is only compared with itself, time after time, for devices may round otherwise.

A process that has touched CUDA keeps a context on the card, hence `run_canary`, which takes a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock

#: Side of the matrices, at most. With factors up to 63, sums stay below 2**22: exact in float32, and with TF32's short factors. Sums of
#: as many products of -1, 0 and 1 are exact in float16, however they are split.
SIZE: Final = 1024
ROUNDS: Final = 16
REPEATS: Final = 3
#: More than any card's cache: the patterns must come from memory.
MEMORY_MIB: Final = 256
#: Alternate bits, both ways round, all and none.
PATTERNS: Final = (0x5555555555555555, -0x5555555555555556, -1, 0)
#: Starting a process, importing torch from a cold disk and opening a card take most of it.
RUN_S: Final = 180.0
#: How long a killed process may take to be gone.
KILL_S: Final = 5.0
#: What the process writes begins so: libraries write too.
_MARK: Final = "canary "
_MODULE: Final = "dgpunet_dask.hardware.canary"

#: Gets the name of a step and the tensor that it computed, and may spoil it: tests only.
Fault = Callable[[str, Any], None]


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What the canary found.

    Parameters
    ----------
    device
        As torch calls it.
    ok
        Whether all results were the known ones; ``None`` if it could not run.
    mismatches
        How many elements were wrong, and runs that did not repeat; ``None`` if it could not run.
    wrong
        The steps that were: ``matrix``, ``half``, ``integer``, ``chain``, ``memory``.
    digest
        SHA-256 of all results in hex: the same again with the same seed on the same kind of device.
    seconds
        All of it took so long, without importing torch.
    gflops
        10**9 float32 operations a second in the matrix products; an idle card that falls far behind its kind is slowed.
    why
        What kept it from running.
    """

    device: str
    ok: bool | None
    mismatches: int | None = None
    wrong: tuple[str, ...] = ()
    digest: str | None = None
    seconds: float | None = None
    gflops: float | None = None
    why: str | None = None


def canary(
    torch_device: str, seed: int = 0, *, size: int = SIZE, memory_mib: int = MEMORY_MIB, fault: Fault | None = None, clock: Clock | None = None
) -> CanaryResult:
    """Compute what is known in this process, and return whether it came out.

    Parameters
    ----------
    torch_device
        ``cpu``, ``cuda`` or ``cuda:1``.
    seed
        Chooses the inputs.
    size
        Side of the matrices, 1 to `SIZE`; the other steps have as many elements as one of them.
    memory_mib
        How much of the device's memory is written and read back; a little more is used.
    """
    clock = SystemClock() if clock is None else clock
    try:
        import torch
    except (ImportError, OSError) as error:
        return CanaryResult(device=torch_device, ok=None, why=f"torch cannot be imported: {error}")
    try:
        return _Run(torch, torch_device, seed, min(size, SIZE), clock, fault).all(memory_mib)
    except (RuntimeError, AssertionError, ValueError) as error:  # no such device, no memory, a card that is lost
        return CanaryResult(device=torch_device, ok=None, why=f"{type(error).__name__}: {_first_line(str(error))}")


def run_canary(uuid: str | None = None, *, seed: int = 0, python: str = sys.executable, timeout_s: float = RUN_S) -> CanaryResult:
    """Run the canary on the card or MIG instance with a UUID, or on the processor, in a process of its own.

    Parameters
    ----------
    timeout_s
        A card that hangs holds the process for ever: it is killed then, and the canary counts as one that could not run.
    """
    device = "cpu" if uuid is None else "cuda:0"  # the process sees no other card
    argv = [python, "-P", "-m", _MODULE, "--device", device, "--seed", str(seed)]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=_environment(uuid))
    except OSError as error:
        return CanaryResult(device=device, ok=None, why=f"its process did not start: {error}")
    try:
        printed, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _give_up(process)
        return CanaryResult(device=device, ok=None, why=f"no answer within {timeout_s:g} s")
    except BaseException:  # an interrupt: nothing may go on holding the card
        _give_up(process)
        raise
    return result_of(printed, device) or CanaryResult(device=device, ok=None, why=_ended(process.returncode, errors))


def _give_up(process: subprocess.Popen[str]) -> None:
    """Kill a process, and wait for a moment alone: one that hangs inside the driver does not end of a kill either."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def result_of(printed: str, device: str) -> CanaryResult | None:
    """Return what the canary's process printed of a device, ``None`` where it did not get to it."""
    line = next((line for line in printed.splitlines() if line.startswith(_MARK)), None)
    try:
        raw = {} if line is None else json.loads(line.removeprefix(_MARK))
        return CanaryResult(**{**raw, "device": device, "wrong": tuple(raw["wrong"])})
    except (ValueError, TypeError, KeyError):
        return None


@dataclass
class _Run:
    torch: Any
    device: str
    seed: int
    size: int
    clock: Clock
    fault: Fault | None
    wrong: dict[str, int] = field(default_factory=dict)
    hashed: Any = field(default_factory=hashlib.sha256)

    def all(self, memory_mib: int) -> CanaryResult:
        began = self.clock.monotonic()
        gflops = self.matrix()
        self.half()
        self.integer()
        self.chain()
        self.memory(memory_mib)
        return CanaryResult(
            device=self.device,
            ok=not self.wrong,
            mismatches=sum(self.wrong.values()),
            wrong=tuple(self.wrong),
            digest=self.hashed.hexdigest(),
            seconds=round(self.clock.monotonic() - began, 4),
            gflops=gflops,
        )

    def matrix(self) -> float | None:
        """Multiply matrices of whole numbers in float32, and return the speed. The CPU's float64 tells what is right."""
        left, right = self.whole(self.size, 63, 1), self.whole(self.size, 63, 2)
        known = (left.double() @ right.double()).float()
        ours, theirs = left.float().to(self.device), right.float().to(self.device)
        self.wait(ours @ theirs)  # the first product loads libraries
        began = self.clock.monotonic()
        products = [ours @ theirs for _ in range(REPEATS)]
        self.wait(products[-1])
        took = self.clock.monotonic() - began
        for product in products:
            self.check("matrix", product, known)
        return round(2 * self.size**3 * REPEATS / took / 1e9, 4) if took > 0 else None

    def half(self) -> None:
        """Multiply matrices of -1, 0 and 1 in float16."""
        slow = self.torch.device(self.device).type == "cpu"  # seconds for all of it; it is for tensor cores
        size = min(self.size, SIZE // 8) if slow else self.size
        left, right = self.whole(size, 1, 3), self.whole(size, 1, 4)
        known = (left.double() @ right.double()).half()
        ours, theirs = left.half().to(self.device), right.half().to(self.device)
        for _ in range(REPEATS):
            self.check("half", ours @ theirs, known)

    def integer(self) -> None:
        """Let a generator of pseudo-random numbers run on each element, on the device and on the CPU."""
        start = self.torch.arange(self.size**2, dtype=self.torch.int64) + self.seed % (1 << 30)
        self.check("integer", _scrambled(start.to(self.device)), _scrambled(start))

    def chain(self) -> None:
        """Add, multiply, divide and take roots in float32, more than once: each time must give the same bits."""
        start = self.torch.rand(self.size**2, generator=self.generator(5)).to(self.device) + 0.5
        digests = []
        for _ in range(REPEATS):
            value = start
            for _ in range(ROUNDS):
                value = (value * 1.7 + 0.3).sqrt() / (start + 0.9)
            digests.append(self.seen("chain", value))
        self.count("chain", len(set(digests)) - 1)

    def memory(self, mib: int) -> None:
        """Write patterns and read them back, at last each element's own number."""
        block = self.torch.empty(max(1, mib) << 17, dtype=self.torch.int64, device=self.device)
        for pattern in PATTERNS:
            self.spoilt("memory", block.fill_(pattern))
            self.count("memory", int((block != pattern).sum()))
        del block
        part = max(1, mib) << 16  # half, for the numbers that it is compared with are as large
        numbers = self.torch.arange(part, dtype=self.torch.int64, device=self.device)
        self.spoilt("memory", numbers)
        self.count("memory", int((numbers != self.torch.arange(part, dtype=self.torch.int64, device=self.device)).sum()))

    def check(self, step: str, result: Any, known: Any) -> None:
        """Compare with what is known."""
        self.seen(step, result)
        self.count(step, int((result.cpu() != known).sum()))

    def seen(self, step: str, result: Any) -> bytes:
        """Return the digest of a result, and add it to that of all."""
        self.spoilt(step, result)
        digest = hashlib.sha256(result.cpu().contiguous().numpy().data).digest()
        self.hashed.update(digest)
        return digest

    def spoilt(self, step: str, result: Any) -> None:
        if self.fault is not None:
            self.fault(step, result)

    def count(self, step: str, wrong: int) -> None:
        if wrong:
            self.wrong[step] = self.wrong.get(step, 0) + wrong

    def whole(self, size: int, limit: int, number: int) -> Any:
        """Return a square matrix of whole numbers from -limit to limit."""
        return self.torch.randint(-limit, limit + 1, (size, size), generator=self.generator(number))

    def generator(self, number: int) -> Any:
        """Return the generator of the inputs of that number. It is the CPU's: inputs are the same on every device."""
        return self.torch.Generator().manual_seed((self.seed * 8 + number) % (1 << 63))

    def wait(self, result: Any) -> None:
        """Wait until a result is there: a card's work goes on after the call."""
        result[:1, :1].cpu()


def _scrambled(values: Any) -> Any:
    for _ in range(ROUNDS):
        values = (values * 1103515245 + 12345) & 0x7FFFFFFF  # below 2**62 in between: nothing overflows
        values = values ^ (values >> 7)
    return values


def _ended(code: int, errors: str) -> str:
    how = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
    said = errors.strip().splitlines()
    return f"{how}: {said[-1][:300]}" if said else how


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _environment(uuid: str | None) -> dict[str, str]:
    """Return the environment of the process: only the card to see, and this package to import from wherever it is."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": uuid or ""}


def main(args: list[str] | None = None) -> None:
    """Run the canary in this process and write its result as one line of JSON."""
    parser = argparse.ArgumentParser(prog="dgpunet-dask-canary", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(args)
    sys.stdout.write(f"{_MARK}{json.dumps(asdict(canary(asked.device, asked.seed)))}\n")


if __name__ == "__main__":
    main()
