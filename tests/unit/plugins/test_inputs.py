"""Which inputs of a ready task count, and that tasks alike share a signature."""

from types import SimpleNamespace

import pytest

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.plugins.inputs import Inputs, rounded
from dgpunet_dask.plugins.records import Pins, Record, Signature

MIB = 1 << 20
LINKS = {("a", "b"): 1e8, ("a", "c"): 1e9, ("b", "a"): 1e9}


def inputs_with(links=LINKS) -> Inputs:
    made = Inputs({"tcp://a": "a", "tcp://b": "b"}.get)
    made.set_links(links)
    return made


def dep(nbytes: int, *addresses: str):
    return SimpleNamespace(nbytes=nbytes, who_has=[SimpleNamespace(address=address) for address in addresses])


def record(signature: Signature, *deps) -> Record:
    return Record(SimpleNamespace(key="k", dependencies=list(deps)), signature)


BASE = Signature(Demand(stage="s", vram="1GiB"), Pins(resources=(("R", 1.0),)))


def looked(inputs: Inputs, *deps, signature: Signature = BASE) -> Signature:
    one = record(signature, *deps)
    inputs.look(one)
    return one.signature


def test_large_inputs_are_told_by_host_and_pins_stay():
    found = looked(inputs_with(), dep(20 * MIB, "tcp://a"), dep(20 * MIB, "tcp://a"), dep(MIB, "tcp://b"))
    assert dict(found.demand.inputs) == {"a": pytest.approx(40 * MIB, rel=0.2)}
    assert (found.pins, found.resources) == (BASE.pins, {"R": 1.0})
    assert found.demand.stage == "s"


@pytest.mark.parametrize(
    "deps",
    [(), (dep(5 * MIB, "tcp://a"),), (dep(50 * MIB, "tcp://b"),), (dep(1 << 40, "tcp://stranger"),), (dep(1 << 40),), (dep(-1, "tcp://a"),)],
    ids=["none", "small", "small for its link", "unknown host", "nowhere", "size not known"],
)
def test_what_is_soon_brought_or_not_known_changes_nothing(deps):
    assert looked(inputs_with(), *deps) is BASE


def test_without_measured_links_nothing_is_looked_at():
    assert looked(inputs_with({}), dep(1 << 40, "tcp://a")) is BASE


def test_inputs_that_were_stated_stay():
    stated = Signature(Demand(inputs={"c": 5}))
    assert looked(inputs_with(), dep(1 << 40, "tcp://a"), signature=stated) is stated


def test_tasks_alike_share_a_signature_and_a_second_look_begins_anew():
    inputs = inputs_with()
    one, other = record(BASE, dep(40 * MIB, "tcp://a")), record(BASE, dep(41 * MIB, "tcp://a"))
    inputs.look(one)
    inputs.look(other)
    assert one.signature is other.signature
    one.ts.dependencies = [dep(4000 * MIB, "tcp://b")]
    inputs.look(one)
    assert list(one.signature.demand.inputs) == ["b"]
    one.ts.dependencies = []
    inputs.look(one)
    assert one.signature is BASE


def test_of_several_copies_one_counts():
    found = looked(inputs_with({**LINKS, ("b", "c"): 1e8}), dep(80 * MIB, "tcp://b", "tcp://a"))
    assert list(found.demand.inputs) == ["a"]


@pytest.mark.parametrize("nbytes", [1, 3, 1000, 12345678, 1 << 40])
def test_sizes_are_rounded_by_a_fifth_at_most(nbytes):
    assert rounded(nbytes) == pytest.approx(nbytes, rel=0.2, abs=1)
    assert rounded(0) == 0
