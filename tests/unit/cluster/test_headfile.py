"""head.json, and what crosses the HTTP API."""

from __future__ import annotations

import json
import pickle
import stat

import pytest

from dgpunet_dask.cluster.fleets import charged_by_device, fleet_digest, fleet_from_json, fleet_to_json, live_fleet, worker_rows
from dgpunet_dask.cluster.headfile import HeadFile, read_head_file, write_head_file
from dgpunet_dask.cluster.wire import error_from_wire, error_to_wire, job_from_wire, job_to_wire
from dgpunet_dask.errors import DgpunetError, MalformedFile, NewerFormat, NoSuchJob, NotFound, Problem, StageFailed, Unplaceable
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.job import JobStatus, UnitCounts

HEAD = HeadFile(pid=7, created=1.5, api="http://127.0.0.1:1", key="k", scheduler="tcp://127.0.0.1:2")
FLEET = Fleet(
    (Host(name="h", roles=("head",), cpus=4, link=1.25e9, power="mains"),),
    (
        Device(name="b", host="h", vram_mib=8192, capability=(8, 9), features=frozenset({"bf16", "fp8"}), driver=(550, 54)),
        Device(name="a", host="h", runtime_arches=("sm_86",), cordoned=True),
    ),
)


def test_head_file_round_trip_is_private(tmp_path):
    file = tmp_path / "head.json"
    write_head_file(file, HEAD)
    assert read_head_file(file) == HEAD
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": "1"}', '{"version": 1}', '{"version": 1, "pid": 3}'])
def test_a_file_that_no_head_wrote_is_none(tmp_path, text):
    file = tmp_path / "head.json"
    file.write_text(text)
    assert read_head_file(file) is None
    assert read_head_file(tmp_path / "none") is None


@pytest.mark.parametrize("wrong", [{"pid": "x"}, {"created": None}, {"api": 5}, {"key": None}, {"scheduler": []}])
def test_a_file_with_values_of_another_kind_is_none(tmp_path, wrong):
    path = tmp_path / "head.json"
    good = {"version": 1, "pid": 1, "created": 1.0, "api": "http://127.0.0.1:1", "key": "k", "scheduler": "s"}
    path.write_text(json.dumps(good))
    assert read_head_file(path) is not None
    path.write_text(json.dumps({**good, **wrong}))
    assert read_head_file(path) is None


def test_a_newer_file_is_refused(tmp_path):
    file = tmp_path / "head.json"
    file.write_text('{"version": 2}')
    with pytest.raises(NewerFormat) as refused:
        read_head_file(file)
    assert refused.value.exit_code == 2


def test_unknown_fields_of_the_same_version_do_no_harm(tmp_path):
    file = tmp_path / "head.json"
    write_head_file(file, HEAD)
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "green"}))
    assert read_head_file(file) == HEAD


def test_jobs_cross_whole():
    job = JobStatus(
        job_id="j", workload="w", state="failed", params={"p": [1]}, units=UnitCounts(total=3, done=1), metrics={"n": {"x": 1}},
        seconds=1.25, submitted_at=2.5, error={"code": "x", "message": "m", "reasons": []}, exit_code=100,
    )  # fmt: skip
    assert job_from_wire(json.loads(json.dumps(job_to_wire(job)))) == job


@pytest.mark.parametrize(
    "error",
    [
        NoSuchJob(job_id="{braces}"),
        StageFailed(stage="s", kind="ValueError", why="50% {of}"),
        Unplaceable(what="x", summary="1 vram_total", verdicts=[{"device": "a", "code": "vram_total"}]),
        MalformedFile([Problem("f", 1, 2, "bad")]),
        DgpunetError(detail="x"),
    ],
)
def test_errors_cross_as_what_they_are(error):
    told = error_from_wire(json.loads(json.dumps(error_to_wire(error))))
    for found in (told, pickle.loads(pickle.dumps(told)), error_from_wire(error_to_wire(told))):
        assert isinstance(found, type(error))
        assert (str(found), found.exit_code, found.code, found.reasons) == (str(error), error.exit_code, error.code, error.reasons)


def test_an_error_of_a_newer_head_keeps_its_code_and_exit_code():
    told = error_from_wire({"code": "from_tomorrow", "exit_code": 42, "message": "m"})
    assert (told.code, told.exit_code, str(told), told.reasons) == ("from_tomorrow", 42, "m", [])
    assert not isinstance(told, NotFound)


def test_fleets_cross_whole():
    wire = json.loads(json.dumps(fleet_to_json(FLEET)))
    assert fleet_from_json(wire) == FLEET
    charge = {"holder": "u", "device": "b", "vram_mib": 5}
    live = live_fleet({**wire, "charges": [charge], "states": {"a": "paused"}})
    assert live.charged_mib("b") == 5
    assert live.states == {"a": "paused"}


def test_digest_is_of_the_facts_not_of_their_order():
    turned = Fleet(FLEET.hosts, tuple(reversed(FLEET.devices)))
    assert fleet_digest(turned) == fleet_digest(FLEET)
    assert fleet_digest(Fleet(FLEET.hosts, FLEET.devices[:1])) != fleet_digest(FLEET)


def test_rows_of_status():
    rows = worker_rows(FLEET, {"b": "running"}, charged_by_device([{"device": "b", "vram_mib": 5}, {"device": "b", "vram_mib": 6}]))
    assert [(r["name"], r["state"], r["charged_mib"], r["vram_mib"]) for r in rows] == [("a", "lost", 0, None), ("b", "running", 11, 8192)]
