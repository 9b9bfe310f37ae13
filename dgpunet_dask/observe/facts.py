"""Facts of one machine as they travel: JSON, read with a doubt, for they come from other machines and other releases. Pure.

What `collect.collect_local` gathers::

    version   1
    host      its name
    at        when, seconds since 1970
    home      {path, writable, file_system, network}
    cards     [{index, name, model, uuid, present, vram_mib, used_mib, capability: [8, 9], driver: "580.65", cuda: "13.0",
                temperature_c, power_w, power_limit_w, power_limit_default_w, utilisation, throttle: [name], ecc, display, reserve_mib,
                pcie: {generation, generation_max, width, width_max}, recovery_action, processes: [{pid, mib, name, ours}]}]
    xid       [{uuid, pci, xid, at}]        errors that the driver or the kernel's log told of, the last of each number and card
    nvml      {available, why, nodes}       nodes: how many cards this process has access to
    pci       [{address, device, driver}]   NVIDIA cards on the bus, whether or not a driver runs them
    software  {python, dgpunet_dask, torch, torch_cuda, torch_arches, …}
    network   {interfaces: [{name, kind, addresses, mtu, speed_mbit_s, duplex, up}], chosen: {interface, address, why}}
    clock     {synchronised, error_s, offset_s}   how far ahead of the head's, where one was asked
    disk      [{path, total, free, floor}]  bytes; floor: what is to stay free on the home's
    settings  {path, exists, mistakes: [text]}    of the home's config.yaml
    memory    {total_mib, available_mib, swap_total_mib, swap_used_mib}
    limits    {nofile, nofile_max}
    power     {source, battery}
    ports     [{port, what, state: free|ours|foreign, program}]
    canary    [{device, ok, mismatches, wrong, seconds, gflops, why}]
    certificate {expires_s}                 seconds since 1970
    probes    {name: {seconds, error}}

Each of them may be missing, and each value ``None``: not reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

VERSION: Final = 1


@dataclass(frozen=True)
class Facts:
    """A mapping of facts. A value that is missing or of another kind is ``None``, never an error.

    Parameters
    ----------
    raw
        The mapping.
    host
        Whose facts they are.
    """

    raw: Mapping[str, Any]
    host: str

    def at(self, *path: str) -> Any:
        """Return what lies at a path, ``None`` where there is nothing."""
        found: Any = self.raw
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def number(self, *path: str) -> float | None:
        """Return a finite number."""
        found = self.at(*path)
        return found if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) else None

    def text(self, *path: str) -> str | None:
        """Return a text that is not empty."""
        found = self.at(*path)
        return found if isinstance(found, str) and found else None

    def flag(self, *path: str) -> bool | None:
        """Return yes or no."""
        found = self.at(*path)
        return found if isinstance(found, bool) else None

    def texts(self, *path: str) -> tuple[str, ...]:
        """Return the texts of a list."""
        found = self.at(*path)
        return tuple(item for item in found if isinstance(item, str)) if isinstance(found, list | tuple) else ()

    def rows(self, *path: str) -> tuple[Facts, ...]:
        """Return the mappings of a list, each as facts of the same host."""
        found = self.at(*path)
        return tuple(Facts(item, self.host) for item in found if isinstance(item, Mapping)) if isinstance(found, list | tuple) else ()

    def version(self, *path: str) -> tuple[int, ...] | None:
        """Return the leading numbers of a version, written ``"580.65.06"`` or ``[580, 65, 6]``."""
        found = self.at(*path)
        parts = found.split(".") if isinstance(found, str) else found if isinstance(found, list | tuple) else ()
        numbers = []
        for part in parts:
            digits = str(part)
            if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
                break
            numbers.append(int(digits))
        return tuple(numbers) or None


def dotted(version: tuple[int, ...] | None) -> str | None:
    """Return ``8.9`` for (8, 9)."""
    return None if version is None else ".".join(map(str, version))


def gib(size: float) -> str:
    """Return bytes as ``1.5 GiB``."""
    return f"{size / (1 << 30):.1f} GiB"
