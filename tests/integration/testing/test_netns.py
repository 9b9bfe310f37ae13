"""Hosts in namespaces: separate, reachable, slowed, cut, mended, and gone in the end, whatever became of their owner."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dgpunet_dask.testing import netns
from dgpunet_dask.testing.fake_nvml import compiler
from dgpunet_dask.testing.homelab import CARDS, ROOT, HomeLab
from dgpunet_dask.testing.netns import Lan, bucket_bytes, permitted, sweep
from tests.helpers import until

pytestmark = pytest.mark.skipif(permitted() is not None, reason=f"hosts in namespaces: {permitted()}")

LISTEN = """
import socket
server = socket.create_server(("", 5000))
print("ready", flush=True)
while True:
    server.accept()[0].sendall(b"hello")
"""
ASK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])) as peer:
        print(peer.recv(5).decode())
except OSError as error:
    print(type(error).__name__)
"""
#: A LAN whose owner says what it made, and waits to be killed. Its process on the host outlives it: it is in a session of its own.
OWNER = """
import json, signal
from dgpunet_dask.testing.netns import Lan
with Lan("a", "b") as lan:
    child = lan.host("a").popen(["sleep", "600"])
    print(json.dumps([sorted([lan.bridge, *(h.namespace for h in lan.hosts.values())]), child.pid]), flush=True)
    signal.pause()
"""


def python(*words):
    return [sys.executable, "-I", "-S", "-c", *words]


def listen(host):
    process = host.popen(python(LISTEN), stdout=subprocess.PIPE)
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    return process


def ask(host, address, wait_s=2.0):
    return host.run(python(ASK, address, str(wait_s))).stdout.strip()


def gone(namespaces):
    return not set(namespaces) & netns._listed()


def test_hosts_reach_one_another_and_nothing_else():
    with Lan("a", "b") as lan, Lan("a") as other:
        listen(lan.host("b"))
        assert ask(lan.host("a"), lan.host("b").address) == "hello"
        assert ask(lan.host("a"), "127.0.0.1") == "ConnectionRefusedError"  # b's own
        assert ask(lan.host("a"), "10.78.0.1") == "OSError"  # no route
        assert other.host("a").address == lan.host("a").address
        assert ask(other.host("a"), lan.host("b").address, 0.3) in {"OSError", "TimeoutError"}


def test_a_host_has_a_name_and_interfaces_of_its_own():
    with Lan("tower", "xps") as lan:
        seen = lan.host("xps").run(["sh", "-c", "hostname; ls /sys/class/net; cat /sys/class/net/eth0/operstate"])
    assert seen.stdout.split() == ["xps", "eth0", "lo", "up"]


def test_six_hosts_are_up_in_two_seconds():
    start = time.perf_counter()
    with Lan(*"abcdef") as lan:
        assert time.perf_counter() - start < 2.0
        listen(lan.host("f"))
        start = time.perf_counter()
        assert ask(lan.host("a"), lan.host("f").address) == "hello"
        assert time.perf_counter() - start < 1.0  # a first packet that were lost would be sent again after 1 s


def test_a_cut_host_is_silent_until_it_is_mended():
    with Lan("a", "b", "c") as lan:
        a, b, c = lan.hosts.values()
        listen(b)
        assert ask(a, b.address) == "hello"
        lan.cut("b")
        assert ask(a, b.address, 0.3) in {"OSError", "TimeoutError"}
        assert ask(b, b.address) == "hello"
        listen(c)
        assert ask(a, c.address) == "hello"
        lan.mend("b")
        assert ask(a, b.address) == "hello"


def test_what_runs_on_the_hosts_ends_with_the_lan():
    with Lan("a", "b") as lan:
        stubborn = lan.host("a").popen(["sh", "-c", "trap '' TERM HUP; sleep 600 & sleep 601"])
        until(lambda: len(lan.host("a").pids()) == 3, what="the shell and its two children")
        assert stubborn.pid in lan.pids()
        assert lan.host("b").pids() == []
        namespaces = lan._namespaces()
        assert not gone(namespaces)
    assert stubborn.returncode == -signal.SIGKILL
    assert gone(namespaces)


def test_a_sweep_removes_what_a_killed_owner_left_and_nothing_else():
    with Lan("a") as mine:
        listen(mine.host("a"))
        owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        with owner.stdout:
            namespaces, child = json.loads(owner.stdout.readline())
        assert set(sweep()) & set(namespaces) == set()
        owner.kill()
        owner.wait(timeout=10)
        until(lambda: netns._pids(namespaces) == [child], timeout_s=10, what="the host's name, which a process of its own gives it", every_s=0.01)
        assert set(namespaces) <= set(sweep())
        assert gone(namespaces)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        assert ask(mine.host("a"), mine.host("a").address) == "hello"


