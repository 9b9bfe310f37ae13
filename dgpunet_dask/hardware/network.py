"""The network interfaces of this machine, and which of them the cluster should use.

The route to the head decides, for that is the way the traffic takes. Without a head to ask for, a wired interface goes before Wi-Fi and a
faster one before a slower; the networks that live inside this machine (``docker0``, a hypervisor's bridge) and tunnels are never chosen.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import psutil

Kind = Literal["loopback", "ethernet", "wifi", "virtual"]

SYSFS: Final = Path("/sys/class/net")
LOOPBACK: Final = "127.0.0.1"
#: No packet goes there: connecting a UDP socket only asks the kernel for the route.
_ANY_PORT: Final = 9
#: From linux/in.h and linux/in6.h; Python's socket module names neither.
_IP_MTU: Final = 14
_IPV6_MTU: Final = 24
#: What a name tells where the system tells no more. The first that fits counts; what an interface is called inside a container or a
#: name space (``eth0``) is what its maker wants it taken for.
_BY_NAME: Final[tuple[tuple[str, str], ...]] = (
    ("docker", "bridge of containers"), ("br-", "bridge of containers"), ("podman", "bridge of containers"), ("cni", "bridge of containers"),
    ("lxc", "bridge of containers"), ("flannel", "bridge of containers"), ("cali", "bridge of containers"), ("virbr", "hypervisor's bridge"),
    ("vmnet", "hypervisor's bridge"), ("vboxnet", "hypervisor's bridge"), ("bridge", "bridge"), ("veth", "virtual cable"), ("vnet", "virtual cable"),
    ("utun", "tunnel"), ("tun", "tunnel"), ("tap", "tunnel"), ("wg", "tunnel"), ("tailscale", "tunnel"), ("zt", "tunnel"), ("ppp", "tunnel"),
    ("gre", "tunnel"), ("sit", "tunnel"), ("ipsec", "tunnel"), ("nebula", "tunnel"), ("ifb", "traffic shaper"), ("dummy", "dummy"),
    ("awdl", "peer-to-peer radio"), ("llw", "peer-to-peer radio"), ("ap", "access point"), ("gif", "tunnel"), ("stf", "tunnel"), ("anpi", "device link"),
)  # fmt: skip
_WIRE_NAMES: Final = ("eth", "en")
_WIFI_NAMES: Final = ("wl", "ath", "wifi")
_RANK: Final[dict[Kind, int]] = {"ethernet": 0, "wifi": 1, "virtual": 2, "loopback": 3}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface.

    Parameters
    ----------
    name
        As the system calls it.
    kind
        ``virtual`` is any that has no wire or radio of its own: bridges of containers, virtual cables, tunnels.
    what
        The kind in words, such as ``tunnel``; ``None`` where the kind says it all.
    addresses
        IPv4 first, link-local last.
    mtu
        Bytes.
    speed_mbit_s, duplex
        As the driver says; ``None`` where it does not, as of Wi-Fi.
    up
        Whether it is switched on and has a carrier.
    """

    name: str
    kind: Kind
    what: str | None = None
    addresses: tuple[str, ...] = ()
    mtu: int | None = None
    speed_mbit_s: int | None = None
    duplex: Literal["full", "half"] | None = None
    up: bool = True

    @property
    def usable(self) -> tuple[str, ...]:
        """The addresses that other machines can be told: link-local ones are left out."""
        return tuple(a for a in self.addresses if not ipaddress.ip_address(a).is_link_local)

    def __str__(self) -> str:
        speed = f", {self.speed_mbit_s} Mbit/s" if self.speed_mbit_s is not None else ""
        return f"{self.name} ({self.what or self.kind}{speed})"


