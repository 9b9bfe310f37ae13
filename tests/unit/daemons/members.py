"""A membership for tests: a real authority on disk, a scheduler that only answers, time moved by hand."""

from __future__ import annotations

import asyncio
from collections import Counter

from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.daemons.membership import Membership
from dgpunet_dask.daemons.reach import Reach
from dgpunet_dask.daemons.surveying import Survey
from dgpunet_dask.errors import StartFailed
from dgpunet_dask.security.authority import Authority

WALL = 1.9e9
HEAD = "head-1"


class ManualClock:
    """Time that moves when it is told to."""

    def __init__(self, now=1000.0):
        self.now = now

    def monotonic(self):
        return self.now

    def wall(self):
        return WALL + self.now


class FakeScheduler:
    """What the plugin would answer; notes what it is asked."""

    def __init__(self):
        self.away = False
        self.unheard = 0
        self.asked = []
        self.hosts = {}
        self.devices = []
        self.held = {}
        self.told = asyncio.Event()
        self.retired = []
        self.retiring = asyncio.Event()
        self.may_retire = asyncio.Event()
        self.may_retire.set()
        self.unreachable = None
        self.tried = Counter()

    def reach(self):
        return Reach(self.ask, self.retire, self.fleet, self.reachable, self.survey, self.knock)

    async def ask(self, name, **arguments):
        if self.away:
            self.unheard += 1
            raise StartFailed(why="the scheduler does not answer", logs="here")
        self.asked.append((name, arguments))
        if name == "dgpunet_hold":
            self.held = dict(arguments["holds"])
            self.told.set()
        elif name in {"dgpunet_lose", "dgpunet_expel"}:
            self.hosts.pop(arguments["host"], None)
        return dict(self.hosts) if name == "dgpunet_hosts" else None

    def asked_for(self, name):
        return [arguments for asked, arguments in self.asked if asked == name]

    async def retire(self, workers):
        self.retiring.set()
        await self.may_retire.wait()
        self.retired += workers

    async def fleet(self):
        await self.ask("fleet")
        return list(self.devices)

    async def reachable(self, node):
        self.tried[node.host] += 1
        return self.unreachable

    async def survey(self, nodes):
        return Survey([], {})

    async def knock(self, host, address):
        return [{"src": HEAD, "dst": host, "port": 8788, "what": "agent", "ok": True, "why": None, "address": address}]


class Members:
    """One head's membership under `home`, again and again."""

    def __init__(self, home):
        self.home = home
        self.clock = ManualClock()
        self.scheduler = FakeScheduler()
        authority = Authority.create(home.pki, "home", self.clock.wall())
        self.config = ClusterConfig(
            membership="head", cluster="home", host=HEAD, address="10.0.0.1", api=("10.0.0.1:8787",), fingerprint=authority.fingerprint
        )
        self.now = self.start()

    def start(self):
        """Start a head, the next one of this cluster."""
        self.now = Membership(self.home, self.config, self.scheduler.reach(), self.clock)
        return self.now

    async def beat(self, host="node-a", **changes):
        return await self.now.heartbeat(host, body(**changes))

    async def row(self, host="node-a"):
        return next(row for row in await self.now.nodes() if row["host"] == host)

    def passed(self, seconds):
        self.clock.now += seconds


def facts(*cards, **more):
    """Return the facts of a host with `cards`, pairs of UUID and own name."""
    devices = [{"uuid": uuid, "name": name, "model": "RTX", "vram_mib": 8192} for uuid, name in cards]
    return {"fleet": {"hosts": [], "devices": devices}, "cards": [list(card) for card in cards], "software": None, "interface": None, **more}


def body(**changes):
    """Return a heartbeat as an agent sends it, with facts of one card."""
    return {
        "boot": "b1", "epoch": 1, "address": "10.0.0.2", "peer_port": 8788, "roles": ["batch"], "facts": facts(("GPU-1", "rtx3090-0")),
        "facts_digest": "d1", "workers": [{"device": "rtx3090-0", "pid": 41, "state": "running", "restarts": 0, "why": None}],
        "stagehosts": [], "health": {"cards": {}}, "listeners": [], "reports": [], "crl": None, "certificate_expires": 2e9, **changes,
    }  # fmt: skip