def test_a_lan_that_fails_half_way_leaves_nothing(monkeypatch):
    def refuse(namespace, lines):
        raise OSError("no bridge")

    lan = Lan("a", "b")
    monkeypatch.setattr(netns, "_batch", refuse)
    with pytest.raises(OSError, match="no bridge"), lan:
        pass
    assert gone(lan._namespaces())


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("a b",), ("../x",), tuple(f"h{k}" for k in range(251))])
def test_names_that_cannot_be_hosts_are_refused(names):
    with pytest.raises(ValueError, match=r"names"):
        Lan(*names)


def test_a_refused_command_tells_what_the_kernel_said():
    with Lan("a") as lan, pytest.raises(OSError, match=r"tc .*port9"):
        netns._run(["tc", "-n", lan.bridge, "qdisc", "show", "dev", "port9"])


@pytest.mark.parametrize(("rate", "size"), [("100mbit", 128 << 10), ("1gbit", 250_000), ("10gbit", 2_500_000)])
def test_a_bucket_holds_two_milliseconds(rate, size):
    assert bucket_bytes(rate) == size


@pytest.mark.parametrize("rate", ["", "fast", "1gbps", "-1gbit", "1 gbit", "1gib"])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="write 100mbit"):
        bucket_bytes(rate)


def measured_mbit(lan, source, target):
    """Return what iperf3 gets through from `source` to `target` in a second, Mbit/s."""
    server = lan.host(target).popen(["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE)
    with server.stdout:
        while "listening" not in server.stdout.readline():
            assert server.poll() is None
        command = ["iperf3", "-c", lan.host(target).address, "-t", "1", "-J"]
        told = lan.host(source).run(command, check=True, timeout_s=20).stdout
    return json.loads(told)["end"]["sum_received"]["bits_per_second"] / 1e6


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="no iperf3: apt-get install iperf3")
class TestRates:
    @pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a")])
    def test_a_limit_holds_both_ways_and_is_reached(self, source, target):
        with Lan("a", "b") as lan:
            lan.rate_limit("b", "200mbit")
            assert 160 < measured_mbit(lan, source, target) < 205

    def test_a_limit_is_of_one_host_is_replaced_and_is_lifted(self):
        with Lan("a", "b", "c") as lan:
            lan.rate_limit("b", "50mbit")
            assert measured_mbit(lan, "a", "c") > 300
            lan.rate_limit("b", "100mbit")
            assert 80 < measured_mbit(lan, "a", "b") < 103
            lan.rate_limit("b", None)
            lan.rate_limit("b", None)
            assert measured_mbit(lan, "a", "b") > 300


@pytest.mark.skipif(compiler() is None, reason="the card is compiled: apt-get install gcc")
class TestHomeLab:
    @pytest.fixture
    def lab(self, homes):
        with Lan("m18r2", "g16", "bare") as lan:
            folder = homes / f"lab-{lan.bridge}"
            folder.mkdir()
            yield HomeLab(lan, folder, cards={"m18r2": CARDS[:1], "g16": CARDS[1:3]})

    def test_commands_see_their_own_home(self, lab):
        ran = lab.cli("m18r2", "status", "--json")
        assert ran.code == 102, str(ran)
        assert str(lab.home("m18r2")) in ran.json["error"]["message"]
        assert lab.cli("g16", "--version").json is None
        assert lab.nodes("g16") == {}

    def test_each_host_sees_its_own_cards(self, lab):
        code = "import json; from dgpunet_dask.hardware.nvml import probe_cards as p; print(json.dumps([c.model for c in p()]))"

        def seen(name):
            ran = lab.lan.host(name).run([sys.executable, "-c", code], env=lab.environment(name), check=True)
            return json.loads(ran.stdout)

        assert {name: seen(name) for name in lab.lan.hosts} == {
            "m18r2": [CARDS[0].model],
            "g16": [CARDS[1].model, CARDS[2].model],
            "bare": [],
        }
        assert lab.environment("g16")["DGPUNET_RUNTIME_ARCHES"] == "sm_86 sm_89"

    def test_what_a_started_command_writes_is_kept(self, lab):
        started = lab.start("bare", "head", "--no-such-option")
        assert started.process.wait(timeout=30) == 2
        assert "--no-such-option" in started.text
        assert lab.left("bare") == {}
