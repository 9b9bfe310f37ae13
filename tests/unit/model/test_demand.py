"""What a demand may say, and how it travels."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.testing.fleets import demands
from dgpunet_dask.units import Mib, VersionSpec


def test_a_demand_keeps_plain_numbers() -> None:
    demand = Demand(vram="2GiB", resident="600MiB", ram="1.5GiB", features=["fp8", "bf16", "fp8"], compute_capability="8.9")
    assert (demand.vram_mib, demand.resident_mib, demand.ram_mib) == (2048, 600, 1536)
    assert demand.features == ("bf16", "fp8")
    assert demand.capability == VersionSpec(">=8.9")
    assert (demand.driver_spec, demand.gpus, demand.cpus) == (None, 1, 1)


def test_nothing_stated_is_the_whole_card() -> None:
    assert Demand().vram_mib is None
    assert Demand().to_mapping() == {}


def test_no_card_asked_for_means_a_cpu_will_do() -> None:
    assert Demand(gpus=0).cpu_ok
    assert not Demand().cpu_ok


def test_an_annotation_reads_as_the_class_does() -> None:
    assert Demand.parse({"vram": "4GiB", "features": ["bf16"]}) == Demand(vram="4GiB", features=["bf16"])
    ready = Demand(vram="4GiB")
    assert Demand.parse(ready) is ready


@given(demands(), st.sampled_from([None, "10s", 2.5]), st.dictionaries(st.sampled_from(["5090", "m18r2"]), st.integers(0, 9)))
def test_a_demand_survives_the_wire(demand: Demand, work: Any, inputs: dict[str, int]) -> None:
    full = Demand.parse({**demand.to_mapping(), "work": work, "inputs": inputs})
    assert Demand.parse(json.loads(json.dumps(full.to_mapping()))) == full
    assert pickle.loads(pickle.dumps(full)) == full
    assert hash(Demand.parse(full.to_mapping())) == hash(full)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"vramm": "1GiB"}, "did you mean 'vram'"),
        ({"vram": 4}, "vram 4 is not valid: write it with its unit"),
        ({"vram": "4"}, "vram '4'"),
        ({"vram": "1GiB", "resident": "2GiB"}, "part of vram"),
        ({"compute_capability": 8.9}, "compute_capability 8.9 is not valid: write it quoted"),
        ({"driver": ">=x"}, "driver"),
        ({"features": "bf16"}, "write a list"),
        ({"features": [8]}, "write a list"),
        ({"priority": "high"}, "interactive, batch, idle"),
        ({"gpus": -1}, "gpus -1 is not valid: write a whole number"),
        ({"gpus": 1.5}, "whole number"),
        ({"cpus": -1}, "cpus"),
        ({"work": "soon"}, "15m"),
        ({"work": -1}, "work -1 is not valid: write 0 s or more"),
        ({"work": float("nan")}, "0 s or more"),
        ({"work": 10**400}, "0 s or more"),
        ({"inputs": {"5090": "many"}}, "size"),
        ({"inputs": {"5090": -1}}, "names of devices or hosts and sizes"),
        ({"inputs": {"5090": 1.5}}, "names of devices or hosts and sizes"),
        ({"inputs": ["5090"]}, "write a mapping"),
        ({"features": None}, "write a list"),
        ({"stage": 5090}, "stage 5090 is not valid: write a text"),
        ({"user": []}, "write a text"),
        ({"exclusive": "no"}, "exclusive 'no' is not valid: write true or false"),
        ({"cpu_ok": 1}, "true or false"),
        ({"vram": "9" * 400 + "GiB"}, "a number with its unit"),
        ("4GiB", "write a mapping"),
        (None, "write a mapping"),
    ],
)
def test_mistakes_name_the_field_and_what_would_be_right(raw: Any, told: str) -> None:
    with pytest.raises(BadValue) as caught:
        Demand.parse(raw)
    assert told in str(caught.value)


def test_a_stage_name_fills_in_where_there_is_none() -> None:
    assert Demand(vram="1GiB").named("embed").stage == "embed"
    assert Demand(stage="own").named("embed").stage == "own"


def test_a_whole_mib_stays_exact() -> None:
    assert Demand(vram=Mib.of(777)).to_mapping() == {"vram": "777MiB"}
