"""The devices that the cluster had last, and what was loaded there, in a file for a scheduler that starts again.

A scheduler keeps nothing. What joins one anew comes worker by worker, and until the last one is there, work for it looks as if no device
could ever hold it. The file is on the disk before that is asked: plain Dask clients may be back before the head.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.cluster.fleets import fleet_from_json, fleet_to_json
from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.wire import charge_from_wire, to_wire
from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)

VERSION: Final = 1


class Expected:
    """Keeps the file, which is written only where the fleet has changed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._kept: Fleet | None = None

    def begin(self, belongs: Collection[str] | None) -> None:
        """Of what an earlier head left, keep the devices that still belong to the cluster, by their names; all where that is not known."""
        found = read_expected(self.file)
        if belongs is None:
            belongs = [device.name for device in found.devices]
        devices = tuple(device for device in found.devices if device.name in belongs)
        charges = tuple(charge for charge in found.charges if charge.device in belongs)
        states = {name: state for name, state in found.states.items() if name in belongs}
        self._write(replace(found, devices=devices, charges=charges, states=states))

    def keep(self, seen: Mapping[str, Any]) -> None:
        """Keep what the scheduler's plugin says of its fleet (`dgpunet_fleet`)."""
        fleet = _lasting(seen)
        if fleet != self._kept:
            self._write(fleet)

    def _write(self, fleet: Fleet) -> None:
        try:
            residents = [to_wire(charge) for charge in fleet.charges]
            more = {"charges": residents, "states": dict(fleet.states)}
            write_private(self.file, json.dumps({"version": VERSION, **fleet_to_json(fleet), **more}))
        except OSError as error:  # a full disk; it is tried again when the fleet is looked at next
            log.warning("a scheduler that starts again will not know which devices to wait for: %s", error)
        else:
            self._kept = fleet


def _lasting(raw: Mapping[str, Any]) -> Fleet:
    """Return devices, residents and what is cordoned, without what changes by the minute."""
    fleet = fleet_from_json(raw)
    hosts = tuple(replace(host, idle_s=None, power=None) for host in fleet.hosts)
    charges = [charge_from_wire(charge) for charge in raw["charges"] if charge["kind"] == "resident"]
    residents = sorted((replace(charge, evictable=True) for charge in charges), key=lambda c: (c.device, c.holder))
    cordoned = {name: state for name, state in raw.get("states", {}).items() if state == "cordoned"}
    return replace(fleet, hosts=hosts, charges=tuple(residents), states=cordoned)


def read_expected(file: Path) -> Fleet:
    """Return the devices in `file`; none where there is no such file, or one that this release cannot read."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["version"] == VERSION:
            return _lasting(raw)
        log.warning("%s has another format version; the devices in it are not waited for", file)
    except FileNotFoundError:
        return Fleet()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadValue) as error:
        log.warning("%s cannot be read; the devices in it are not waited for: %s", file, error)
    return Fleet()
