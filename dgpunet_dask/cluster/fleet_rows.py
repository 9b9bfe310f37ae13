"""A fleet as rows for `fleet show`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.placement.estimate import device_class
from dgpunet_dask.units import Mib


def host_row(host: Host) -> dict[str, Any]:
    """Return the facts of a host. Sizes in MiB, `link` in bytes per second; ``None``: not reported."""
    return {
        "name": host.name, "roles": list(host.roles), "ram_mib": host.ram_mib, "cpus": host.cpus, "link": host.link,
        "power": host.power, "battery": host.battery, "idle_s": host.idle_s,
    }  # fmt: skip


def device_row(fleet: Fleet, device: Device, speeds: Mapping[str, float]) -> dict[str, Any]:
    """Return the facts of a device, and what lies on it by kind. Sizes in MiB; ``None``: not reported."""
    charges = fleet.charges_on(device.name)
    return {
        "name": device.name,
        "host": device.host,
        "kind": device.kind,
        "model": device.model,
        "state": "cordoned" if device.cordoned else fleet.states.get(device.name, "running"),
        "vram_mib": device.vram_mib,
        "reserve_mib": device.reserve_mib,
        "resident_mib": _sum(charges, "resident"),
        "activation_mib": _sum(charges, "activation", "lease"),
        "foreign_mib": _sum(charges, "foreign"),
        "free_mib": fleet.free_mib(device.name),
        "compute_capability": _dotted(device.capability),
        "features": sorted(device.features),
        "driver": _dotted(device.driver),
        "runtime_arches": None if device.runtime_arches is None else list(device.runtime_arches),
        "display": device.display,
        "speed": device.speed,
        "measured_speed": speeds.get(device_class(device)),
        "running": sorted(c.holder for c in charges if c.kind in {"activation", "lease"}),
        "residents": sorted(c.stage or c.holder for c in charges if c.kind == "resident"),
    }


def fleet_rows(fleet: Fleet, speeds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return hosts and devices; `speeds`: what was measured, by device class."""
    return {"hosts": [host_row(h) for h in fleet.hosts], "devices": [device_row(fleet, d, speeds or {}) for d in fleet.devices]}


def fleet_lines(rows: Mapping[str, Any]) -> list[str]:
    """Return the rows as text: each host, and below it its devices."""
    told: list[str] = []
    for host in rows["hosts"]:
        told.append(_host_line(host))
        for device in rows["devices"]:
            if device["host"] == host["name"]:
                told += _device_lines(device)
    return told


def _host_line(host: Mapping[str, Any]) -> str:
    idle = None if host["idle_s"] is None else f"idle {host['idle_s']:.0f} s"
    size = None if host["ram_mib"] is None else f"{Mib.of(host['ram_mib'])} RAM"
    cpus = None if host["cpus"] is None else f"{host['cpus']} cpus"
    facts = [", ".join(host["roles"]) and f"roles {'+'.join(host['roles'])}", size, cpus, host["power"] and f"on {host['power']}", idle]
    return f"{host['name']}: " + (", ".join(filter(None, facts)) or "nothing reported")


def _device_lines(device: Mapping[str, Any]) -> list[str]:
    measured = "" if device["measured_speed"] is None else f" (measured {device['measured_speed']:.2f})"
    facts = [
        device["model"],
        device["compute_capability"] and f"cc {device['compute_capability']}",
        device["driver"] and f"driver {device['driver']}",
        f"speed {device['speed']:g}{measured}",
        "display attached" if device["display"] else None,
        ", ".join(device["features"]),
        device["runtime_arches"] and f"torch for {' '.join(device['runtime_arches'])}",
    ]
    lines = [f"  {device['name']}  {device['state']}  {'; '.join(filter(None, facts))}"]
    if device["kind"] == "gpu":
        lines.append("    " + _memory(device))
    return lines + [f"    {what}: {', '.join(device[what])}" for what in ("running", "residents") if device[what]]


def _memory(device: Mapping[str, Any]) -> str:
    if device["vram_mib"] is None:
        return "VRAM not reported"
    parts = ", ".join(f"{name} {_size(device[f'{name}_mib'])}" for name in ("reserve", "resident", "activation", "foreign"))
    return f"VRAM {_size(device['vram_mib'])}: {parts}, free {_size(device['free_mib'])}"


def _size(mib: int) -> str:
    return str(Mib.of(mib))


def _sum(charges: Iterable[Charge], *kinds: str) -> int:
    return sum(c.vram_mib for c in charges if c.kind in kinds)


def _dotted(version: tuple[int, ...] | None) -> str | None:
    return None if version is None else ".".join(map(str, version))
