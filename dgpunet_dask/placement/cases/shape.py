"""The shape of a policy test file, entry by entry. What needs the fleet, or more than one value, is for `checks`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag

from dgpunet_dask.config.yamlfile import YamlModel, parsed
from dgpunet_dask.errors import BadValue
from dgpunet_dask.placement.cases.values import Count
from dgpunet_dask.units import Mib, parse_duration

FORMAT_VERSION: Final = 1

_COUNT: Final = re.compile(r"\s*(>=|<=|==|>|<)?\s*(\d{1,9})\s*")
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})")


def _count(value: Any) -> Count:
    found = None if isinstance(value, bool) else _COUNT.fullmatch(str(value))
    if found is None:
        raise ValueError('write a number of units, as 3, ">=3" or "<=1"')
    return Count(found[1] or "==", int(found[2]))


def _seconds(value: Any) -> float:
    try:
        seconds = parse_duration(value if isinstance(value, int | float) else str(value))
    except BadValue as error:
        raise ValueError(error.fields["why"]) from None
    if seconds < 0:
        raise ValueError("write 0 or more")
    return seconds


def _minute(text: Any) -> int:
    found = _CLOCK.fullmatch(str(text))
    if found is None or int(found[1]) > 23 or int(found[2]) > 59:
        raise ValueError('write the local time of day as "23:30"')
    return 60 * int(found[1]) + int(found[2])


def _listed(value: Any) -> Any:
    """Return one name as a list of one."""
    return value if isinstance(value, list) else [value]


Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
Counted = Annotated[Count, PlainValidator(_count)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
Minute = Annotated[int, BeforeValidator(_minute)]
Size = Annotated[Mib, parsed(Mib)]
State = Literal["running", "paused", "cordoned", "draining", "lost"]
#: A demand as the file states it; `checks` looks at each of its keys.
DemandEntry = dict[str, Any]


class RunningEntry(YamlModel):
    """What runs already."""

    demand: DemandEntry
    on: Names


class ResidentEntry(YamlModel):
    """A stage that is loaded."""

    stage: str
    model: str | None = None
    on: str
    vram: Size
    reload: Seconds | None = None


class HostFacts(YamlModel):
    """What a host reports otherwise than the fleet file says."""

    idle: Seconds | None = None
    power: Literal["mains", "battery"] | None = None
    ram: Size | None = None
    cpus: Annotated[int, Field(gt=0)] | None = None


class BurstEntry(YamlModel):
    """Many units of one demand."""

    count: Annotated[int, Field(ge=1, le=100_000)]
    demand: DemandEntry


class WantEntry(YamlModel):
    """What is wanted where something is placed."""

    on: Names | None = None
    then: Annotated[list[str], BeforeValidator(_listed)] | None = None  # an empty list begins every ranking
    placed: Annotated[dict[str, Counted], Field(min_length=1)] | None = None
    makespan_at_most: Seconds | None = None


class PolicyEntry(YamlModel):
    """A policy file, and the layer that it is tested as; left out, its folder says it, as for a head."""

    file: str
    layer: Literal["built-in", "generated", "human"] | None = None


class CaseEntry(YamlModel):
    """One case."""

    name: Annotated[str, Field(min_length=1)]
    at: Minute | None = None
    hosts: dict[str, HostFacts] = Field(default_factory=dict)
    states: dict[str, State] = Field(default_factory=dict)
    resident: list[ResidentEntry] = Field(default_factory=list)
    foreign: dict[str, Size] = Field(default_factory=dict)
    running: list[RunningEntry] = Field(default_factory=list)
    submit: DemandEntry | None = None
    submit_all: (
        Annotated[
            Annotated[BurstEntry, Tag("a mapping")] | Annotated[list[BurstEntry], Tag("a list"), Field(min_length=1)],
            Discriminator(lambda value: "a list" if isinstance(value, list) else "a mapping"),
        ]
        | None
    ) = None
    want: Annotated[
        Annotated[Literal["wait", "never"], Tag("a word")] | Annotated[WantEntry, Tag("a mapping")],
        Discriminator(lambda value: "a word" if isinstance(value, str) else "a mapping"),
    ]
    reasons: dict[str, str] = Field(default_factory=dict)


class CaseFile(YamlModel):
    """A whole file."""

    version: Literal[1]
    fleet: str
    policies: list[
        Annotated[
            Annotated[str, Tag("a word")] | Annotated[PolicyEntry, Tag("a mapping")],
            Discriminator(lambda value: "a mapping" if isinstance(value, dict) else "a word"),
        ]
    ] = Field(default_factory=list)
    cases: list[CaseEntry]
