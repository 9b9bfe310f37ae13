"""One machine's way to the others: interface, ports. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

_PORT_CURES: Final = {
    "refused": "nothing listens there: see `dgpunet-dask nodes`, and $DGPUNET_HOME/run/logs on {dst}",
    "timeout": "a firewall drops it: on {dst} `sudo ufw allow proto tcp from {src} to any port {port}`, or its like",
    "no_route": "look at cable, switch and addresses of {src} and {dst}; `dgpunet-dask doctor` on each names the interface in use",
}


def interface(facts: Facts) -> Iterator[Finding]:
    """Which interface leads to the cluster, and whether it is a good one."""
    name = facts.text("network", "chosen", "interface")
    if name is None:
        return
    check = Check("interface", "network", facts.host)
    found = next((row for row in facts.rows("network", "interfaces") if row.text("name") == name), Facts({}, facts.host))
    told = {key: found.at(key) for key in ("kind", "mtu", "speed_mbit_s", "duplex")} | {
        "interface": name, "address": facts.text("network", "chosen", "address"), "why": facts.text("network", "chosen", "why"),
    }  # fmt: skip
    wired = [row for row in facts.rows("network", "interfaces") if row.text("kind") == "ethernet" and row.flag("up") and row.at("addresses")]
    worse = list(_worse(check, found, name, wired, told))
    yield from worse or [check.ok(f"{name}{_speed(found)} leads to the cluster", **told)]


def _worse(check: Check, found: Facts, name: str, wired: list[Facts], told: dict[str, Any]) -> Iterator[Finding]:
    best = max((row for row in wired if row.text("name") != name), key=lambda row: row.number("speed_mbit_s") or 0, default=None)
    other = None if best is None else best.text("name")
    cure = f"give {other} the lower metric, or join by the head's address in the network of {other}"
    if found.text("kind") == "wifi":
        beside = "" if other is None else f", and {other} is wired"
        yield check.warn(f"{name} is Wi-Fi{beside}", "plug in a cable" if other is None else cure, **told)
    elif best is not None and (best.number("speed_mbit_s") or 0) > (found.number("speed_mbit_s") or float("inf")):
        yield check.warn(f"{name}{_speed(found)} leads to the cluster, and {other}{_speed(best)} is faster", cure, **told)
    if found.text("duplex") == "half":
        yield check.warn(
            f"{name} runs half duplex: it cannot send and receive at once", "set both ends to autonegotiation, and change the cable", **told
        )


def _speed(row: Facts) -> str:
    speed = row.number("speed_mbit_s")
    return "" if not speed or speed < 0 else f" ({speed / 1000:g} Gbit/s)"


def path_mtu(facts: Facts) -> Iterator[Finding]:
    """Whether packets of the interface's size come through to the head."""
    own, path = _mtu(facts), facts.number("network", "path_mtu")
    if own is None or path is None:
        return
    check = Check("path_mtu", "network", facts.host)
    if path < own:
        cure = f"set the same MTU on each host and on the switch between them (here {path:g}, or jumbo frames everywhere)"
        yield check.warn(f"the interface sends packets of {own:g} bytes, and the way to the head takes {path:g}", cure, mtu=own, path_mtu=path)
    else:
        yield check.ok(f"packets of {path:g} bytes come through to the head", mtu=own, path_mtu=path)


def _mtu(facts: Facts) -> float | None:
    name = facts.text("network", "chosen", "interface")
    return next((row.number("mtu") for row in facts.rows("network", "interfaces") if row.text("name") == name), None)


def mtu(hosts: list[Facts]) -> Iterator[Finding]:
    """Whether all hosts send packets of one size."""
    sizes = {facts.host: size for facts in hosts if (size := _mtu(facts)) is not None}
    if len(sizes) < 2:
        return
    usual = max(set(sizes.values()), key=lambda size: (list(sizes.values()).count(size), -size))
    for host, size in sorted(sizes.items()):
        if size != usual:
            cure = "set the same MTU on each host (`ip link set IFACE mtu N`) and on the switch"
            yield Check("mtu", "network", host).warn(f"its MTU is {size:g}, the others' {usual:g}", cure, mtu=sizes)
    if set(sizes.values()) == {usual}:
        yield Check("mtu", "network", "all hosts").ok(f"the MTU is {usual:g} on all", mtu=sizes)


def ports(facts: Facts) -> Iterator[Finding]:
    """Whether somebody else listens where we need to."""
    rows = facts.rows("ports")
    taken = [row for row in rows if row.text("state") == "foreign"]
    for row in taken:
        check = Check("port_taken", "network", facts.host)
        program = row.text("program")
        what = f"port {row.at('port')} ({row.text('what')}) is taken by {program or 'another program'}"
        cure = "end that program, or name another port in $DGPUNET_HOME/cluster.json"
        yield check.fault(what, cure, port=row.at("port"), program=program)
    if rows and not taken:
        told = sorted({row.text("what") or "?" for row in rows})
        yield Check("port_taken", "network", facts.host).ok("the documented ports are free or ours", ports=told)


def reach(rows: tuple[Facts, ...]) -> Iterator[Finding]:
    """Whether each documented port is reached, in both directions: rows of src, dst, port, what, ok, why."""
    good: dict[str, list[Any]] = {}
    for row in rows:
        src, dst, port = row.text("src") or "?", row.text("dst") or "?", row.at("port")
        subject = f"{src} -> {dst}"
        if row.flag("ok"):
            good.setdefault(subject, []).append(port)
        elif row.flag("ok") is False:
            why = row.text("why") or "no_answer"
            cure = _PORT_CURES.get(why, _PORT_CURES["timeout"]).format(src=src, dst=dst, port=port or 8788)
            what = f"{f'port {port} ' if port else ''}({row.text('what') or 'unnamed'}) is not reached: {why.replace('_', ' ')}"
            yield Check("port_reach", "network", subject).fault(what, cure, port=port, why=why)
    for subject, numbers in sorted(good.items()):
        yield Check("port_reach", "network", subject).ok(f"{len(numbers)} ports answer", ports=numbers)


def listeners(rows: tuple[Facts, ...]) -> Iterator[Finding]:
    """Whether everything that listens beyond this machine is protected: rows of host, address, port, what, protection."""
    bare = 0
    for row in rows:
        loopback = (row.text("address") or "").startswith(("127.", "::1", "localhost"))
        if loopback or row.text("protection") not in (None, "none"):
            continue
        bare += 1
        yield Check("listener", "network", row.text("host") or row.host).fault(
            f"{row.text('what') or 'something'} listens on {row.text('address')}:{row.at('port')} without TLS or a key",
            "stop it (`dgpunet-dask down`) and report this: nothing of ours may listen so", port=row.at("port"),
        )  # fmt: skip
    if rows and not bare:
        yield Check("listener", "network", "all hosts").ok(f"all {len(rows)} listeners are protected or on 127.0.0.1")
