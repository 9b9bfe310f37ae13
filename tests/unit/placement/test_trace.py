"""The decision log: what is written is read back, and what cannot be read is told with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import MalformedFile, NewerFormat
from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Fleet
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.trace import (
    EndRecord,
    EstimatesRecord,
    FleetRecord,
    ForeignRecord,
    PlaceRecord,
    PolicyRecord,
    PolicySource,
    Record,
    StateRecord,
    SubmitRecord,
    fleet_id,
    parse_trace,
    to_line,
)


def records(home5: Fleet) -> list[Record]:
    demand = Demand(stage="embed", vram="10GiB", features=["fp8"], driver=">=550", inputs={"xps17": 5}, work=2.5)
    busy = home5.with_charges([Charge(holder="chat", device="4090l", vram_mib=100, kind="lease", ends_s=4.0)])
    decision = place(home5, demand)
    return [
        FleetRecord.of(0.0, busy),
        PolicyRecord(0.0, "abc", (PolicySource("a.yaml", "human", "version: 1\n\u2028 # a separator\n"),)),
        EstimatesRecord(0.5, NO_ESTIMATES.with_run("embed", None, "cpu", 3.0)),
        SubmitRecord(1.0, "embed-1", demand),
        PlaceRecord.of(1.5, "embed-1", decision, fleet_id(home5)),
        StateRecord(2.0, "3090", "lost"),
        ForeignRecord(2.0, "5090", 512),
        EndRecord(3.0, "embed-1", "done", decision.devices, 1.5, 2, 0.25, 4096),
        EndRecord(3.5, "embed-2", "oom"),
    ]


def test_what_is_written_is_read_back(home5: Fleet) -> None:
    written = records(home5)
    text = "".join(to_line(r) + "\n" for r in written)
    trace = parse_trace(text, "log")
    assert trace.records == tuple(written)
    assert not trace.warnings
    first = trace.records[0]
    assert isinstance(first, FleetRecord)
    assert first.value.charges_on("4090l")[0].ends_s == 4.0
    assert fleet_id(first.value) == fleet_id(home5) == first.fleet, "charges are not the fleet"


def test_a_decision_tells_the_first_reason_of_each_device(home5: Fleet) -> None:
    decision = place(home5, Demand(vram="20GiB"))
    record = PlaceRecord.of(0.0, "x", decision)
    assert record.reasons["4070l"] == "vram_total"
    assert record.devices == decision.devices
    assert PlaceRecord.of(0.0, "x", Decision("wait", waits_for="5090")).waits_for == "5090"


@pytest.mark.parametrize(
    ("line", "col", "what"),
    [
        ("{", 2, "not JSON"),
        ("[]", 1, "a line is an object"),
        ('{"t":0}', 1, "v is the format's version"),
        ('{"v":true,"t":0}', 2, "v is the format's version"),
        ('{"v":1,"t":0,"kind":"submitt"}', 14, "did you mean 'submit'"),
        ('{"v":1,"kind":"state","device":"a","state":"lost"}', 8, "needs 't'"),
        ('{"v":1,"t":-1,"kind":"state","device":"a","state":"lost"}', 8, "0 or more"),
        ('{"v":1,"t":NaN,"kind":"state","device":"a","state":"lost"}', 1, "NaN"),
        ('{"v":1,"t":0,"kind":"state","device":"a","state":"lots"}', 42, "did you mean 'lost'"),
        ('{"v":1,"t":0,"kind":"state","device":7,"state":"lost"}', 29, "a text"),
        ('{"v":1,"t":0,"kind":"state","device":"a","state":"lost","x":1}', 57, "unknown key 'x'"),
        ('{"v":1,"t":0,"kind":"submit","id":"a","demand":{"vrma":1}}', 39, "did you mean 'vram'"),
        ('{"v":1,"t":0,"kind":"submit","id":"a","demand":[]}', 39, "an object"),
        ('{"v":1,"t":0,"kind":"end","id":"a","outcome":"don"}', 36, "did you mean 'done'"),
        ('{"v":1,"t":0,"kind":"end","id":"a","outcome":"done","share":1.5}', 53, "a whole number"),
        ('{"v":1,"t":0,"kind":"end","id":"a","outcome":"done","devices":"5090"}', 53, "a list"),
        ('{"v":1,"t":0,"kind":"place","id":"a","outcome":"wait","reasons":{"3090":"bussy"}}', 55, "did you mean 'busy'"),
        ('{"v":1,"t":0,"kind":"policy","policy":"a","sources":[{"file":"a","layer":"human"}]}', 43, "the text of a file"),
        ('{"v":1,"t":0,"kind":"estimates","estimates":{"version":9}}', 33, "version 1"),
        ('{"v":1,"t":0,"kind":"fleet","fleet":"a","hosts":[],"devices":[{"name":"a"}]}', 52, "host"),
        ('{"v":1,"t":0,"kind":"fleet","fleet":"a","hosts":[],"devices":[{"name":"a","host":"h","vram_mib":"x"}]}', 52, "vram_mib of 'a'"),
        ('{"v":1,"t":0,"kind":"fleet","fleet":"a","hosts":[{"name":"a","cpu":1}],"devices":[]}', 41, "did you mean 'cpus'"),
        ("[" * 100_000 + "]" * 100_000, 1, "nested too deeply"),
    ],
)
def test_each_mistake_has_its_place(line: str, col: int, what: str) -> None:
    good = to_line(StateRecord(0.0, "a", "lost"))
    with pytest.raises(MalformedFile) as caught:
        parse_trace(f"{good}\n{line}\n{good}\n", "log")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.col) == ("log", 2, col), problem
    assert what in problem.what


def test_all_mistakes_at_once() -> None:
    with pytest.raises(MalformedFile) as caught:
        parse_trace('{\n[]\n{"v":1,"t":"x","kind":"state","device":1,"state":"no"}\n', "log")
    assert [p.line for p in caught.value.problems] == [1, 2, 3, 3, 3]


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(NewerFormat):
        parse_trace('{"v":2,"t":0,"kind":"later"}\n', "log")


def test_a_torn_last_line_is_left_out_with_a_warning() -> None:
    line = to_line(StateRecord(0.0, "a", "lost"))
    for cut in range(1, len(line)):
        trace = parse_trace(f"{line}\n{line[:cut]}", "log")
        assert len(trace.records) == 1
        assert len(trace.warnings) == 1
        assert trace.warnings[0].startswith("log:2:")
    assert len(parse_trace(f"{line}\n{line}", "log").records) == 2, "whole but for its newline"


def test_a_clock_that_was_set_back_stands_still() -> None:
    lines = [to_line(StateRecord(t, "a", "lost")) for t in (5.0, 3.0, 6.0)]
    trace = parse_trace("\n".join(lines) + "\n", "log")
    assert [r.t for r in trace.records] == [5.0, 5.0, 6.0]
    assert len(trace.warnings) == 1


def test_an_empty_log_has_no_records() -> None:
    assert parse_trace("", "log").records == ()
    assert parse_trace("\n\n", "log").records == ()


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda v: st.lists(v, max_size=3) | st.dictionaries(
    st.sampled_from(["v", "t", "kind", "id", "demand", "devices", "hosts", "fleet", "outcome", "state", "device"]), v, max_size=6
)), st.sampled_from(["fleet", "policy", "estimates", "submit", "place", "end", "state", "foreign"]))  # fmt: skip
def test_no_line_gives_anything_but_a_record_or_a_mistake(value: object, kind: str) -> None:
    row = {**value, "v": 1, "t": 0, "kind": kind} if isinstance(value, dict) else value
    with contextlib.suppress(MalformedFile):
        parse_trace(json.dumps(row) + "\n", "log")
