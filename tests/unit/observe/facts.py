"""Facts of a healthy machine, to be broken one at a time."""

from __future__ import annotations

import copy
from typing import Any

CARD = {
    "index": 0, "name": "rtx3090-0", "model": "NVIDIA GeForce RTX 3090", "uuid": "GPU-1", "present": True, "vram_mib": 24576, "used_mib": 900,
    "capability": [8, 6], "driver": [580, 95, 5], "temperature_c": 55, "power_w": 120.0, "power_limit_w": 350.0, "power_limit_default_w": 350.0,
    "utilisation": 90, "throttle": [], "ecc": None, "display": False, "reserve_mib": 512, "recovery_action": None,
    "pcie": {"generation": 4, "generation_max": 4, "width": 16, "width_max": 16},
    "processes": [{"pid": 7, "mib": 400, "name": "python", "ours": True}],
}  # fmt: skip
FACTS = {
    "version": 1, "host": "pc", "at": 1000.0, "cards": [CARD], "nvml": {"available": True, "why": None},
    "pci": [{"address": "0000:01:00.0", "device": "0x2204", "driver": "nvidia"}],
    "software": {
        "python": "3.11.9", "dgpunet_dask": "0.4.1", "dask": "2026.7.1", "distributed": "2026.7.1", "torch": "2.9.0", "torch_cuda": "12.8",
        "torch_arches": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120"], "numpy": "2.3.0", "sqlite": "3.53.0", "lock_hash": "abc",
    },
    "network": {
        "interfaces": [
            {"name": "lo", "kind": "loopback", "addresses": ["127.0.0.1"], "mtu": 65536, "speed_mbit_s": None, "duplex": None, "up": True},
            {"name": "eth0", "kind": "ethernet", "addresses": ["10.0.0.2"], "mtu": 1500, "speed_mbit_s": 10000, "duplex": "full", "up": True},
        ],
        "chosen": {"interface": "eth0", "address": "10.0.0.2", "why": "the route to the head leaves there"}, "path_mtu": 1500,
    },
    "clock": {"synchronised": True, "offset_s": 0.01}, "disk": [{"path": "/data", "total": 1 << 40, "free": 1 << 39}],
    "memory": {"total_mib": 65536, "available_mib": 50000}, "limits": {"nofile": 65536, "nofile_max": 65536},
    "power": {"source": "mains", "battery": False}, "home": {"path": "/data/h", "writable": True, "file_system": "ext4", "network": False},
    "temp": {"path": "/tmp", "writable": True, "file_system": "tmpfs", "network": False},
    "ports": [{"port": 8788, "what": "agent", "state": "free", "program": None}], "xid": [],
    "canary": [{"device": "rtx3090-0", "ok": True, "seconds": 0.5, "mismatches": 0}], "certificate": {"expires_s": 1000.0 + 80000},
    "probes": {"cards": {"seconds": 0.1, "error": None}},
}  # fmt: skip


def facts(host: str = "pc", **changed: Any) -> dict[str, Any]:
    """Return the healthy facts with some at a dotted path changed: ``facts(**{"power.source": "battery", "cards.0.ecc": True})``."""
    made = copy.deepcopy(FACTS) | {"host": host}
    for path, value in changed.items():
        *way, last = path.split(".")
        place: Any = made
        for key in way:
            place = place[int(key)] if key.isdigit() else place[key]
        place[last] = value
    return made
