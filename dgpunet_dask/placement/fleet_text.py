"""A fleet as a fleet file (design §5.2), which `fleet_file.parse_fleet` reads back. Text only; nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from dgpunet_dask.model.fleet import Device, Fleet, Host, features_of
from dgpunet_dask.placement.fleet_file import FORMAT_VERSION
from dgpunet_dask.units import Mib


def fleet_text(fleet: Fleet) -> str:
    """Return the facts of `fleet` as a file. What passes (charges, states but for a cordon, idle time) has no place in it."""
    hosts = {_name(host.name): _host(fleet, host) for host in sorted(fleet.hosts, key=lambda h: h.name)}
    return yaml.dump({"version": FORMAT_VERSION, "hosts": hosts}, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=1000)


class _Name(str):
    """A name that YAML may take for a number: it is written in quotes."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Knows `_Name`."""


_Dumper.add_representer(_Name, lambda dumper, name: dumper.represent_scalar("tag:yaml.org,2002:str", str(name), style='"'))


def _name(name: str) -> str:
    return _Name(name) if name[:1].isdigit() else name


def _host(fleet: Fleet, host: Host) -> dict[str, Any]:
    facts = {
        "roles": [_name(role) for role in host.roles] or None,
        "ram": None if host.ram_mib is None else str(Mib.of(host.ram_mib)),
        "cpus": host.cpus,
        "link": None if host.link is None else _rate(host.link),
        "power": host.power,
        "gpus": {_name(d.name): _card(fleet, d) for d in fleet.gpus() if d.host == host.name} or None,
    }
    return _stated(facts)


def _card(fleet: Fleet, device: Device) -> dict[str, Any]:
    derived = frozenset[str]() if device.capability is None else features_of(device.capability)
    cordoned = device.cordoned or fleet.states.get(device.name) == "cordoned"
    facts = {
        "model": device.model,
        "vram": None if device.vram_mib is None else str(Mib.of(device.vram_mib)),
        "compute_capability": _dotted(device.capability),
        "speed": device.speed,
        "reserve": str(Mib.of(device.reserve_mib)) if device.reserve_mib else None,
        "bandwidth": None if device.bandwidth is None else _rate(device.bandwidth),
        "driver": _dotted(device.driver),
        "runtime_arches": None if device.runtime_arches is None else list(device.runtime_arches),
        "features": None if device.features == derived else [_name(f) for f in sorted(device.features)],
        "cordoned": cordoned or None,
        "display": device.display,
    }
    return _stated(facts)


def _stated(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known: a key that is left out is a fact that was not reported."""
    return {key: value for key, value in facts.items() if value is not None}


def _dotted(version: tuple[int, ...] | None) -> str | None:
    return None if version is None else ".".join(map(str, version))


def _rate(rate: float) -> str:
    """Return bytes per second as a rate that is read back as the same number, a round one in its usual unit."""
    for unit, bytes_per_s in (("GB/s", 1e9), ("Gbit/s", 1e9 / 8), ("MB/s", 1e6), ("Mbit/s", 1e6 / 8)):
        if rate % bytes_per_s == 0:
            return f"{rate / bytes_per_s:.0f}{unit}"
    return f"{rate:.3f}B/s"
