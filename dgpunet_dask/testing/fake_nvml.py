"""Builds the fake NVML, and gives the environment that makes a process see its cards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class FakeInstance:
    """A MIG instance of a card: memory in MiB, and its profile, such as ``1g.10gb``."""

    uuid: str
    vram_mib: int
    profile: str


@dataclass(frozen=True)
class FakeCard:
    """A card for the fake: memory in MiB; a capability of (0, 0) is one that is not reported.

    Parameters
    ----------
    power_limit_w, power_default_w
        ``None``: not reported, as by most laptops.
    pcie
        Generation now and at most, lanes now and at most; ``None``: not reported.
    fan, ecc
        Per cent, and whether ECC is on; ``None``: not reported.
    energy
        Whether it counts its energy.
    events
        Whether it offers events.
    instances
        What a card in MIG mode is split into; ``None``: it is not in MIG mode.
    """

    model: str
    uuid: str
    vram_mib: int
    used_mib: int = 0
    capability: tuple[int, int] = (8, 9)
    power_limit_w: float | None = None
    power_default_w: float | None = None
    pcie: tuple[int, int, int, int] | None = None
    fan: int | None = None
    ecc: bool | None = None
    energy: bool = False
    events: bool = True
    instances: tuple[FakeInstance, ...] | None = None

    def __str__(self) -> str:
        words = [f"{self.model},{self.uuid},{self.vram_mib},{self.used_mib},{self.capability[0]},{self.capability[1]}"]
        words += [f"{key}={watts * 1000:.0f}" for key, watts in (("limit", self.power_limit_w), ("default", self.power_default_w)) if watts is not None]
        words += [] if self.pcie is None else ["pcie=" + "/".join(map(str, self.pcie))]
        words += [f"{key}={int(value)}" for key, value in (("fan", self.fan), ("ecc", self.ecc)) if value is not None]
        words += [f"energy={int(self.energy)}", f"events={int(self.events)}"]
        parts = None if self.instances is None else [f"{i.uuid}:{i.vram_mib}:{i.profile}" for i in self.instances]
        return ",".join(words + [f"mig={part}" for part in (parts or (["-"] if parts is not None else []))])


#: The cards of the home fleet (`policies/fleets/home5.yaml`), by host. What the laptops do not report is what such laptops do not.
HOME5: Final[Mapping[str, FakeCard]] = {
    "m18r2": FakeCard("NVIDIA GeForce RTX 4090 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000409a", 16376, pcie=(4, 4, 16, 16), energy=True),
    "g16": FakeCard("NVIDIA GeForce RTX 4080 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000408a", 12282, pcie=(4, 4, 8, 16), energy=True),
    "tower3090": FakeCard(
        "NVIDIA GeForce RTX 3090", "GPU-00000000-0000-4000-8000-000000003090", 24576, 0, (8, 6), 350, 350, (4, 4, 16, 16), 30, energy=True
    ),
    "xps17": FakeCard("NVIDIA GeForce RTX 4070 Laptop GPU", "GPU-00000000-0000-4000-8000-00000000407a", 8188, pcie=(4, 4, 8, 16), energy=True),
    "tower5090": FakeCard(
        "NVIDIA GeForce RTX 5090", "GPU-00000000-0000-4000-8000-000000005090", 32607, 0, (12, 0), 575, 575, (5, 5, 16, 16), 30, energy=True
    ),
}


@dataclass(frozen=True)
class FakeUse:
    """What a card tells at one moment.

    Parameters
    ----------
    display
        Whether a desktop draws; ``"mode"``: none does, but the mode is enabled, as on an H200. ``None``: not reported.
    computing, drawing
        MiB by process id; ``None`` where the driver hides it.
    lost
        The card fell off the bus: each question about it says so.
    xids
        All errors (Xid) of the card so far, in order: those that are new since somebody listens are told.
    throttle
        NVML's bits of the reasons that keep the clocks down.
    power_limit_w
        ``None``: the card's own.
    pcie
        Generation and lanes now; ``None``: the card's own.
    grow_mib_s, since
        What is used grows so fast, MiB a second, since that moment, seconds since 1970; the first process that computes grows along.
    """

    uuid: str
    used_mib: int
    display: bool | Literal["mode"] | None = None
    computing: Mapping[int, int | None] = field(default_factory=dict)
    drawing: Mapping[int, int | None] = field(default_factory=dict)
    lost: bool = False
    xids: Sequence[int] = ()
    throttle: int = 0
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: int | None = None
    utilisation: int | None = None
    energy_j: float | None = None
    recovery: int | None = None
    pcie: tuple[int, int] | None = None
    grow_mib_s: float = 0.0
    since: float = 0.0

    def __str__(self) -> str:
        listed = [("c", self.computing), ("g", self.drawing)]
        words = [f"{kind}{pid}={-1 if mib is None else mib}" for kind, found in listed for pid, mib in found.items()]
        words += ["lost"] if self.lost else []
        words += [f"xids={','.join(map(str, self.xids))}"] if self.xids else []
        words += [f"throttle={self.throttle}"] if self.throttle else []
        milli = [("power", self.power_w), ("limit", self.power_limit_w), ("energy", self.energy_j)]
        words += [f"{key}={value * 1000:.0f}" for key, value in milli if value is not None]
        plain = [("temp", self.temperature_c), ("util", self.utilisation), ("recovery", self.recovery)]
        words += [f"{key}={value}" for key, value in plain if value is not None]
        words += [] if self.pcie is None else [f"pcie={self.pcie[0]}/{self.pcie[1]}"]
        words += [f"grow={self.grow_mib_s}@{self.since:.3f}"] if self.grow_mib_s else []
        return " ".join([self.uuid, str(self.used_mib), str({None: -1, False: 0, True: 1, "mode": 2}[self.display]), *words])


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


def environment(
    folder: Path, cards: Sequence[FakeCard], state: Path | None = None, *, driver: str | None = None, cuda: tuple[int, int] | None = None, old: bool = False
) -> dict[str, str]:  # fmt: skip
    """Return the variables under which a process sees `cards`.

    Parameters
    ----------
    state
        The file that `write_uses` writes.
    driver, cuda
        Versions of the driver and of the newest CUDA that it runs; ``None``: 550.54.14 and 12.4.
    old
        Lack what drivers before 535 lack.
    """
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    found = {"LD_LIBRARY_PATH": path, "FAKE_NVML_CARDS": ";".join(map(str, cards))}
    more = {
        "FAKE_NVML_STATE": None if state is None else str(state),
        "FAKE_NVML_DRIVER": driver,
        "FAKE_NVML_CUDA": None if cuda is None else str(cuda[0] * 1000 + cuda[1] * 10),
        "FAKE_NVML_OLD": "1" if old else None,
    }
    return found | {key: value for key, value in more.items() if value is not None}
