"""Which process stands for which device."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgpunet_dask.cluster.workers import Backoff, Meeting, WorkerSite, file_name, plan_workers, stage_threads, threads_of
from dgpunet_dask.model.fleet import Device, Fleet, Host

HOST = Host(name="h", cpus=8)
CPU = Device(name="h/cpu", host="h", kind="cpu")
SIMULATED = Device(name="3090", host="h", vram_mib=24 << 10)
REAL = Device(name="rtx4090-0", host="h", vram_mib=16 << 10, uuid="GPU-1")
SITE = WorkerSite(
    scheduler_file=Path("/h/run/scheduler.json"),
    facts_folder=Path("/h/run/facts"),
    scratch=Path("/h/run/scratch"),
    agent_socket=Path("/h/run/agent.sock"),
    home=Path("/h"),
    cores=8,
)


def plans(*devices):
    return {p.device.name: p for p in plan_workers(Fleet((HOST,), devices), SITE)}


def option(plan, name):
    return plan.argv[plan.argv.index(name) + 1]


def test_every_worker_listens_on_loopback_without_dashboard():
    for plan in plans(CPU, SIMULATED, REAL).values():
        assert option(plan, "--host") == "127.0.0.1"
        assert option(plan, "--dashboard-address") == "127.0.0.1:0"
        assert "--no-dashboard" in plan.argv
        assert option(plan, "--name") == plan.device.name


def test_a_real_card_gets_dask_cuda_and_sees_itself_alone():
    plan = plans(CPU, SIMULATED, REAL)["rtx4090-0"]
    assert (plan.module, plan.argv[0]) == ("dask_cuda.cli", "worker")
    assert plan.env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "lifeline_preload" in plan.env["DASK_DISTRIBUTED__NANNY__PRELOAD"]


@pytest.mark.parametrize("name", ["3090", "h/cpu"])
def test_other_devices_get_a_plain_worker_that_sees_no_card(name):
    plan = plans(CPU, SIMULATED, REAL)[name]
    assert plan.module == "distributed.cli.dask_worker"
    assert "--no-nanny" in plan.argv
    assert plan.env["CUDA_VISIBLE_DEVICES"] == ""


def test_files_of_different_devices_differ():
    names = ["h/cpu", "h~cpu2", "h-cpu", "h.cpu", "h_cpu"]
    assert len({file_name(n) for n in names}) == len(names)
    assert file_name("../../etc") == "..~..~etc"


def test_threads():
    assert threads_of(SIMULATED, HOST) == 4
    assert threads_of(CPU, Host(name="x", cpus=2)) == 4
    assert threads_of(CPU, Host(name="x", cpus=64)) == 16
    assert threads_of(CPU, Host(name="x")) == 4


def test_stages_on_the_cpu_share_its_cores():
    assert stage_threads(Fleet((HOST,), (CPU,)), 8) == 8
    assert stage_threads(Fleet((HOST,), (CPU, REAL)), 8) == 8
    assert stage_threads(Fleet((HOST,), (CPU, SIMULATED)), 8) == 4
    assert stage_threads(Fleet((HOST,), (CPU, SIMULATED)), 1) == 1


def test_backoff_doubles_to_its_limit_and_starts_anew_after_a_steady_run():
    backoff, failures, waits = Backoff(first_s=1, most_s=5, steady_s=10), 0, []
    for ran_s in (0, 0, 0, 0, 10, 0):
        failures, wait_s = backoff.next(failures, ran_s)
        waits.append(wait_s)
    assert waits == [1, 2, 4, 5, 0, 2]
    assert backoff.next(10_000, 0)[1] == 5


def test_what_a_worker_spills_is_bounded_as_the_owner_says():
    found = plan_workers(Fleet((HOST,), (CPU, REAL)), dataclasses.replace(SITE, spill_bytes=20 << 30))
    for plan in found:
        script = "import dask, distributed; print(dask.config.get('distributed.worker.memory.max-spill'))"
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | plan.env, capture_output=True, text=True, check=True)
        assert done.stdout == f"{20 << 30}\n"
    assert not any("SPILL" in name for plan in plans(CPU, REAL).values() for name in plan.env)


@pytest.mark.parametrize(("codec", "variable"), [(None, "False"), ("zlib", "zlib")])
def test_workers_of_a_real_cluster_meet_under_one_compression(codec, variable):
    meeting = Meeting(scheduler="tls://h:8786", address="192.0.2.7", worker_port=8800, nanny_port=8900, compression=codec)
    found = plan_workers(Fleet((HOST,), (CPU, REAL)), dataclasses.replace(SITE, meeting=meeting))
    assert {plan.env["DASK_DISTRIBUTED__COMM__COMPRESSION"] for plan in found} == {variable}
    assert [option(plan, "--worker-port") for plan in found] == ["8800", "8801"]
    assert {plan.argv[0] for plan in found} == {"tls://h:8786"}
    assert [("--cuda" in plan.argv) for plan in found] == [plan.device.kind == "gpu" for plan in found]
