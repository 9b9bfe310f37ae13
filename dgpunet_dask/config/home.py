"""``$DGPUNET_HOME``: the one folder that holds state, mode 0700."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from dgpunet_dask.errors import BadValue, UnreadablePath

#: What every system takes as the path of a Unix socket, with room to spare.
_SOCKET_BYTES: Final = 100


@dataclass(frozen=True)
class Home:
    """The paths under one ``$DGPUNET_HOME``. Making the value touches nothing; `ensure` creates the folders."""

    root: Path

    @property
    def run(self) -> Path:
        """Sockets, pids and logs of running processes."""
        return self.root / "run"

    @property
    def indexes(self) -> Path:
        """One folder per search index."""
        return self.root / "indexes"

    @property
    def workloads(self) -> Path:
        """Submitted workload folders by digest."""
        return self.root / "workloads"

    @property
    def envs(self) -> Path:
        """Stage environments by the digest of their lock file and interpreter."""
        return self.root / "envs"

    @property
    def jobs(self) -> Path:
        """One folder per job: committed units, log."""
        return self.root / "jobs"

    @property
    def ledger(self) -> Path:
        """The head's ledger of jobs, units and attempts."""
        return self.root / "ledger.db"

    @property
    def backups(self) -> Path:
        """Copies of a ledger: of this host's head, or of another host's that keeps them here."""
        return self.root / "backups"

    @property
    def config(self) -> Path:
        """What the owner sets: roots, quotas, limits of the disk."""
        return self.root / "config.yaml"

    @property
    def policy(self) -> Path:
        """``generated/*.yaml`` and ``human/*.yaml``."""
        return self.root / "policy"

    @property
    def policies_in_force(self) -> Path:
        """What the running head decides by: [text, file, layer] of each policy file, for a scheduler that starts."""
        return self.run / "policies.json"

    @property
    def settings_in_force(self) -> Path:
        """What the running head took from `config`, for one that goes on for it: the text, or null where there is no file."""
        return self.run / "settings.json"

    @property
    def expected_devices(self) -> Path:
        """The devices of the running cluster, for a scheduler that starts again."""
        return self.run / "devices.json"

    @property
    def decisions(self) -> Path:
        """The decision log: ``*.jsonl``, the oldest file first by name."""
        return self.root / "decisions"

    @property
    def torch_arches(self) -> Path:
        """What the installed torch said that it has code for."""
        return self.root / "cache" / "torch-arches.json"

    @property
    def vectors(self) -> Path:
        """Vectors that were made before, a folder for each model."""
        return self.root / "cache" / "vectors"

    @property
    def learned(self) -> Path:
        """What finished units have taught the head."""
        return self.root / "learned.json"

    @property
    def learned_tasks(self) -> Path:
        """What tasks of plain Dask clients have taught the scheduler."""
        return self.root / "learned-tasks.json"

    @property
    def pki(self) -> Path:
        """Keys and certificates of this host in its cluster; on the head's host also the authority, tokens and API keys."""
        return self.root / "pki"

    @property
    def cluster_file(self) -> Path:
        """Which cluster of real machines this host belongs to."""
        return self.root / "cluster.json"

    @property
    def nodes_file(self) -> Path:
        """The hosts that a head knows."""
        return self.root / "nodes.json"

    @property
    def links_file(self) -> Path:
        """What was measured between the hosts."""
        return self.root / "links.json"

    @property
    def models(self) -> Path:
        """Folders of weights by the digest of their files."""
        return self.root / "models"

    @property
    def model_owners(self) -> Path:
        """Whose the models are that jobs have named."""
        return self.root / "models.json"

    @property
    def head_file(self) -> Path:
        """Address, pid and key of the running head."""
        return self.run / "head.json"

    @property
    def agent_socket(self) -> Path:
        """The agent's Unix socket.

        The system takes at most 104 bytes (macOS; 108 on Linux) for its path. For a longer home it is in a folder of mode 0700 under
        ``/tmp``, named by user and the home's digest; the agent removes it when it ends in good order, and takes over one that was left.
        ``/tmp`` and not ``$TMPDIR``, so that every process computes the same path.
        """
        path = self.run / "agent.sock"
        if len(os.fsencode(path)) <= _SOCKET_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(f"/tmp/dgpunet-{os.getuid()}-{digest}") / path.name  # noqa: S108  # owner and mode are checked when it is used

    def ensure(self) -> Home:
        """Create the folders, readable by their owner only, and return self.

        A folder that holds other things as well (``/tmp``, say) keeps its mode: others may need it, and what is ours lies below.

        Raises
        ------
        UnreadablePath
            If a folder cannot be created or written.
        """
        for path in (self.root, self.run, self.indexes, self.workloads, self.envs, self.jobs):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
        if self._is_ours_alone():
            self.root.chmod(0o700)
        return self

    def _is_ours_alone(self) -> bool:
        """Whether nothing but our own folders lies in the root."""
        known = {"run", "indexes", "workloads", "envs", "jobs", "policy", "cache", "locks", "clusters", "decisions", "last-boot"}
        known |= {path.name for path in (self.pki, self.models, self.cluster_file, self.nodes_file, self.links_file)}
        known |= {name for path in (self.learned, self.learned_tasks) for name in (path.name, f"{path.name}.damaged")}
        known |= {f"{self.ledger.name}{tail}" for tail in ("", "-wal", "-shm", "-journal", ".boot", ".damaged", ".backup")}
        known |= {self.backups.name, self.config.name, self.model_owners.name, f".{self.model_owners.name}.lock"}
        return {entry.name for entry in self.root.iterdir()} <= known


def expanded(text: str, what: str) -> Path:
    """Return the path of `text`, in which ``~`` and ``~USER`` stand for a user's own folder.

    Raises
    ------
    BadValue
        Of `what`, if there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadValue(what=what, value=text, why="there is no user of that name; write the path out, or ./~NAME for a file of that name") from None


def home_from(environ: Mapping[str, str] | None = None) -> Home:
    """Return the home that ``$DGPUNET_HOME`` names, else the platform's user data directory; BadValue for the folder of a user that is none."""
    named = (os.environ if environ is None else environ).get("DGPUNET_HOME")
    root = expanded(named, "$DGPUNET_HOME") if named else Path(platformdirs.user_data_dir("dgpunet-dask"))
    return Home(root.absolute())
