"""The questions to this machine, one function each. They may raise and may hang: `collect` guards them."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil

from dgpunet_dask.config.settings import Settings
from dgpunet_dask.config.settings_file import DEFAULTS, read_settings, settings_path
from dgpunet_dask.errors import DgpunetError, MalformedFile
from dgpunet_dask.hardware.canary import run_canary
from dgpunet_dask.hardware.card_facts import CardFacts, card_facts
from dgpunet_dask.hardware.network import choose_interface, interfaces, path_mtu, route_to
from dgpunet_dask.hardware.nvml import driver_problem
from dgpunet_dask.hardware.presence import power_now
from dgpunet_dask.hardware.probe import device_names, reserve_mib
from dgpunet_dask.hardware.runtime import torch_arches
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.hardware.system import clock_facts, disk_facts, file_limits
from dgpunet_dask.hardware.xids import xids_of

PCI: Final = Path("/sys/bus/pci/devices")
NVIDIA: Final = "0x10de"
#: Display controllers and 3D controllers; a card's sound and USB functions are others.
_GPU_CLASSES: Final = ("0x0300", "0x0302")
KERNEL_LOG: Final = Path("/dev/kmsg")
#: More than any kernel keeps.
KERNEL_RECORDS: Final = 1 << 18
#: Stands for "without limit", which JSON has no number for.
ENDLESS: Final = 1 << 40
NETWORK_FILE_SYSTEMS: Final = frozenset({
    "nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "afpfs", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "sshfs",
    "lustre", "beegfs", "webdav", "davfs", "fuse.davfs2", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse",
})  # fmt: skip


def node_name() -> str:
    """Return what this machine calls itself."""
    return socket.gethostname()


def cards(ours: Collection[int]) -> list[dict[str, Any]]:
    """Return the cards that the driver lists, those that fell off the bus too."""
    found = card_facts()
    names = iter(device_names([card.model for card in found if card.present]))  # as placement names them, which knows no lost ones
    return [card_row(card, next(names) if card.present else None, ours) for card in found]


def card_row(card: CardFacts, name: str | None, ours: Collection[int]) -> dict[str, Any]:
    """Return one card as facts."""
    processes = None if card.process_mib is None else [_process(pid, mib, ours) for pid, mib in card.process_mib]
    plain = {key: value for key, value in card.to_json().items() if key != "process_mib"}
    return {**plain, "name": name, "reserve_mib": reserve_mib(card), "processes": processes}


def _process(pid: int, mib: int | None, ours: Collection[int]) -> dict[str, Any]:
    """Return a process on a card. A number that does not exist here is of another name space, and may stand for one of ours."""
    with contextlib.suppress(psutil.Error):
        return {"pid": pid, "mib": mib, "name": psutil.Process(pid).name(), "ours": pid in ours}
    return {"pid": pid, "mib": mib, "name": None, "ours": None}


def nvml() -> dict[str, Any]:
    """Return whether the driver's library answers, and to how many cards this process has access: a container may have fewer than the bus."""
    why = driver_problem()
    nodes = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return {"available": why is None, "why": why, "nodes": len(nodes) or None}


def pci(folder: Path = PCI) -> list[dict[str, Any]] | None:
    """Return NVIDIA's cards on the bus, whether or not a driver runs them; ``None`` where the system does not tell."""
    if not folder.is_dir():
        return None
    found = []
    for device in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):
            kind = (device / "class").read_text().strip()
            if (device / "vendor").read_text().strip() == NVIDIA and kind.startswith(_GPU_CLASSES):
                link = device / "driver"
                driver = link.resolve().name if link.exists() else None
                found.append({"address": device.name, "device": (device / "device").read_text().strip(), "driver": driver})
    return found


def xids(file: Path = KERNEL_LOG) -> list[dict[str, Any]] | None:
    """Return the errors of cards (Xid) in the kernel's log, the last of each number and card; ``None`` where it may not be read."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        uuids = {card.pci: card.mig_of or card.uuid for card in card_facts()}
        found = {(one.pci, one.xid): seconds for seconds, line in _records(fd) for one in xids_of([line])}
    finally:
        os.close(fd)
    booted = psutil.boot_time()
    return [{"uuid": uuids.get(pci), "pci": pci, "xid": xid, "at": booted + seconds} for (pci, xid), seconds in found.items()]


def _records(fd: int) -> Iterator[tuple[float, str]]:
    """Yield seconds since the machine's start and text of each record: ``priority,number,microseconds,flags;text``."""
    for _ in range(KERNEL_RECORDS):
        try:
            record = os.read(fd, 8192)
        except BrokenPipeError:  # the log has overtaken us: the rest follows
            continue
        except OSError:
            return
        if not record:
            return
        head, _, text = record.decode(errors="replace").partition(";")
        told = head.split(",")
        yield (int(told[2]) / 1e6 if len(told) > 2 and told[2].isdigit() else 0.0), text


def memory() -> dict[str, Any]:
    """Return RAM and swap, MiB."""
    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total_mib": ram.total >> 20, "available_mib": ram.available >> 20, "swap_total_mib": swap.total >> 20, "swap_used_mib": swap.used >> 20,
    }  # fmt: skip


