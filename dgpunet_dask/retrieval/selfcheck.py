"""Which engine and precision serve a model best on this device: measured once, decided by a pure function, remembered on disk.

What counts is speed among those whose vectors stay within cosine 0.999 of float32, on texts like those to come: this package's own source,
and questions about it. On a card there are many of them, in many lengths, and none that it was warmed with: a few would only tell how long a
kernel takes to start, and cuDNN's attention prepares a plan for every new shape of a batch (48 ms on an H200, five times the batch itself),
which shapes that it has seen would hide.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.retrieval.batching import lacks_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Embed = Callable[[Sequence[str]], Vectors]

log = logging.getLogger(__name__)

#: The cosine to float32 that every probe must keep.
CLOSE_ENOUGH: Final = 0.999
#: Raised when engines change such that what was remembered does not hold any more.
ENGINE_VERSION: Final = 2
_LIBRARIES: Final = ("openvino", "torch", "transformers", "sentence-transformers", "tokenizers")
#: Lines of a probe, and how many of a file are taken: about 2,500 tokens in all, a second at float32 on two cores for a small model.
_PROBE_LINES: Final = 16
_PROBES_PER_FILE: Final = 3
_PROBE_FILES: Final = ("batching.py", "chunk.py", "decode.py", "outline.py")
#: Probes of a card: about 100,000 tokens, several batches.
_CARD_PROBES: Final = 768
_QUESTIONS: Final = (
    "how are errors reported to the caller?",
    "where is a file's encoding guessed",
    "x",
    "Größe, 日本語 und 🎉",
    "class HTTPConnectionPool retry timeout",
)


@dataclass(frozen=True)
class Candidate:
    """An engine (``openvino``, ``torch``) at a precision."""

    engine: str
    precision: str


@dataclass(frozen=True)
class Measured:
    """What a candidate did on the probes.

    Parameters
    ----------
    candidate
        Which.
    seconds
        For all probes; ``None`` where it failed.
    cosine
        The least of any probe to float32; ``None`` where it failed.
    why
        How it failed.
    passing
        Whether it failed for lack of memory, which another time there may be.
    """

    candidate: Candidate
    seconds: float | None = None
    cosine: float | None = None
    why: str | None = None
    passing: bool = False


def choose(measured: Sequence[Measured], least: float = CLOSE_ENOUGH) -> Candidate | None:
    """Return the fastest that stays within `least` of float32, of equals the first; ``None`` where none does."""
    good = [m for m in measured if m.seconds is not None and m.cosine is not None and m.cosine >= least]
    return min(good, key=lambda m: m.seconds or 0.0).candidate if good else None


class Trial(NamedTuple):
    """Texts that a candidate is warmed with, and those that it is timed and compared on."""

    warm: Sequence[str]
    timed: Sequence[str]


def measure(
    candidates: Sequence[Candidate], run: Callable[[Candidate], Embed], timer: Callable[[], float], trial: Trial
) -> list[Measured]:
    """Try all candidates; those at ``fp32`` come first, and the first of them that works is what the others are compared with.

    Parameters
    ----------
    candidates
        What to try.
    run
        Loads a candidate; what it returns embeds texts as vectors of length 1.
    timer
        Seconds, from any moment.
    trial
        The texts.
    """
    exact: Vectors | None = None
    found: dict[Candidate, Measured] = {}
    for candidate in sorted(candidates, key=lambda c: c.precision != "fp32"):
        try:
            vectors, seconds = _tried(run, candidate, timer, trial)
        except DgpunetError:  # what was asked wrongly is wrong with every candidate
            raise
        except Exception as error:  # whatever a library raises for a device or a model that it cannot do
            why = f"{type(error).__name__}: {str(error).strip()[:200]}"
            found[candidate] = Measured(candidate, why=why, passing=lacks_memory(error))
            log.warning("%s at %s cannot run this model here (%s)", candidate.engine, candidate.precision, why)
            continue
        exact = vectors if exact is None and candidate.precision == "fp32" else exact
        cosine = None if exact is None else float((exact * vectors).sum(1).min())
        found[candidate] = Measured(candidate, seconds, cosine)
    return [found[candidate] for candidate in candidates]


def _tried(run: Callable[[Candidate], Embed], candidate: Candidate, timer: Callable[[], float], trial: Trial) -> tuple[Vectors, float]:
    """A function of its own, so that a candidate is gone before the next one is loaded: a card may not hold two."""
    embed = run(candidate)
    embed(trial.warm)  # kernels are prepared in the first pass
    started = timer()
    return embed(trial.timed), timer() - started


def probes() -> list[str]:
    """Return the texts that candidates are tried on."""
    found = list(_QUESTIONS)
    for name in _PROBE_FILES:
        found += list(_pieces(Path(__file__).with_name(name), _PROBE_LINES))[:_PROBES_PER_FILE]
    return found


def trial(*, on_card: bool) -> Trial:
    """Return what candidates are tried on: on a card more, and none that they were warmed with."""
    if not on_card:
        return Trial(probes(), probes())
    package = sorted(Path(__file__).parents[1].rglob("*.py"))
    varied = ((file, _PROBE_LINES + number % _PROBE_LINES) for number, file in enumerate(package))  # batches of many shapes
    warmed = set(probes())
    distinct = dict.fromkeys(piece for file, lines in varied for piece in _pieces(file, lines))  # two commands end alike
    many = [piece for piece in distinct if piece not in warmed]
    return Trial(probes(), many[:: max(1, len(many) // _CARD_PROBES)][:_CARD_PROBES])


def _pieces(file: Path, lines: int) -> Iterator[str]:
    found = file.read_text("utf-8").splitlines(keepends=True)
    return ("".join(found[n : n + lines]) for n in range(0, len(found), lines))


def identity(torch_device: str, threads: int | None) -> dict[str, Any]:
    """Return what a finding depends on beside the model: the device, its threads, and the versions of the libraries."""
    device = _card(torch_device) if torch_device.startswith("cuda") else _processor()
    return {"device": device, "threads": threads, "engine": ENGINE_VERSION} | {name: _version(name) for name in _LIBRARIES}


def _card(torch_device: str) -> str:
    import torch

    properties = torch.cuda.get_device_properties(torch_device)
    return f"{properties.name} {properties.major}.{properties.minor} {properties.total_memory >> 20} MiB, CUDA {torch.version.cuda}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {key.strip(): value.strip() for key, value in wanted.items()}
    instructions = hashlib.sha256(told.get("flags", told.get("Features", "")).encode()).hexdigest()[:16]
    return f"{platform.machine()} {told.get('model name', told.get('CPU part', ''))} {instructions}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Memory:
    """Findings on disk, one small file for each model, device and set of versions; without a folder they last as long as the process.

    Parameters
    ----------
    folder
        Where; made when something is remembered.
    """

    _here: dict[str, dict[str, Any]] = {}  # noqa: RUF012  # of the process, on purpose

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def recall(self, key: str) -> dict[str, Any]:
        """Return what is known under `key`; nothing where that is damaged or missing."""
        if self.folder is None:
            return self._here.get(key, {})
        try:
            found = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, key: str, **values: Any) -> None:
        """Add `values` to what is known under `key`. A disk that cannot be written costs another measurement, and is only told."""
        known = self.recall(key) | values
        if self.folder is None:
            self._here[key] = known
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self.folder / f"{key}.{os.getpid()}"
            temporary.write_text(json.dumps(known, indent=1), "utf-8")
            temporary.replace(self.folder / f"{key}.json")
        except OSError as error:
            log.warning("what was found out about this device cannot be kept in %s (%s)", self.folder, error.strerror)


def key_of(digest: str, device: dict[str, Any], truncate_dim: int | None) -> str:
    """Return the name under which findings are kept."""
    told = json.dumps([digest, device, truncate_dim], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def told(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return measurements as plain data."""
    return [asdict(m) for m in measured]


def recalled(known: dict[str, Any]) -> Candidate | None:
    """Return the choice that is kept in `known`, if it is one."""
    chosen = known.get("chosen")
    try:
        return Candidate(**chosen) if isinstance(chosen, dict) else None
    except TypeError:
        return None