class Refused(NamedTuple):
    """An interface that was not chosen, and why."""

    interface: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The interface that the cluster uses on this machine.

    Parameters
    ----------
    address
        The one of the interface's addresses that others are told.
    why
        What decided, for people.
    refused
        All other interfaces.
    warning
        What is likely not meant, and its cure; ``None`` if nothing.
    """

    interface: Interface
    address: str
    why: str
    refused: tuple[Refused, ...] = ()
    warning: str | None = None


def choose_interface(interfaces: Sequence[Interface], *, head: str | None, route: Callable[[str], str | None]) -> Choice:
    """Return the interface to use.

    Parameters
    ----------
    interfaces
        Those of this machine.
    head
        Name or address of the head's host; ``None`` on the head itself.
    route
        Tells the own address from which packets to a host would leave, ``None`` where there is no way (`route_to`).

    Notes
    -----
    Reads nothing but its arguments. Equals are ordered by name.
    """
    if head is not None:
        address = route(head)
        if address is not None:
            return _by_route(interfaces, head, address)
    blind = "" if head is None else f"there is no route to {head}; "
    fits = sorted((i for i in interfaces if _unfit(i) is None), key=_order)
    if fits:
        return _chosen(interfaces, fits[0], fits[0].usable[0], blind + _advantage(fits))
    cables = sorted((i for i in interfaces if i.what == "virtual cable" and i.up and i.usable), key=_order)
    if cables:  # a container or a name space: the far end of the cable is its whole world
        return _chosen(interfaces, cables[0], cables[0].usable[0], f"{blind}nothing else leads out of here")
    own = next((i for i in interfaces if i.kind == "loopback" and i.usable), None)
    own = own or Interface(name="lo", kind="loopback", addresses=(LOOPBACK,))
    return _chosen(interfaces, own, own.usable[0], f"{blind}no wired or Wi-Fi interface is up with an address: other machines cannot reach this one")


def interfaces(sysfs: Path = SYSFS) -> list[Interface]:
    """Return the network interfaces of this machine, by name."""
    addresses = psutil.net_if_addrs()
    states = psutil.net_if_stats()
    duplex: dict[int, Literal["full", "half"]] = {psutil.NIC_DUPLEX_FULL: "full", psutil.NIC_DUPLEX_HALF: "half"}
    found = []
    for name in sorted({*addresses, *states}):
        kind, what = kind_of(name, sysfs)
        state = states.get(name)
        found.append(
            Interface(
                name=name,
                kind=kind,
                what=what,
                addresses=in_order(a.address for a in addresses.get(name, ()) if a.family in {socket.AF_INET, socket.AF_INET6}),
                mtu=state.mtu or None if state else None,
                speed_mbit_s=state.speed or None if state else None,
                duplex=duplex.get(state.duplex) if state else None,
                up=bool(state and state.isup),
            )
        )
    return found


def kind_of(name: str, sysfs: Path = SYSFS) -> tuple[Kind, str | None]:
    """Return the kind of an interface, and what it is in words where ``virtual`` says too little.

    A bridge, bond or VLAN on top of a wire counts as that wire. Where there is no sysfs, as on macOS, the name alone tells.
    """
    folder = sysfs / name
    if name == "lo" or name.rstrip("0123456789") == "lo" or _read(folder / "type") == "772":
        return "loopback", None
    if (folder / "wireless").exists() or (folder / "phy80211").exists() or "DEVTYPE=wlan" in _read(folder / "uevent"):
        return "wifi", None
    if "DEVTYPE=wwan" in _read(folder / "uevent"):
        return "virtual", "mobile radio"
    if (folder / "device").exists():
        return "ethernet", None
    below = sorted({kind_of(path.name.removeprefix("lower_"), sysfs)[0] for path in folder.glob("lower_*")}, key=_RANK.__getitem__)
    if below and below[0] in {"ethernet", "wifi"} and not name.startswith("docker"):
        return below[0], None
    return _kind_by_name(name, _read(folder / "uevent"), tun=(folder / "tun_flags").exists())


def in_order(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses that are IP addresses, IPv4 first, link-local last, otherwise as they come."""
    known = [a for a in addresses if _is_ip(a)]
    return tuple(sorted(known, key=lambda a: (ipaddress.ip_address(a).is_link_local, ipaddress.ip_address(a).version)))


