"""What a host tells of itself, under the names that the head gave."""

from __future__ import annotations

import json

from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.heartbeats import beat_from
from dgpunet_dask.daemons.node_facts import facts_of, named, probe_node, wishes
from dgpunet_dask.model.fleet import Device, Fleet, Host
from tests.unit.daemons.members import body

CONFIG = ClusterConfig(membership="node", cluster="c", host="xps", address="127.0.0.1", api=("127.0.0.1:8787",), fingerprint="", roles=("batch",))
CARDS = [Device(name=f"gpu-{n}", host="xps", uuid=f"GPU-{n}", vram_mib=8192) for n in (0, 1)]
FLEET = Fleet(hosts=(Host(name="xps"),), devices=(*CARDS, Device(name="xps/cpu", host="xps", kind="cpu")))


def test_cards_take_the_heads_names_and_those_it_has_not_named_wait():
    assert wishes(FLEET) == [("GPU-0", "gpu-0"), ("GPU-1", "gpu-1")]
    assert [d.name for d in named(FLEET, {"GPU-0": "gpu-7", "GPU-9": "gpu-9"}).devices] == ["gpu-7", "xps/cpu"]
    assert [d.name for d in named(FLEET, {}).devices] == ["xps/cpu"]


def test_what_this_machine_tells_is_what_a_head_takes(home):
    fleet = probe_node(home, CONFIG)
    assert (fleet.hosts[0].name, fleet.hosts[0].roles) == ("xps", ("batch",))
    assert {device.host for device in fleet.devices} == {"xps"}
    facts = json.loads(json.dumps(facts_of(home, fleet, CONFIG)))
    assert beat_from(body(facts=facts)).facts == facts
    assert facts["fleet_digest"] == facts_of(home, fleet, CONFIG)["fleet_digest"]
