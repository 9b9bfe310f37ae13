"""What a head answers to "why": the live fleet, where a demand would go, and why the units of a job are where they are."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dgpunet_dask.cluster.fleets import fleet_to_json
from dgpunet_dask.errors import BadValue
from dgpunet_dask.jobs.flights import job_of_key
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.model.wire import to_wire
from dgpunet_dask.placement.estimate import Estimates, device_class
from dgpunet_dask.placement.explanation import explanation

Task = tuple[str, str, Demand | None]


class Jobs(Protocol):
    """What is asked of the jobs."""

    async def show(self, job_id: str) -> JobStatus:
        """Return one job; NoSuchJob if there is none."""

    async def tasks(self, job_id: str) -> Sequence[Task]:
        """Return stage, key and demand of each task that waits for a device or runs."""

    async def waits_for(self, job_id: str) -> Sequence[Mapping[str, Any]]:
        """Return id and state of each job that must be done before this one begins."""


class Explaining:
    """Answers with plain JSON values.

    Parameters
    ----------
    live
        Gives the fleet as it is now.
    policy, estimates
        Give what is in force and what has been learned.
    jobs
        Gives the jobs.
    queue
        Gives what the scheduler's plugin says of one task.
    """

    def __init__(
        self,
        live: Callable[[], Awaitable[Fleet]],
        policy: Callable[[], Policy],
        estimates: Callable[[], Awaitable[Estimates]],
        jobs: Callable[[], Jobs],
        queue: Callable[[str], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self.live, self.policy, self.estimates, self.jobs, self.queue = live, policy, estimates, jobs, queue

    async def fleet(self) -> dict[str, Any]:
        """Return hosts, devices, charges and states, and under ``speeds`` what was measured by device class."""
        fleet, estimates = await self.live(), await self.estimates()
        measured = {device_class(d): estimates.speed(device_class(d)) for d in fleet.devices}
        return {
            **fleet_to_json(fleet),
            "charges": [to_wire(c) for c in fleet.charges],
            "states": dict(fleet.states),
            "minute": fleet.minute,
            "speeds": {name: speed for name, speed in measured.items() if speed is not None},
        }

    async def demand(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return where ``{"demand": {...}}`` would go now, and why not elsewhere."""
        if not isinstance(request.get("demand"), Mapping):
            raise BadValue(what="request", value=sorted(request), why='send {"demand": {...}}')
        demand = Demand.parse(request["demand"])
        return explanation(await self.live(), demand, self.policy(), await self.estimates())

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return how a job stands: units that wait, grouped by what they ask for, each group with its explanation; units that run."""
        status = await self.jobs().show(job_id)
        tasks = await self.jobs().tasks(job_id)
        fleet, policy, estimates = await self.live(), self.policy(), await self.estimates()
        running = [(str(c.stage or c.holder), c.device) for c in fleet.charges if c.kind == "activation" and _job(c.holder) == job_id]
        holders = {c.holder for c in fleet.charges}
        waiting = {key: (stage, demand) for stage, key, demand in tasks if demand is not None and key not in holders}
        first = {asked: key for key, asked in reversed(waiting.items())}
        groups = [
            {"stage": asked[0], "units": n, "queue": await self._turn(first[asked]), **explanation(fleet, asked[1], policy, estimates)}
            for asked, n in _counted(waiting.values())
        ]
        return {
            "job_id": status.job_id,
            "workload": status.workload,
            "state": status.state,
            "units": status.to_json()["units"],
            "job_error": status.error,
            "waiting": groups,
            "running": [{"stage": stage, "device": device, "units": n} for (stage, device), n in _counted(running)],
            "waits_for": list(await self.jobs().waits_for(job_id)),
            "light": sum(demand is None for _, _, demand in tasks),
            "policy": policy.digest,
        }

    async def _turn(self, key: str) -> dict[str, Any]:
        """Return how often others went before a waiting task on devices that it could use, and which devices are kept free for it.

        Where its inputs lie on other hosts, `transfers` tells what bringing them to each would take.
        """
        found = await self.queue(key)
        turn = {"passed": found.get("passed", 0), "kept": found.get("kept", [])}
        return turn | ({"transfers": found["transfers"]} if found.get("transfers") else {})


def _job(holder: str) -> str | None:
    """Return the job of a holder: a unit's key, with a mark behind it where an earlier call of it lingers."""
    return job_of_key(holder.partition(" #")[0])


def _counted(items: Iterable[tuple[Any, ...]]) -> list[tuple[Any, int]]:
    """Return each distinct item with its count, in the order of their first."""
    found: dict[Any, int] = {}
    for item in items:
        found[item] = found.get(item, 0) + 1
    return list(found.items())


def at_time(fleet: Fleet, wall_s: float) -> Fleet:
    """Return `fleet` at the minute of the local day that `wall_s` (seconds since 1970) is."""
    local = time.localtime(wall_s)
    return replace(fleet, minute=60 * local.tm_hour + local.tm_min)
