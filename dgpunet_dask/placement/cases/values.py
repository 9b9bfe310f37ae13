"""What a policy test says, as values: a fleet at one moment, what is submitted to it, and what is wanted of the decision."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import Policy

_COMPARE: Final[Mapping[str, Callable[[int, int], bool]]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


class Count(NamedTuple):
    """A condition on a number of units, such as ``>=3``."""

    sign: str
    number: int

    def holds(self, units: int) -> bool:
        """Whether `units` meets it."""
        return _COMPARE[self.sign](units, self.number)

    def __str__(self) -> str:
        return f"{self.sign}{self.number}"


@dataclass(frozen=True)
class Burst:
    """So many units of one demand, submitted together."""

    count: int
    demand: Demand


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a case asks of the outcome. `then`: the ranking after `on`, or its beginning; `placed`, `makespan_s`: of bursts."""

    outcome: Literal["placed", "wait", "never"] = "placed"
    on: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    placed: Mapping[str, Count] = field(default_factory=dict)
    makespan_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case. `fleet` carries what runs, is loaded and is reported; `reasons`: the first reason of each device named."""

    name: str
    line: int
    fleet: Fleet
    want: Want
    submit: Demand | None = None
    bursts: tuple[Burst, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """The cases of one file, with the policy that they test and the fleet as its file states it."""

    file: str
    fleet: Fleet
    policy: Policy
    cases: tuple[Case, ...]