def route_to(host: str) -> str | None:
    """Return the own address from which packets to `host` would leave, ``None`` if there is no way or no such name. Sends nothing."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return None


def path_mtu(host: str) -> int | None:
    """Return the largest packet to `host` in bytes, as far as the kernel knows; ``None`` where it does not tell. Sends nothing.

    It is the interface's own until a router on the way has refused a larger one.
    """
    with contextlib.suppress(OSError, UnicodeError):
        family, kind, protocol, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            six = family == socket.AF_INET6
            return int(probe.getsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, _IPV6_MTU if six else _IP_MTU)) or None
    return None


def local_addresses(found: Sequence[Interface] | None = None) -> tuple[str, ...]:
    """Return the addresses by which other machines may know this one: wired first, then Wi-Fi, then the rest; no loopback, no link-local.

    Parameters
    ----------
    found
        The machine's interfaces; ``None`` looks now.
    """
    found = interfaces() if found is None else found
    ranked = sorted((i for i in found if i.up and i.kind != "loopback"), key=_order)
    return tuple(dict.fromkeys(address for interface in ranked for address in interface.usable))


def _by_route(interfaces: Sequence[Interface], head: str, address: str) -> Choice:
    taken = next((i for i in interfaces if address in i.addresses), None)
    if taken is None:  # a route by rule or another table: the address is good, its interface cannot be named
        taken = Interface(name="unknown", kind="virtual", addresses=(address,))
    return _chosen(interfaces, taken, address, f"the route to {head} leaves there", route=True)


def _chosen(interfaces: Sequence[Interface], taken: Interface, address: str, why: str, *, route: bool = False) -> Choice:
    others = sorted((i for i in interfaces if i.name != taken.name), key=_order)
    reasons = (Refused(i.name, _unfit(i) or ("no route to the head" if route else _behind(i, taken))) for i in others)
    return Choice(interface=taken, address=address, why=why, refused=tuple(reasons), warning=_warning(others, taken) if route else None)


def _unfit(interface: Interface) -> str | None:
    """Why an interface is never chosen of itself, ``None`` if it may be."""
    if interface.kind == "loopback":
        return "no other machine can reach it"
    if interface.kind == "virtual":
        return f"a {interface.what or 'virtual interface'} is no way to other machines of its own"
    if not interface.up:
        return "down, or without a cable"
    if not interface.usable:
        return "has no address"
    return None


def _order(interface: Interface) -> tuple[int, int, str]:
    return _RANK[interface.kind], -(interface.speed_mbit_s or 0), interface.name


def _advantage(fits: Sequence[Interface]) -> str:
    first = fits[0]
    if len(fits) == 1:
        return "the only wired or Wi-Fi interface that is up with an address"
    if first.kind != fits[1].kind:
        return "wired goes before Wi-Fi"
    if first.speed_mbit_s != fits[1].speed_mbit_s:
        return f"the fastest of {len(fits)}"
    return f"the first by name of {sum(_order(i)[:2] == _order(first)[:2] for i in fits)} equals"


def _behind(interface: Interface, taken: Interface) -> str:
    if taken.kind in {"virtual", "loopback"}:
        return f"{taken.name} was chosen"
    if interface.kind != taken.kind:
        return f"Wi-Fi, and {taken.name} is wired"
    if interface.speed_mbit_s != taken.speed_mbit_s:
        return f"slower than {taken.name}, or of unknown speed"
    return f"equal to {taken.name}, which is first by name"


def _warning(others: Sequence[Interface], taken: Interface) -> str | None:
    """What to tell of a better interface beside the one that the route takes."""
    wired = next((i for i in others if i.kind == "ethernet" and _unfit(i) is None), None)
    if wired is None or taken.kind == "loopback":
        return None
    faster = (wired.speed_mbit_s or 0) > (taken.speed_mbit_s or 0) > 0
    if taken.kind != "wifi" and not faster:
        return None
    return (
        f"the route to the head takes {taken}, although {wired} is up: give {wired.name} the lower metric, or join by the head's address "
        f"in the network of {wired.name}"
    )


def _kind_by_name(name: str, uevent: str, *, tun: bool) -> tuple[Kind, str | None]:
    if tun or "DEVTYPE=wireguard" in uevent:
        return "virtual", "tunnel"
    known = next((what for prefix, what in _BY_NAME if name.startswith(prefix)), None)
    if known is not None:
        return "virtual", known
    if "DEVTYPE=bridge" in uevent:
        return "virtual", "bridge"
    if name.startswith(_WIFI_NAMES):
        return "wifi", None
    return ("ethernet", None) if name.startswith(_WIRE_NAMES) else ("virtual", None)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
