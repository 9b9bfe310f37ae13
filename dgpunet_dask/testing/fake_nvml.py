"""Builds the fake NVML, and gives the environment that makes a process see its cards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


#: The cards of the home fleet (`policies/fleets/home5.yaml`), by host.
HOME5: Mapping[str, FakeCard] = {
    "m18r2": FakeCard("NVIDIA GeForce RTX 4090 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000409a", 16376),
    "g16": FakeCard("NVIDIA GeForce RTX 4080 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000408a", 12282),
    "tower3090": FakeCard("NVIDIA GeForce RTX 3090", "GPU-00000000-0000-4000-8000-000000003090", 24576, 0, (8, 6)),
    "xps17": FakeCard("NVIDIA GeForce RTX 4070 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000407a", 8188),
    "tower5090": FakeCard("NVIDIA GeForce RTX 5090", "GPU-00000000-0000-4000-8000-000000005090", 32607, 0, (12, 0)),
}


@dataclass(frozen=True)
class FakeUse:
    """What a card tells at one moment.

    Parameters
    ----------
    display
        ``None``: not reported.
    computing, drawing
        MiB by process id; ``None`` where the driver hides it.
    """

    uuid: str
    used_mib: int
    display: bool | None = None
    computing: Mapping[int, int | None] = field(default_factory=dict)
    drawing: Mapping[int, int | None] = field(default_factory=dict)

    def __str__(self) -> str:
        listed = [("c", self.computing), ("g", self.drawing)]
        processes = [f"{kind}{pid}={-1 if mib is None else mib}" for kind, found in listed for pid, mib in found.items()]
        return " ".join([self.uuid, str(self.used_mib), str(-1 if self.display is None else int(self.display)), *processes])


def compiler() -> str | None:
    """Return the C compiler, ``None`` where there is none."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """Compile the fake into `folder` as ``libnvidia-ml.so.1`` and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([str(compiler()), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return folder


def write_uses(file: Path, uses: Sequence[FakeUse]) -> None:
    """Let the cards tell `uses` from now on, to processes that were started with this state file."""
    draft = file.with_suffix(".draft")
    draft.write_text("".join(f"{use}\n" for use in uses))
    draft.replace(file)


def environment(folder: Path, cards: Sequence[FakeCard], state: Path | None = None) -> dict[str, str]:
    """Return the variables under which a process sees `cards`. `state`: the file that `write_uses` writes."""
    rows = [f"{c.model},{c.uuid},{c.vram_mib},{c.used_mib},{c.capability[0]},{c.capability[1]}" for c in cards]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    changing = {} if state is None else {"FAKE_NVML_STATE": str(state)}
    return {"LD_LIBRARY_PATH": path, "FAKE_NVML_CARDS": ";".join(rows), **changing}
