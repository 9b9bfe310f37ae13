"""The shape of a policy file, entry by entry. Each entry gives its value in `model.policy`; `policy_file` puts them together."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dgpunet_dask.config.yamlfile import YamlModel, parsed
from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.policy import Match, OnOom, Preference, Require, Selector
from dgpunet_dask.placement.globs import unclosed
from dgpunet_dask.units import Mib, VersionSpec, parse_duration

FORMAT_VERSION: Final = 1
MAX_WEIGHT: Final = 1e9  # far above any that people write, and sums of scores stay finite

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDLE: Final = re.compile(r"\s*(?:>=)?\s*(.*?)\s*")
_HOURS: Final = re.compile(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("use letters, digits, dot, underscore and hyphen, starting with a letter or digit")
    return text


def _glob(text: str) -> str:
    if not text:
        raise ValueError('it matches no name; write a name or a glob such as "5*", or leave the key out')
    if unclosed(text):
        raise ValueError('the set that "[" opens is never closed; write [abc], or [[] for a bracket itself')
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/cpu)?", text):
        raise ValueError("it is the name of one device, not a glob; a reserve for each of several devices is an entry of its own")
    return text


def _some(text: str) -> Mib:
    size = Mib(text)
    if size == 0:
        raise BadValue(what="size", value=text, why="it must be more than 0; leave the key out where nothing is needed")
    return size


def _idle(text: str) -> float:
    found = _IDLE.fullmatch(text)
    try:
        return parse_duration(found[1] if found is not None else text)
    except BadValue:
        raise BadValue(what="idle time", value=text, why='write the time without keyboard or mouse, at least, as ">=15m"') from None


def _hours(text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    ends = [] if found is None else [(int(found[1]), int(found[2])), (int(found[3]), int(found[4]))]
    if not ends or any(hour > 23 or minute > 59 for hour, minute in ends):
        raise BadValue(what="hours", value=text, why='write from and until as "22:00-08:00", between 00:00 and 23:59')
    start, end = (60 * hour + minute for hour, minute in ends)
    if start == end:
        raise BadValue(what="hours", value=text, why="they begin when they end; leave the key out for the whole day")
    return start, end


def _condition(text: str) -> VersionSpec:
    try:
        return VersionSpec(text)
    except BadValue:
        raise BadValue(what="condition", value=text, why='write it quoted, as ">=8.9" or ">=8.0,<10"') from None


def _wish_weight(number: float) -> float:
    if number < 0:
        raise ValueError("write a number of at least 0, and use `deny` to keep work off")
    if number > MAX_WEIGHT:
        raise ValueError(f"write a number of at most {MAX_WEIGHT:g}")
    return number


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("write a value, or remove the key")
    return value


Given = BeforeValidator(_given)  # a key with nothing after it is a mistake, not the same as no key
Name = Annotated[str, AfterValidator(_name)]
Glob = Annotated[str, AfterValidator(_glob)]
Size = Annotated[Mib, parsed(_some)]
Condition = Annotated[VersionSpec, parsed(_condition)]
Priority = Literal["interactive", "batch", "idle"]
WishWeight = Annotated[float, AfterValidator(_wish_weight)]
UserWeight = Annotated[float, Field(gt=0, le=MAX_WEIGHT)]


class MatchEntry(YamlModel):
    """Which work a rule is about."""

    stage: Annotated[Glob | None, Given] = None
    model: Annotated[Glob | None, Given] = None
    user: Annotated[Glob | None, Given] = None
    priority: Annotated[Glob | None, Given] = None

    def value(self) -> Match:
        """Return it as the policy keeps it."""
        return Match(self.stage, self.model, self.user, self.priority)


class SelectorEntry(YamlModel):
    """Which devices a clause is about."""

    device: Annotated[Glob | None, Given] = None
    host: Annotated[Glob | None, Given] = None
    role: Annotated[Glob | None, Given] = None
    card: Annotated[Glob | None, Given] = None

    def value(self) -> Selector:
        """Return it as the policy keeps it."""
        return Selector(self.device, self.host, self.role, self.card)


class HostSelectorEntry(YamlModel):
    """Which machines an owner's entry is about."""

    host: Annotated[Glob | None, Given] = None
    role: Annotated[Glob | None, Given] = None

    def value(self) -> Selector:
        """Return it as the policy keeps it."""
        return Selector(host=self.host, role=self.role)


