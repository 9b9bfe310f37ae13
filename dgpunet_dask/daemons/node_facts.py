"""What a host tells its head of itself: its cards and CPU under their names in the fleet, its software, its way to the head."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.fleets import fleet_digest, fleet_to_json
from dgpunet_dask.config.home import Home
from dgpunet_dask.hardware.network import choose_interface, interfaces, route_to
from dgpunet_dask.hardware.probe import local_fleet
from dgpunet_dask.hardware.runtime import torch_arches
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.observe.collect import Wanted, collect_local
from dgpunet_dask.placement.fleet_file import cpu_of


def probe_node(home: Home, config: ClusterConfig) -> Fleet:
    """Return this machine as the host that `config` names; its cards have the names that it would give them itself."""
    found = local_fleet(arches=functools.partial(torch_arches, home.torch_arches))
    host = replace(found.hosts[0], name=config.host, roles=config.roles)
    cards = (replace(card, host=host.name) for card in found.gpus())
    return Fleet(hosts=(host,), devices=(*cards, cpu_of(host)))


def wishes(fleet: Fleet) -> list[tuple[str, str]]:
    """Return UUID and own name of each card."""
    return [(str(card.uuid), card.name) for card in fleet.gpus()]


def named(fleet: Fleet, names: Mapping[str, str]) -> Fleet:
    """Return `fleet` with the names by UUID that the head gave; a card that it has not named is left out."""

    def device(found: Device) -> Device:
        return found if found.kind == "cpu" else replace(found, name=names[str(found.uuid)])

    return Fleet(fleet.hosts, tuple(device(d) for d in fleet.devices if d.kind == "cpu" or str(d.uuid) in names))


#: How long one question of `doctor` may take: a host must not be silent for the sake of one.
PROBE_S: Final = 5.0
#: What `doctor` asks of each machine beside what placement is told anyway.
EXAMINED: Final = ("clock", "disk", "home", "limits", "memory", "nvml", "pci", "temp")


def facts_of(home: Home, fleet: Fleet, config: ClusterConfig) -> dict[str, Any]:
    """Return the facts as plain JSON values."""
    examined = collect_local(Wanted(home=home.root, arches=home.torch_arches, pki=home.pki), limit_s=PROBE_S)
    return {
        "fleet": fleet_to_json(fleet),
        "fleet_digest": fleet_digest(fleet),
        "cards": [list(pair) for pair in wishes(fleet)],
        "software": asdict(software_facts()),
        "interface": interface_facts(config),
        "doctor": {name: examined[name] for name in EXAMINED if name in examined},
    }


def interface_facts(config: ClusterConfig) -> dict[str, Any]:
    """Return which interface this host uses for the cluster and why, as `nodes` and `doctor` show it."""
    found = interfaces()
    head = None if config.membership == "head" else config.api[0].rpartition(":")[0].strip("[]")
    choice = choose_interface(found, head=head, route=route_to)
    mine = next((one for one in found if config.address in one.addresses), choice.interface)
    return {
        "name": mine.name, "kind": mine.kind, "address": config.address, "mtu": mine.mtu, "speed_mbit_s": mine.speed_mbit_s,
        "duplex": mine.duplex, "why": choice.why, "refused": [list(one) for one in choice.refused], "warning": choice.warning,
    }  # fmt: skip
