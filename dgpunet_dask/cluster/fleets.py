"""Fleets as they are started and compared: written as JSON, named by a digest, listed for `status`. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host


def fleet_digest(fleet: Fleet) -> str:
    """Return a digest of the hosts and devices of `fleet`: equal for equal facts, whatever order they were written in.

    How long a host has been idle is no fact of its fleet.
    """
    facts = {
        "hosts": sorted((asdict(replace(h, idle_s=None)) for h in fleet.hosts), key=lambda h: str(h["name"])),
        "devices": [asdict(d) for d in fleet.devices],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return sets as sorted lists, so that the digest does not depend on hash seeds."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a fleet")


def worker_rows(fleet: Fleet, states: Mapping[str, str], charged: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the ``workers`` of ``status --json``, one per device, in the order of their names.

    A device that no worker has announced is ``lost``. `charged` is in MiB.
    """
    return [
        {
            "name": device.name,
            "host": device.host,
            "device": device.name,
            "vram_mib": device.vram_mib,
            "charged_mib": charged.get(device.name, 0),
            "state": states.get(device.name, "lost"),
        }
        for device in fleet.devices
    ]


def charged_by_device(charges: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return Σ ``vram_mib`` of `charges` for each device."""
    total: dict[str, int] = {}
    for charge in charges:
        total[charge["device"]] = total.get(charge["device"], 0) + int(charge.get("vram_mib") or 0)
    return total


def fleet_to_json(fleet: Fleet) -> dict[str, Any]:
    """Return the hosts and devices of `fleet` as plain JSON values."""
    plain = {"hosts": [asdict(h) for h in fleet.hosts], "devices": [asdict(d) for d in fleet.devices]}
    return dict(json.loads(json.dumps(plain, default=_plain)))


def fleet_from_json(raw: Mapping[str, Any]) -> Fleet:
    """Return the fleet that `fleet_to_json` gave."""
    return Fleet(
        hosts=tuple(Host(**{**h, "roles": tuple(h["roles"])}) for h in raw["hosts"]),
        devices=tuple(_device_from(d) for d in raw["devices"]),
    )


def live_fleet(raw: Mapping[str, Any]) -> Fleet:
    """Return the fleet that the scheduler's plugin reports: hosts, devices, charges, states and links as plain values."""
    known = fleet_from_json(raw)
    links = {(src, dst): rate for src, dst, rate in raw.get("links", ())}
    return replace(known, charges=tuple(Charge(**c) for c in raw["charges"]), states=dict(raw["states"]), links=links)


def _device_from(raw: Mapping[str, Any]) -> Device:
    tuples = {k: tuple(raw[k]) for k in ("capability", "driver", "runtime_arches") if raw[k] is not None}
    return Device(**{**raw, **tuples, "features": frozenset(raw["features"])})


def worker_facts(host: Host, devices: Iterable[Device], agent_pid: int) -> dict[str, Any]:
    """Return what a worker tells the scheduler of itself: its host, its devices and the agent that started it."""
    plain = fleet_to_json(Fleet(hosts=(host,), devices=tuple(devices)))
    return {"host": plain["hosts"][0], "devices": plain["devices"], "agent": agent_pid}
