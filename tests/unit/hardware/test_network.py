"""Which network interface the cluster uses."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from dgpunet_dask.hardware.network import (
    Interface,
    choose_interface,
    in_order,
    interfaces,
    kind_of,
    local_addresses,
    path_mtu,
    route_to,
)

LO = Interface(name="lo", kind="loopback", addresses=("127.0.0.1", "::1"))
WIRED = Interface(name="enp5s0", kind="ethernet", addresses=("10.0.0.4", "fe80::1%enp5s0"), speed_mbit_s=10000)
SLOW = Interface(name="eno1", kind="ethernet", addresses=("192.168.1.4",), speed_mbit_s=1000)
UNKNOWN = Interface(name="enx1", kind="ethernet", addresses=("192.168.3.4",))
WIFI = Interface(name="wlan0", kind="wifi", addresses=("192.168.1.5",))
DOCKER = Interface(name="docker0", kind="virtual", what="bridge of containers", addresses=("172.17.0.1",), speed_mbit_s=20000)
TUNNEL = Interface(name="tailscale0", kind="virtual", what="tunnel", addresses=("100.64.0.9",))
CABLE = Interface(name="veth9", kind="virtual", what="virtual cable", addresses=("10.77.0.2",), speed_mbit_s=10000)
UNPLUGGED = Interface(name="enp6s0", kind="ethernet", addresses=("10.0.0.5",), speed_mbit_s=10000, up=False)
BARE = Interface(name="enp7s0", kind="ethernet", addresses=("fe80::2%enp7s0",), speed_mbit_s=10000)


def no_route(_):
    return None


def choose(*found, head=None, via=None):
    return choose_interface(found, head=head, route=lambda _: via)


@pytest.mark.parametrize(
    ("found", "name", "address"),
    [
        ((LO, DOCKER, WIFI, SLOW, WIRED), "enp5s0", "10.0.0.4"),
        ((LO, DOCKER, WIFI, SLOW), "eno1", "192.168.1.4"),
        ((LO, DOCKER, TUNNEL, WIFI), "wlan0", "192.168.1.5"),
        ((LO, UNPLUGGED, BARE, WIFI), "wlan0", "192.168.1.5"),
        ((LO, UNKNOWN, SLOW), "eno1", "192.168.1.4"),
        ((LO, CABLE), "veth9", "10.77.0.2"),
        ((LO, CABLE, DOCKER, WIFI), "wlan0", "192.168.1.5"),
        ((LO, DOCKER, TUNNEL), "lo", "127.0.0.1"),
        ((DOCKER,), "lo", "127.0.0.1"),
        ((), "lo", "127.0.0.1"),
    ],
)
def test_without_a_head_wired_goes_before_wifi_and_faster_before_slower(found, name, address):
    for order in (found, found[::-1]):
        choice = choose(*order)
        assert (choice.interface.name, choice.address) == (name, address)
        assert {r.interface for r in choice.refused} == {i.name for i in found} - {name}
        assert all(r.reason for r in choice.refused)


def test_loopback_says_that_nobody_can_reach_it():
    assert "cannot reach this one" in choose(LO, DOCKER).why


@pytest.mark.parametrize("taken", [LO, WIRED, SLOW, WIFI, DOCKER, TUNNEL, CABLE])
def test_the_route_to_the_head_wins_whatever_the_kind(taken):
    choice = choose(LO, WIRED, SLOW, WIFI, DOCKER, TUNNEL, CABLE, head="10.0.0.1", via=taken.addresses[0])
    assert (choice.interface, choice.address) == (taken, taken.addresses[0])
    assert "10.0.0.1" in choice.why


def test_the_address_is_the_one_that_the_route_uses_not_the_first():
    two = Interface(name="eth0", kind="ethernet", addresses=("10.0.0.4", "10.1.0.4"))
    assert choose(two, head="h", via="10.1.0.4").address == "10.1.0.4"


def test_a_route_by_an_address_of_no_known_interface_still_wins():
    choice = choose(LO, WIRED, head="h", via="10.9.9.9")
    assert (choice.interface.name, choice.address) == ("unknown", "10.9.9.9")


def test_without_a_route_the_rest_decides_and_it_is_told():
    choice = choose_interface([LO, WIFI, WIRED], head="headhost", route=no_route)
    assert choice.interface is WIRED
    assert "no route to headhost" in choice.why


@pytest.mark.parametrize(
    ("others", "taken", "named"),
    [
        ((WIRED,), WIFI, "enp5s0"),
        ((UNKNOWN,), WIFI, "enx1"),
        ((WIRED, SLOW), SLOW, "enp5s0"),
        ((SLOW,), WIRED, None),
        ((UNKNOWN,), SLOW, None),
        ((UNPLUGGED,), WIFI, None),
        ((DOCKER,), WIFI, None),
        ((WIRED,), LO, None),
    ],
)
def test_a_better_wire_beside_the_route_is_told(others, taken, named):
    choice = choose(*others, taken, head="h", via=taken.addresses[0])
    assert (choice.warning is not None) == (named is not None)
    assert named is None or named in choice.warning


@pytest.mark.parametrize(
    ("interface", "reason"),
    [(LO, "no other machine"), (DOCKER, "bridge of containers"), (UNPLUGGED, "without a cable"), (BARE, "no address"), (SLOW, "slower"), (WIFI, "Wi-Fi")],
)
def test_each_refusal_names_its_reason(interface, reason):
    (refused,) = choose(WIRED, interface).refused
    assert reason in refused.reason


def sysfs(folder, **found):
    """A sysfs of interfaces: a name for each, and its files, those that end in a slash as folders."""
    for name, files in found.items():
        base = folder / name
        base.mkdir()
        for file, text in files.items():
            path = base / file.rstrip("/")
            path.parent.mkdir(exist_ok=True)
            path.mkdir() if file.endswith("/") else path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "files", "kind", "what"),
    [
        ("lo", {"type": "772\n"}, "loopback", None),
        ("enp5s0", {"type": "1\n", "device/": ""}, "ethernet", None),
        ("wlp2s0", {"device/": "", "wireless/": ""}, "wifi", None),
        ("renamed", {"device/": "", "phy80211/": ""}, "wifi", None),
        ("renamed", {"device/": "", "uevent": "DEVTYPE=wlan\nINTERFACE=renamed\n"}, "wifi", None),
        ("wwan0", {"device/": "", "uevent": "DEVTYPE=wwan\n"}, "virtual", "mobile radio"),
        ("docker0", {"uevent": "DEVTYPE=bridge\n", "lower_veth1/": ""}, "virtual", "bridge of containers"),
        ("br-12ab", {"uevent": "DEVTYPE=bridge\n"}, "virtual", "bridge of containers"),
        ("virbr0", {"uevent": "DEVTYPE=bridge\n"}, "virtual", "hypervisor's bridge"),
        ("lan", {"uevent": "DEVTYPE=bridge\n"}, "virtual", "bridge"),
        ("br0", {"uevent": "DEVTYPE=bridge\n", "lower_real/": "", "lower_veth1/": ""}, "ethernet", None),
        ("bond0", {"lower_real/": ""}, "ethernet", None),
        ("veth12", {"type": "1\n"}, "virtual", "virtual cable"),
        ("home", {"tun_flags": "0x1002\n"}, "virtual", "tunnel"),
        ("home", {"uevent": "DEVTYPE=wireguard\n"}, "virtual", "tunnel"),
        ("eth0", {"type": "1\n"}, "ethernet", None),  # a container's cable, named like the wire that it stands for
        ("dummy0", {}, "virtual", "dummy"),
        ("odd0", {}, "virtual", None),
    ],
)
def test_the_kind_of_an_interface(tmp_path, name, files, kind, what):
    folder = sysfs(tmp_path, real={"device/": ""}, veth1={}, **{name: files})
    assert kind_of(name, folder) == (kind, what)


@pytest.mark.parametrize(
    ("name", "kind"), [("lo0", "loopback"), ("en0", "ethernet"), ("wlan1", "wifi"), ("utun3", "virtual"), ("awdl0", "virtual")]
)
def test_without_sysfs_the_name_tells(tmp_path, name, kind):
    assert kind_of(name, tmp_path / "none")[0] == kind


def test_addresses_are_ordered_and_others_left_out():
    assert in_order(["fe80::1%eth0", "fd00::2", "02:42:ac:11:00:02", "169.254.3.4", "10.0.0.4"]) == (
        "10.0.0.4", "fd00::2", "169.254.3.4", "fe80::1%eth0",
    )  # fmt: skip


def test_the_addresses_that_others_may_use_wired_first():
    assert local_addresses([LO, DOCKER, WIFI, WIRED, UNPLUGGED, SLOW]) == ("10.0.0.4", "192.168.1.4", "192.168.1.5", "172.17.0.1")


def test_this_machine_has_a_loopback_and_its_route_is_its_own():
    found = {i.name: i for i in interfaces()}
    own = next(i for i in found.values() if i.kind == "loopback")
    assert "127.0.0.1" in own.addresses
    assert own.usable
    assert route_to("127.0.0.1") == "127.0.0.1"
    choice = choose_interface(list(found.values()), head="127.0.0.1", route=route_to)
    assert choice.interface == own
    assert choose_interface(list(found.values()), head=None, route=route_to).address
    assert not any(ipaddress.ip_address(a).is_loopback for a in local_addresses())


def test_a_name_that_does_not_exist_has_no_route():
    assert route_to("no-such-host.invalid") is None
    assert route_to("a" * 300) is None
    assert path_mtu("no-such-host.invalid") is None


@pytest.mark.skipif(not hasattr(socket, "IP_RECVTOS"), reason="Linux tells the MTU of a path")
def test_the_kernel_tells_the_mtu_of_a_path():
    own = next(i for i in interfaces() if i.kind == "loopback")
    assert path_mtu("127.0.0.1") in {own.mtu, min(own.mtu or 0, 65535)}  # no IPv4 packet is longer
