"""What each user has had of the fleet, for the fair share: counted ahead when a unit starts, and put right when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.order import Shares
from dgpunet_dask.placement.plans import Plan
from dgpunet_dask.placement.slots import Slot
from dgpunet_dask.plugins.records import Record


class Usage:
    """Users and what they have had, in seconds at speed 1."""

    def __init__(self, policy: Policy) -> None:
        self._shares = Shares(policy.weight_of)
        self._running: dict[str | None, int] = {}  # user -> units, at least one
        self.had: dict[str | None, float] = {}

    def set_policy(self, policy: Policy) -> None:
        """Count by the weights of `policy` from now on."""
        self._shares.weight_of = policy.weight_of

    def begin(self, waiting: Iterable[str | None]) -> bool:
        """Begin a pass over the work of users `waiting`; return whether there is more than one."""
        users = set(waiting)
        self._shares.begin(users.union(self._running))
        return len(users) > 1

    def of(self, user: str | None) -> float:
        """Return what `user` has had for his weight."""
        return self._shares.of(user)

    def start(self, record: Record, plan: Plan, slots: Sequence[Slot], now: float) -> None:
        """Count ahead what a unit is expected to take."""
        user, cost_s = plan.request.demand.user, len(slots) * plan.work_s
        record.user, record.cost_s, record.since_s = user, cost_s, now
        self._running[user] = self._running.get(user, 0) + 1
        self._shares.add(user, cost_s)

    def stop(self, record: Record, slots: Sequence[Slot], now: float) -> None:
        """Put right what was counted ahead for a unit that is about to leave `slots`: those who share a device halve its seconds."""
        took_s, user, cost_s = now - record.since_s, record.user, 0.0
        for slot in slots:
            together = slot.activations if slot.is_gpu else 1
            cost_s += took_s * slot.device.speed / together if together > 1 else took_s * slot.device.speed
        if (count := self._running.get(user, 0)) > 1:
            self._running[user] = count - 1
        else:  # none was counted for a unit that ran before the plugin was there
            self._running.pop(user, None)
        self._shares.add(user, cost_s - record.cost_s)
        self.had[user] = self.had.get(user, 0.0) + cost_s