class WishEntry(SelectorEntry):
    """One weighted wish: `by`, or devices."""

    by: Annotated[Literal["finish", "speed", "data_local"] | None, Given] = None
    weight: WishWeight

    def value(self) -> Preference:  # type: ignore[override]  # a wish holds a selector, it is none
        """Return it as the policy keeps it."""
        if self.by is not None:
            return Preference(self.by, self.weight)
        return Preference("selector", self.weight, Selector(self.device, self.host, self.role, self.card))


class RequireEntry(YamlModel):
    """What a device must have."""

    vram: Annotated[Size | None, Given] = None
    compute_capability: Annotated[Condition | None, Given] = None
    features: Annotated[list[Name] | None, Given] = None
    role: Annotated[Glob | None, Given] = None
    driver: Annotated[Condition | None, Given] = None
    ram: Annotated[Size | None, Given] = None
    cpus: Annotated[Annotated[int, Field(ge=1)] | None, Given] = None

    def value(self) -> Require:
        """Return it as the policy keeps it."""
        return Require(
            vram_mib=None if self.vram is None else int(self.vram),
            compute_capability=self.compute_capability,
            features=frozenset(self.features or ()),
            role=self.role,
            driver=self.driver,
            ram_mib=None if self.ram is None else int(self.ram),
            cpus=self.cpus,
        )


class ShareEntry(YamlModel):
    """How many units may be on a card at a time."""

    max_per_gpu: Annotated[int, Field(ge=1, le=1000)]


class OnOomEntry(YamlModel):
    """What to do when a card's memory was too small."""

    grow: Annotated[float, Field(gt=1, le=1000)] = OnOom().grow
    max: Annotated[Size | None, Given] = None
    retries: Annotated[int, Field(ge=0)] = OnOom().retries

    def value(self) -> OnOom:
        """Return it as the policy keeps it."""
        return OnOom(self.grow, None if self.max is None else int(self.max), self.retries)


class RuleEntry(YamlModel):
    """One rule."""

    name: Name
    match: Annotated[MatchEntry | None, Given] = None
    require: Annotated[RequireEntry | None, Given] = None
    allow: Annotated[Annotated[list[SelectorEntry], Field(min_length=1)] | None, Given] = None
    deny: Annotated[list[SelectorEntry] | None, Given] = None
    prefer: Annotated[list[WishEntry] | None, Given] = None
    share: Annotated[ShareEntry | None, Given] = None
    exclusive: Annotated[bool | None, Given] = None
    priority: Annotated[Priority | None, Given] = None
    on_oom: Annotated[OnOomEntry | None, Given] = None


class ReserveEntry(YamlModel):
    """VRAM that is kept for some work."""

    name: Name
    device: Annotated[str, AfterValidator(_device)]
    vram: Size
    kept_for: MatchEntry = Field(alias="for")


class WhenEntry(YamlModel):
    """When a machine is free for all work."""

    idle: Annotated[Annotated[float, parsed(_idle)] | None, Given] = None
    power: Annotated[Literal["mains", "battery"] | None, Given] = None
    hours: Annotated[Annotated[tuple[int, int], parsed(_hours)] | None, Given] = None


class HostEntry(YamlModel):
    """The owner's side."""

    match: HostSelectorEntry
    when: WhenEntry
    otherwise: list[Priority] = Field(default_factory=list)


class PolicyEntries(YamlModel):
    """A whole file."""

    version: Literal[1]
    rules: list[RuleEntry] = Field(default_factory=list)
    reserve: list[ReserveEntry] = Field(default_factory=list)
    hosts: list[HostEntry] = Field(default_factory=list)
    fair_share: dict[Glob, UserWeight] = Field(default_factory=dict)


class WeightEntry(YamlModel):
    """The users' weights by themselves."""

    fair_share: dict[Glob, UserWeight] = Field(default_factory=dict)


def data_of(value: Any, *path: str | int) -> Any:
    """Return what lies at `path` in plain data, ``None`` where the data has another shape."""
    for part in path:
        if isinstance(part, str) and isinstance(value, dict):
            value = value.get(part)
        elif isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
        else:
            return None
    return value
