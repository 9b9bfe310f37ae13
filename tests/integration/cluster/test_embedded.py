"""Clusters that live as long as the commands that use them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dgpunet_dask.cli.context import CliContext
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.headfile import HeadFile, write_head_file
from dgpunet_dask.daemons.embedded import attach, current_head, running_head
from dgpunet_dask.daemons.register import SUPERVISOR, Register
from dgpunet_dask.errors import BadValue, JobLost, NoHead


def end(holder):
    """Let a holding command end in good order."""
    holder.stdin.close()
    assert holder.wait(30) == 0, holder.stderr.read()


def test_one_command_starts_and_stops_it(site):
    holder = site.hold()
    head_pid = int(holder.stdout.readline())
    head = current_head(site.home)
    assert head is not None
    assert head.pid == head_pid
    assert running_head(site.home) is None  # it does not outlive its commands
    end(holder)
    assert site.left() == []


def test_two_commands_share_it_and_the_last_one_stops_it(site):
    first, second = site.hold(), site.hold()
    pids = {int(h.stdout.readline()) for h in (first, second)}
    assert len(pids) == 1
    end(first)
    assert current_head(site.home) is not None
    end(second)
    assert site.left() == []


def test_killed_command_takes_it_along(site):
    holder = site.hold()
    holder.stdout.readline()
    holder.kill()
    site.until(lambda: not site.left(), 8)
    assert not site.home.head_file.exists()


def test_killed_command_leaves_it_to_another(site):
    first = site.hold()
    head_pid = first.stdout.readline()
    second = site.hold()
    assert second.stdout.readline() == head_pid
    first.kill()
    first.wait(5)
    assert site.status()["head_pid"] == int(head_pid)
    end(second)
    assert site.left() == []


@pytest.mark.parametrize("phase", ["daemons.head", "dask_worker"])
def test_ctrl_c_while_it_starts(site, phase):
    holder = site.hold()
    site.until(lambda: site.pids(phase))
    holder.send_signal(signal.SIGINT)
    holder.communicate(timeout=30)
    assert holder.returncode != 0
    site.until(lambda: not site.left(), 5)


def test_up_makes_it_stay(site):
    holder = site.hold()
    head_pid = int(holder.stdout.readline())
    code, _, err = site.run("up")
    assert code == 0, err
    assert "does not come back" in err
    assert site.status()["head_pid"] == head_pid
    end(holder)
    assert site.status()["head_pid"] == head_pid
    assert running_head(site.home) is not None
    assert site.pids("daemons.supervisor") == []
    os.kill(head_pid, signal.SIGKILL)
    site.until(lambda: not site.left(), 5)


def test_commands_use_a_running_head_and_leave_it(site):
    head_pid = site.up()["head_pid"]
    holder = site.hold()
    assert int(holder.stdout.readline()) == head_pid
    end(holder)
    assert site.status()["head_pid"] == head_pid


def test_stale_head_file_is_replaced(site):
    """Its pid is alive but belongs to somebody else: this test."""
    site.home.ensure()
    write_head_file(site.home.head_file, HeadFile(pid=os.getpid(), created=1.0, api="http://127.0.0.1:9", key="k", scheduler="tcp://x"))
    assert current_head(site.home) is None
    with attach(site.home, environ={}) as client:
        assert client.status()["head_pid"] != os.getpid()
    assert site.left() == []


def test_a_named_cluster_is_never_replaced_by_an_embedded_one(site):
    site.home.ensure()
    for name in ("127.0.0.1:9", "http://127.0.0.1:9", "elsewhere", "https://127.0.0.1:9"):
        with pytest.raises(NoHead), attach(site.home, name):
            pass
    for name in ("127.0.0.1:notaport", "http://127.0.0.1:99999", "ftp://127.0.0.1"):
        with pytest.raises(BadValue), attach(site.home, name):
            pass
    with pytest.raises(NoHead), attach(site.home, environ={"DGPUNET_CLUSTER": "elsewhere"}):
        pass
    assert site.left() == []


def test_a_running_head_is_reached_by_name_and_address(site):
    head_pid = site.up()["head_pid"]
    head = running_head(site.home)
    for name in ("local", head.api, head.api.removeprefix("http://")):
        with attach(site.home, name) as client:
            assert client.status()["head_pid"] == head_pid


def test_a_job_whose_head_is_gone_is_lost(site):
    site.up()
    head = running_head(site.home)
    client = ApiClient(head.api, head.key)
    client.status()
    assert site.run("down")[0] == 0
    with pytest.raises(JobLost) as lost:
        client.show("some-job")
    assert lost.value.exit_code == 104
    with pytest.raises(NoHead):
        ApiClient(head.api, head.key).show("some-job")


def test_who_only_looks_starts_no_cluster_when_the_supervisor_gives_up_meanwhile(site):
    site.home.ensure()
    supervisor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    Register(site.home.run / "processes").add(supervisor.pid, SUPERVISOR)
    client = CliContext(site.home).head_client()
    supervisor.communicate()
    with pytest.raises(NoHead):
        client.jobs()
    assert sorted(path.name for path in site.home.run.iterdir()) == ["processes"]  # no lock, no log, nothing cleared


def test_a_supervised_head_that_dies_is_not_replaced_by_an_embedded_one(site):
    supervised = site.up()["head_pid"]
    head = running_head(site.home)
    (supervisor,) = site.pids("daemons.supervisor")
    os.kill(supervised, signal.SIGSTOP)  # connections are taken, and nothing is answered, until the supervisor kills it
    with attach(site.home, environ={}, start=False) as client:
        assert client.status()["head_pid"] != supervised
    assert site.pids("daemons.supervisor") == [supervisor]
    assert current_head(site.home).pid != head.pid
