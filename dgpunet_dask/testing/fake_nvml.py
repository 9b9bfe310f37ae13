"""Builds the fake NVML, and gives the environment that makes a process see its cards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class FakeCard:
    """A card for the fake: memory in MiB; a capability of (0, 0) is one that is not reported."""

    model: str
    uuid: str
    vram_mib: int
    used_mib: int = 0
    capability: tuple[int, int] = (8, 9)


def compiler() -> str | None:
    """Return the C compiler, ``None`` where there is none."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile the fake into `folder` as ``libnvidia-ml.so.1`` and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return folder


def environment(folder: Path, cards: Sequence[FakeCard]) -> dict[str, str]:
    """Return the variables under which a process sees `cards`."""
    rows = [f"{c.model},{c.uuid},{c.vram_mib},{c.used_mib},{c.capability[0]},{c.capability[1]}" for c in cards]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_LIBRARY_PATH": path, "FAKE_NVML_CARDS": ";".join(rows)}
