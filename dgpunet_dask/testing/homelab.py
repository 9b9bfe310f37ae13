"""A cluster of real machines for acceptance tests: one `NetHost`, one home and one card that does not exist per machine.

Everything but the card and the wire is what an owner runs: the commands are the shipped ones, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.testing.fake_nvml import FakeCard, build, environment
from dgpunet_dask.testing.netns import Lan, NetHost

ROOT: Final = Path(__file__).resolve().parents[2]
_MAIN: Final = (sys.executable, "-m", "dgpunet_dask.cli.main")


def _card(model: str, digits: str, vram_mib: int, capability: tuple[int, int]) -> FakeCard:
    return FakeCard(model, f"GPU-00000000-0000-0000-0000-{digits:0>12}", vram_mib, 0, capability)


#: What the machines own, in this order: the five of ``policies/fleets/home5.yaml``, and a later one. Memory as drivers tell it.
CARDS: Final = (
    _card("NVIDIA GeForce RTX 4090 Laptop GPU", "4090", 16376, (8, 9)),
    _card("NVIDIA GeForce RTX 4080 Laptop GPU", "4080", 12282, (8, 9)),
    _card("NVIDIA GeForce RTX 3090", "3090", 24576, (8, 6)),
    _card("NVIDIA GeForce RTX 4070 Laptop GPU", "4070", 8188, (8, 9)),
    _card("NVIDIA GeForce RTX 5090", "5090", 32607, (12, 0)),
    _card("NVIDIA RTX A4000", "a4000", 16376, (8, 6)),
)


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit code, what it wrote, and its output as JSON, ``None`` where it is none."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as data."""
        try:
            return json.loads(self.out)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


@dataclass(frozen=True)
class Started:
    """A command that runs on: its process, and the file with all that it writes."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        """The command's own process id."""
        return self.process.pid

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class HomeLab:
    """The hosts of a LAN as machines of one owner.

    Parameters
    ----------
    lan
        A LAN that is up; what runs on it ends with it.
    folder
        Where the homes, the library and the logs are kept. Short, for the sockets' sake, and on a disk: ledgers are fsynced.
    cards
        The cards of each host; ``None`` gives each host one of `CARDS`, and those beyond it none.
    extra
        Variables for every command, over all others but those in `own`: by host, for tests to set.
    real
        The hosts that see this machine's own cards instead.

    Notes
    -----
    A LAN's end kills what runs there. To see that `down` leaves nothing behind, ask `left` before it.
    """

    def __init__(
        self,
        lan: Lan,
        folder: Path,
        cards: Mapping[str, Sequence[FakeCard]] | None = None,
        extra: Mapping[str, str] | None = None,
        real: Collection[str] = (),
    ) -> None:
        self.lan = lan
        self.folder = folder
        given = {name: CARDS[k : k + 1] for k, name in enumerate(lan.hosts)} if cards is None else cards
        self.cards: dict[str, tuple[FakeCard, ...]] = {name: tuple(given.get(name, ())) for name in lan.hosts}
        self.extra = dict(extra or {})
        self.real = frozenset(real)
        self.own: dict[str, dict[str, str]] = {}

    def home(self, name: str) -> Path:
        """Return the ``$DGPUNET_HOME`` of a host."""
        return self.folder / name

    def environment(self, name: str) -> dict[str, str]:
        """Return all variables of a command on this host: ours, without those that choose a cluster or a card."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("DGPUNET_") and k != "CUDA_VISIBLE_DEVICES"}
        return {
            **ours,
            **({} if name in self.real else self._pretended(self.cards[name])),
            "DGPUNET_HOME": str(self.home(name)),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **self.extra,
            **self.own.get(name, {}),
        }

    def _pretended(self, cards: Sequence[FakeCard]) -> dict[str, str]:
        """Return what makes a host see `cards`, and no other."""
        return {
            **environment(self._library(), cards),
            "DGPUNET_RUNTIME_ARCHES": " ".join(sorted({"sm_{}{}".format(*c.capability) for c in cards})),
            "DGPUNET_TORCH_DEVICE": "cpu",  # a card that does not exist computes nothing
            "DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC": "1",  # dask-cuda's own switch: leave out what needs CUDA behind the card
        }

    def cli(self, name: str, *words: str, timeout_s: float = 120.0) -> Ran:
        """Run a ``dgpunet-dask`` command on a host to its end.

        Raises
        ------
        subprocess.TimeoutExpired
            If it takes longer, or leaves a process behind that holds its output open.
        """
        done = self._host(name).run([*_MAIN, *words], timeout_s=timeout_s, env=self.environment(name), cwd=self.folder)
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, name: str, *words: str, timeout_s: float = 120.0) -> Ran:
        """Do what `cli` does, and fail with what was written where the exit code is not 0."""
        ran = self.cli(name, *words, timeout_s=timeout_s)
        assert ran.code == 0, f"{name}: {' '.join(words)}: {ran}"
        return ran

    def start(self, name: str, *words: str) -> Started:
        """Start a ``dgpunet-dask`` command that runs on, such as ``head``."""
        host = self._host(name)
        log = self.folder / f"{name}-{'-'.join(w for w in words[:2] if w.isalnum())}-{len(host.started)}.log"
        with log.open("w", encoding="utf-8") as file:
            return Started(host.popen([*_MAIN, *words], env=self.environment(name), cwd=self.folder, stdout=file, stderr=file), log)

    def token(self, head: str, name: str) -> str:
        """Return a token with which `name` may join the cluster of `head`."""
        return self.ok(head, "token", "create", name).out.split()[-1]

    def join(self, head: str, name: str, *words: str, timeout_s: float = 120.0) -> Ran:
        """Let `name` join the cluster of `head`, with further options; it returns once its workers have."""
        return self.cli(name, "join", self.token(head, name), "--name", name, *words, timeout_s=timeout_s)

    def nodes(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what ``nodes --json`` on a host tells of each host; empty where nothing answers there."""
        told = self.cli(name, "nodes", "--json").json
        return {node["host"]: node for node in (told or {}).get("nodes", ())}

    def left(self, name: str) -> dict[int, str]:
        """Return the processes that run on a host, by pid, with their command lines."""
        found = {}
        for pid in self._host(name).pids():
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it ended between the two looks
                continue
        return found

    def _host(self, name: str) -> NetHost:
        self.home(name).mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.lan.host(name)

    def _library(self) -> Path:
        """Compile the library once."""
        folder = self.folder / "nvml"
        return folder if (folder / "libnvidia-ml.so.1").exists() else build(folder)
