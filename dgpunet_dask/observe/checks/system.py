"""One machine apart from cards, network and disk: clock, memory, limits, power, home, certificate. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.observe.facts import Facts, dotted
from dgpunet_dask.observe.finding import Check, Finding

CLOCK_WARN_S: Final = 1.0
#: Certificates are made some minutes back, but heartbeats, leases and logs of hosts this far apart contradict one another.
CLOCK_FAULT_S: Final = 30.0
#: A Dask worker holds a connection to each other one, two for each that fetches, and files beside.
NOFILE: Final = 4096
RAM_WARN_SHARE: Final = 0.10
RAM_FAULT_SHARE: Final = 0.03
#: SQLite versions whose WAL may be damaged when two connections restart it at once.
WAL_RESET_FROM: Final = (3, 7, 0)
WAL_RESET_TO: Final = (3, 51, 2)
CERTIFICATE_WARN_S: Final = 3600.0 * 6


def clock(facts: Facts) -> Iterator[Finding]:
    """Whether this machine's clock agrees with the head's."""
    check = Check("clock", "system", facts.host)
    offset, synchronised = facts.number("clock", "offset_s"), facts.flag("clock", "synchronised")
    told = {"offset_s": offset, "synchronised": synchronised}
    cure = "switch network time on (`sudo timedatectl set-ntp true`) on both hosts"
    if offset is not None and abs(offset) > CLOCK_FAULT_S:
        yield check.fault(f"the clock is {abs(offset):.0f} s {_side(offset)} the head's: certificates and leases are misjudged", cure, **told)
    elif offset is not None and abs(offset) > CLOCK_WARN_S:
        yield check.warn(f"the clock is {abs(offset):.1f} s {_side(offset)} the head's", cure, **told)
    elif synchronised is False:
        yield check.warn("the clock is not synchronised, and will drift", cure, **told)
    elif offset is not None:
        yield check.ok("the clock agrees with the head's", **told)
    elif synchronised:
        yield check.ok("the clock is synchronised", **told)


def _side(offset: float) -> str:
    return "ahead of" if offset > 0 else "behind"


def memory(facts: Facts) -> Iterator[Finding]:
    """Whether RAM is short."""
    total, available = facts.number("memory", "total_mib"), facts.number("memory", "available_mib")
    if not total or available is None:
        return
    check = Check("memory", "system", facts.host)
    text, told = f"{available:g} of {total:g} MiB RAM are available", {"total_mib": total, "available_mib": available}
    cure = "end programs that hold memory, or lower `ram` of this host in the fleet file so that less is placed here"
    if available < total * RAM_FAULT_SHARE:
        yield check.fault(f"only {text}: the system may kill workers", cure, **told)
    elif available < total * RAM_WARN_SHARE:
        yield check.warn(f"only {text}", cure, **told)
    else:
        yield check.ok(text, **told)


def open_files(facts: Facts) -> Iterator[Finding]:
    """Whether enough files and connections may be open at once."""
    limit, most = facts.number("limits", "nofile"), facts.number("limits", "nofile_max")
    if limit is None:
        return
    check = Check("open_files", "system", facts.host)
    if limit >= NOFILE:
        yield check.ok(f"{limit:g} open files are allowed", nofile=limit)
    else:
        raised = most is not None and most >= NOFILE
        cure = f"`ulimit -n {NOFILE}` before the start" if raised else "raise `nofile` in /etc/security/limits.conf, then log in again"
        yield check.warn(f"only {limit:g} open files are allowed, of which each connection is one", cure, nofile=limit, nofile_max=most)


def power(facts: Facts) -> Iterator[Finding]:
    """Whether a laptop runs on its battery."""
    source = facts.text("power", "source")
    check = Check("power", "system", facts.host)
    if source == "battery":
        cure = "plug it in, or let a policy's `hosts: when: {power: mains}` keep work away meanwhile"
        yield check.warn("runs on its battery: cards are slowed, and the machine will stop", cure, source=source)
    elif source == "mains":
        yield check.ok("runs on mains", source=source)


def home(facts: Facts) -> Iterator[Finding]:
    """Whether ``$DGPUNET_HOME`` can be written and lies on a disk of this machine."""
    path = facts.text("home", "path")
    if path is None:
        return
    check = Check("home", "system", facts.host)
    kind, told = facts.text("home", "file_system"), {"path": path, "file_system": facts.text("home", "file_system")}
    if facts.flag("home", "writable") is False:
        yield check.fault(f"{path} cannot be written", "give the calling user permission, or set $DGPUNET_HOME to another folder", **told)
    elif facts.flag("home", "network"):
        cure = "set $DGPUNET_HOME to a folder on a disk of this machine: locks and commits are not kept over the network"
        yield check.fault(f"{path} lies on a network file system ({kind})", cure, **told)
    else:
        yield check.ok(f"{path} lies on a disk of this machine and can be written", **told)
    if facts.flag("temp", "network"):
        cure = "set $TMPDIR to a folder on a disk of this machine"
        yield Check("temp", "system", facts.host).warn(f"{facts.text('temp', 'path')} lies on a network file system", cure)


def sqlite(facts: Facts) -> Iterator[Finding]:
    """Say whether Python's SQLite has the WAL-reset bug: harmless here, for the ledger has one connection."""
    version = facts.version("software", "sqlite")
    if version is None:
        return
    check = Check("sqlite", "versions", facts.host)
    if WAL_RESET_FROM <= version <= WAL_RESET_TO:
        what = f"SQLite {dotted(version)} may damage a write-ahead log under several connections; the ledger has one, so nothing needs doing"
        yield check.ok(what, sqlite=dotted(version))
    else:
        yield check.ok(f"SQLite {dotted(version)}", sqlite=dotted(version))


def certificate(facts: Facts) -> Iterator[Finding]:
    """Whether this machine's certificate is still good when the facts were taken."""
    expires, now = facts.number("certificate", "expires_s"), facts.number("at")
    if expires is None or now is None:
        return
    check = Check("certificate", "system", facts.host)
    left, told = expires - now, {"expires_s": expires, "left_s": expires - now}
    if left <= 0:
        yield check.fault(f"the certificate expired {-left / 3600:.1f} h ago", "make a token on the head, and `dgpunet-dask join` again", **told)
    elif left < CERTIFICATE_WARN_S:
        cure = "see the agent's log under $DGPUNET_HOME/run/logs: it renews at half life"
        yield check.warn(f"the certificate ends in {left / 3600:.1f} h, and should have been renewed", cure, **told)
    else:
        yield check.ok(f"the certificate is good for {left / 3600:.1f} h", **told)


def probes(facts: Facts) -> Iterator[Finding]:
    """Whether every question could be asked."""
    asked = facts.at("probes")
    for name in sorted(asked) if isinstance(asked, dict) else ():
        why = facts.text("probes", name, "error")
        if why is not None:
            check = Check("probe", "system", facts.host)
            yield check.warn(f"{name} could not be looked at: {why}", "run it with `-v`, and report this if it is not of your making", probe=name)