def limits() -> dict[str, Any]:
    """Return how many files may be open."""
    soft, hard = file_limits()
    return {"nofile": ENDLESS if soft is None else soft, "nofile_max": ENDLESS if hard is None else hard}


def power() -> dict[str, Any]:
    """Return what feeds the machine."""
    now = power_now()
    return {"source": now.source, "battery": now.battery}


def disk(home: Path, *others: Path) -> list[dict[str, Any]]:
    """Return total and free bytes of each disk that one of the folders is on, or would be made on; of the home's also what is to stay free."""
    found: dict[int, dict[str, Any]] = {}
    for folder in (home, *others):
        total, free = disk_facts(folder)
        floor = {"floor": settings_of(home).disk.floor.of(total)} if folder == home else {}
        found.setdefault(_existing(folder).stat().st_dev, {"path": str(folder), "total": total, "free": free, **floor})
    return list(found.values())


def settings_of(home: Path) -> Settings:
    """Return the settings of a home; where its file is wrong, the defaults."""
    try:
        return read_settings(settings_path(home))
    except DgpunetError:
        return DEFAULTS


def settings(home: Path) -> dict[str, Any]:
    """Return whether the home has a file of settings, and every mistake in it."""
    file = settings_path(home)
    try:
        read_settings(file)
    except MalformedFile as error:
        mistakes = [str(problem) for problem in error.problems]
    except DgpunetError as error:
        mistakes = [error.message]
    else:
        mistakes = []
    return {"path": str(file), "exists": file.is_file(), "mistakes": mistakes}


def home(folder: Path) -> dict[str, Any]:
    """Return where ``$DGPUNET_HOME`` lies, and whether it can be written. Leaves nothing behind."""
    there = _existing(folder)
    return {"path": str(folder), "exists": folder.is_dir(), "writable": _writable(there), **_file_system(there)}


def temp() -> dict[str, Any]:
    """Return where temporary files go."""
    folder = temp_folder()
    return {"path": str(folder), "writable": _writable(folder), **_file_system(folder)}


def temp_folder() -> Path:
    """Return the folder of temporary files, ``/tmp`` where none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/tmp")  # noqa: S108  # only looked at


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _writable(folder: Path) -> bool:
    """Whether a file can be made; what the mode says is not the whole truth on read-only and network disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _file_system(folder: Path) -> dict[str, Any]:
    real = folder.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    kind = next((mounts[path] for path in (real, *real.parents) if path in mounts), None)
    return {"file_system": kind, "network": None if kind is None else kind in NETWORK_FILE_SYSTEMS}


def ports(wanted: Sequence[tuple[int, str]], ours: Collection[int]) -> list[dict[str, Any]]:
    """Return who listens on each port that we need: nobody, one of ours, or somebody else."""
    listening = dict(_listening())
    found = []
    for port, what in wanted:
        pid = listening.get(port)
        state = "free" if port not in listening else "ours" if pid in ours else "foreign"
        found.append({"port": port, "what": what, "state": state, "pid": pid, "program": _program(pid)})
    return found


def _listening() -> Iterator[tuple[int, int | None]]:
    """Yield port and process of each listener; the process is ``None`` where it is another user's."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            yield connection.laddr.port, connection.pid


def _program(pid: int | None) -> str | None:
    with contextlib.suppress(psutil.Error):
        return None if pid is None else f"{psutil.Process(pid).name()} (pid {pid})"
    return None


def network(head: str | None) -> dict[str, Any]:
    """Return the interfaces, the one that leads to the cluster, and the size of packets that come through to the head."""
    found = interfaces()
    choice = choose_interface(found, head=head, route=route_to)
    return {
        "interfaces": [asdict(interface) for interface in found],
        "chosen": {
            "interface": choice.interface.name, "address": choice.address, "why": choice.why, "warning": choice.warning,
            "refused": [list(refused) for refused in choice.refused],
        },
        "path_mtu": None if head is None else path_mtu(head),
    }  # fmt: skip


def software(arches: Path | None) -> dict[str, Any]:
    """Return the versions of what computes here."""
    return {**asdict(software_facts(torch_arches(arches))), "sqlite": _sqlite_version()}


def _sqlite_version() -> str:
    """Return SQLite's version. The module that opens databases is left to the ledger."""
    import _sqlite3

    return _sqlite3.sqlite_version


def clock(offset_s: float | None) -> dict[str, Any]:
    """Return whether something keeps this clock right, and how far it is ahead of the head's."""
    synchronised, error_s = clock_facts()
    return {"synchronised": synchronised, "error_s": error_s, "offset_s": offset_s}


def certificate(folder: Path) -> dict[str, Any] | None:
    """Return when this host's certificate ends, ``None`` where it has none."""
    if not (folder / "ca.crt").is_file():
        return None
    from dgpunet_dask.security.identity import Identity

    return {"expires_s": Identity(folder).expires_s}


def canaries(*, otherwise_cpu: bool) -> list[dict[str, Any]]:
    """Run the canary on each card that is there, one after the other; on the CPU where there is none and that is asked for."""
    found = [card for card in card_facts() if card.present and card.uuid is not None]
    names = device_names([card.model for card in found])
    rows = [{**asdict(run_canary(card.uuid)), "device": name, "uuid": card.uuid} for card, name in zip(found, names, strict=True)]
    return rows or ([asdict(run_canary(None))] if otherwise_cpu else [])
