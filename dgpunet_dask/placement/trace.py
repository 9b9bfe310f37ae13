"""The decision log as text: one JSON object a line, what came, where it went and how it ended. Text in, records out; no file is read here.

    {"v": 1, "t": 0.0, "kind": "fleet", "fleet": "9f2c…", "hosts": […], "devices": […], "charges": […], "states": {}, "minute": null}
    {"v": 1, "t": 0.0, "kind": "policy", "policy": "41ab…", "sources": [{"file": "home5.yaml", "layer": "human", "text": "version: 1…"}]}
    {"v": 1, "t": 2.5, "kind": "submit", "id": "embed-7", "demand": {"stage": "embed", "vram": "4GiB"}}
    {"v": 1, "t": 2.6, "kind": "place", "id": "embed-7", "outcome": "placed", "devices": ["5090"], "reasons": {"3090": "busy"}, …}
    {"v": 1, "t": 9.1, "kind": "end", "id": "embed-7", "outcome": "done", "devices": ["5090"], "seconds": 6.5, "share": 1}

`t` is in seconds on any clock that goes forward, such as Unix time; where it goes back (a clock was set), it is taken to stand still.
A record counts for what follows it: a log may hold several fleets and policies, and each file of a rotated log begins with one of each,
so that it can be read alone. A last line without its newline was being written when the machine stopped: it is left out with a warning.
Any other line that cannot be read is a mistake, told as file:line:col.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

from pydantic import TypeAdapter, ValidationError

from dgpunet_dask.errors import DgpunetError, MalformedFile, NewerFormat, Problem, did_you_mean
from dgpunet_dask.model.decision import REASON_ORDER, Decision, Outcome
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host
from dgpunet_dask.model.policy import LAYERS, Layer
from dgpunet_dask.model.wire import charge_from_wire, device_from_wire, host_from_wire, to_wire
from dgpunet_dask.placement.estimate import Estimates

FORMAT_VERSION: Final = 1
#: How a start may end. `failed`: by an error of its own; `lost`: with its device or worker.
Ended = Literal["done", "oom", "failed", "lost", "cancelled"]


@dataclass(frozen=True)
class FleetRecord:
    """The whole fleet as it is from `t` on: written at the start of each file, and when devices join, leave or change."""

    kind: ClassVar[str] = "fleet"
    t: float
    fleet: str
    hosts: tuple[Host, ...]
    devices: tuple[Device, ...]
    charges: tuple[Charge, ...] = ()
    states: Mapping[str, DeviceState] = field(default_factory=dict)
    minute: int | None = None

    @classmethod
    def of(cls, t: float, fleet: Fleet) -> FleetRecord:
        """Return the record of `fleet`."""
        return cls(t, fleet_id(fleet), fleet.hosts, fleet.devices, fleet.charges, dict(fleet.states), fleet.minute)

    @property
    def value(self) -> Fleet:
        """The fleet."""
        return Fleet(self.hosts, self.devices, self.charges, self.states, self.minute)


@dataclass(frozen=True)
class PolicySource:
    """One policy file: its name, its layer and its text."""

    file: str
    layer: Layer
    text: str


@dataclass(frozen=True)
class PolicyRecord:
    """The policy in force from `t` on: its digest and, so that the log can be replayed by itself, its files."""

    kind: ClassVar[str] = "policy"
    t: float
    policy: str
    sources: tuple[PolicySource, ...] = ()


@dataclass(frozen=True)
class EstimatesRecord:
    """What has been learned until `t`."""

    kind: ClassVar[str] = "estimates"
    t: float
    estimates: Estimates


@dataclass(frozen=True)
class SubmitRecord:
    """A unit begins to wait. The same `id` again, after an end that was not `done`, is the same unit trying again."""

    kind: ClassVar[str] = "submit"
    t: float
    id: str
    demand: Demand


@dataclass(frozen=True)
class PlaceRecord:
    """A decision upon a unit: where it goes, or the first reason of each device that will not do.

    `fleet`, `policy`: `fleet_id` and `Policy.digest` of what decided.
    """

    kind: ClassVar[str] = "place"
    t: float
    id: str
    outcome: Outcome
    devices: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    waits_for: str | None = None
    fleet: str | None = None
    policy: str | None = None

    @classmethod
    def of(cls, t: float, id: str, decision: Decision, fleet: str | None = None) -> PlaceRecord:  # noqa: A002  # as the field is named
        """Return the record of `decision` upon unit `id`."""
        reasons = {v.device: v.code for v in decision.first_verdicts}
        return cls(t, id, decision.outcome, decision.devices, reasons, decision.waits_for, fleet, decision.policy or None)


@dataclass(frozen=True)
class EndRecord:
    """A start has ended.

    Parameters
    ----------
    seconds
        From its start to its end, loading left out; ``None`` where that was not measured.
    share
        One of how many units at most it was on its device.
    load_s
        What loading its stage took before.
    peak_mib
        The most VRAM that it took of one card.
    """

    kind: ClassVar[str] = "end"
    t: float
    id: str
    outcome: Ended
    devices: tuple[str, ...] = ()
    seconds: float | None = None
    share: int = 1
    load_s: float | None = None
    peak_mib: int | None = None


@dataclass(frozen=True)
class StateRecord:
    """A device changes its state."""

    kind: ClassVar[str] = "state"
    t: float
    device: str
    state: DeviceState


@dataclass(frozen=True)
class ForeignRecord:
    """What processes that are not ours take of a device from `t` on."""

    kind: ClassVar[str] = "foreign"
    t: float
    device: str
    vram_mib: int


Record: TypeAlias = (
    FleetRecord | PolicyRecord | EstimatesRecord | SubmitRecord | PlaceRecord | EndRecord | StateRecord | ForeignRecord
)
KINDS: Final[Mapping[str, type[Record]]] = {kind.kind: kind for kind in get_args(Record)}


@dataclass(frozen=True)
class Trace:
    """All records of one log, in the order of its lines. `warnings`: what was passed over, as text."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()


def fleet_id(fleet: Fleet) -> str:
    """Return the first 12 hex digits of the SHA-256 of the facts of all hosts and devices: the same for the same machines.

    What changes from minute to minute (charges, states, a host's idle time and power) is left out.
    """
    hosts = [{**to_wire(h), "idle_s": None, "power": None} for h in sorted(fleet.hosts, key=lambda h: h.name)]
    facts = [hosts, [to_wire(d) for d in fleet.devices]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


# Writing


def to_line(record: Record) -> str:
    """Return `record` as one line of JSON, without the newline. Values that are their defaults are left out."""
    row: dict[str, Any] = {"v": FORMAT_VERSION, "t": record.t, "kind": record.kind}
    for f in fields(record):
        value = getattr(record, f.name)
        if f.name != "t" and not _is_default(f, value):
            row[f.name] = _plain(value)
    return json.dumps(row, separators=(",", ":"), allow_nan=False)


def _is_default(f: Any, value: Any) -> bool:
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    return default is not MISSING and bool(value == default)


def _plain(value: Any) -> Any:
    if isinstance(value, Device | Host | Charge):
        return to_wire(value)
    if isinstance(value, PolicySource):
        return {"file": value.file, "layer": value.layer, "text": value.text}
    if isinstance(value, Demand):
        return value.to_mapping()
    if isinstance(value, Estimates):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return dict(value) if isinstance(value, Mapping) else value


# Reading


def parse_trace(text: str, file: str) -> Trace:
    """Return the records of a log.

    Parameters
    ----------
    text, file
        The log's content, and its name for messages.

    Raises
    ------
    MalformedFile
        With every line that cannot be read, as file:line:col.
    NewerFormat
        For a line of a version that this release does not know.
    """
    reader = _Reader(file)
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            reader.read(number, line, torn=number == len(lines))
    if reader.problems:
        raise MalformedFile(reader.problems)
    return Trace(tuple(reader.records), tuple(reader.warnings))


class _Reader:
    """Reads line after line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.records: list[Record] = []
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._t = 0.0

    def read(self, number: int, line: str, *, torn: bool) -> None:
        """Read one line; `torn`: it has no newline."""
        try:
            row = json.loads(line, parse_constant=_no_number)
        except RecursionError:
            self._mistake(number, 1, "it is nested too deeply")
        except ValueError as error:
            if torn:
                self.warnings.append(f"{self.file}:{number}: the last line was cut off; it is left out")
            else:
                col, what = (error.colno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, str(error))
                self._mistake(number, col, f"not JSON: {what}")
        else:
            for key, what in self._record(number, row):
                self._mistake(number, _column(line, key), what)

    def _mistake(self, line: int, col: int, what: str) -> None:
        self.problems.append(Problem(self.file, line, col, what))

    def _record(self, number: int, row: Any) -> Iterator[tuple[str, str]]:
        """Keep the record of a line, or yield its mistakes: the key and what is wrong."""
        if not isinstance(row, dict):
            yield "", 'a line is an object such as {"v": 1, "t": 0, "kind": "submit", …}'
            return
        version = row.get("v")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            yield "v", f"v is the format's version, {FORMAT_VERSION}; found {version!r}"
            return
        if version > FORMAT_VERSION:
            raise NewerFormat(path=f"{self.file}:{number}", found=version, known=FORMAT_VERSION)
        kind = KINDS.get(str(row.get("kind")))
        if kind is None:
            named = str(row.get("kind"))
            yield "kind", f"unknown kind {named!r}; known kinds: {', '.join(KINDS)}{did_you_mean(named, KINDS)}"
            return
        values: dict[str, Any] = {}
        mistakes = list(_values(kind, row, values))
        yield from mistakes
        if not mistakes:
            if values["t"] < self._t:
                self.warnings.append(f"{self.file}:{number}: the time goes back by {self._t - values['t']:g} s; it is taken to stand still")
            self._t = values["t"] = max(self._t, values["t"])
            self.records.append(kind(**values))


def _column(line: str, key: str) -> int:
    """Return where `key` stands, 1 where it is not there."""
    found = re.search(rf'"{re.escape(key)}"\s*:', line)
    return 1 if found is None else found.start() + 1


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _values(kind: type[Record], row: Mapping[str, Any], found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Put the fields of a line into `found`; yield the key of each mistake and what is wrong."""
    known = {f.name: f for f in fields(kind)}
    for key in row:
        if key not in known and key not in {"v", "kind"}:
            yield key, f"unknown key {key!r} in a {kind.kind!r}; known keys: {', '.join(known)}{did_you_mean(key, known)}"
    for name, f in known.items():
        if name not in row:
            if f.default is MISSING and f.default_factory is MISSING:
                yield "kind", f"a {kind.kind!r} needs {name!r}"
            continue
        try:
            found[name] = _codec(kind, name)(row[name])
        except DgpunetError as error:
            yield name, f"{name}: {error.message}"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield name, f"{name}: {error}"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"a number, 0 or more, not {value!r}")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a whole number, 0 or more, not {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a text, not {value!r}")
    return value


def _one_of(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}, not {value!r}{did_you_mean(str(value), known)}")
        return str(value)

    return read


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _list(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypeError(f"a list, not {value!r}")
        return tuple(read(v) for v in value)

    return read_all


def _mapping(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def read_all(value: Any) -> dict[str, Any]:
        return {str(k): read(v) for k, v in _object(value).items()}

    return read_all


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object, not {value!r}")
    return value


def _source(value: Any) -> PolicySource:
    row = _object(value)
    layer: Any = _one_of(*LAYERS)(row.get("layer"))
    text = row.get("text")
    if not isinstance(text, str):
        raise TypeError(f"the text of a file, not {text!r}")
    return PolicySource(_text(row.get("file")), layer, text)


def _value_of(kind: type[Any], read: Callable[[Mapping[str, Any]], Any]) -> Callable[[Any], Any]:
    """Return what reads a device, a host or a charge: `read` knows the fields, the types are looked at here."""
    types = TypeAdapter(kind)

    def checked(value: Any) -> Any:
        found = read(_object(value))
        try:
            types.validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))} of {value.get('name')!r}: {first['msg']}") from None
        return found

    return checked


def _demand(value: Any) -> Demand:
    return Demand.parse(_object(value))


_STATES: Final = get_args(DeviceState)
_CODECS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "t": _number,
    "fleet": _text,
    "hosts": _list(_value_of(Host, host_from_wire)),
    "devices": _list(_text),
    "charges": _list(_value_of(Charge, charge_from_wire)),
    "states": _mapping(_one_of(*_STATES)),
    "minute": _or_none(_whole),
    "policy": _text,
    "sources": _list(_source),
    "estimates": lambda v: Estimates.from_json(_object(v)),
    "id": _text,
    "demand": _demand,
    "reasons": _mapping(_one_of(*REASON_ORDER)),
    "waits_for": _or_none(_text),
    "seconds": _or_none(_number),
    "share": _whole,
    "load_s": _or_none(_number),
    "peak_mib": _or_none(_whole),
    "device": _text,
    "state": _one_of(*_STATES),
    "vram_mib": _whole,
}
#: Fields that mean something else in one kind of line.
_SPECIAL: Final[Mapping[tuple[str, str], Callable[[Any], Any]]] = {
    ("fleet", "devices"): _list(_value_of(Device, device_from_wire)),
    ("place", "outcome"): _one_of(*get_args(Outcome)),
    ("place", "fleet"): _or_none(_text),
    ("place", "policy"): _or_none(_text),
    ("end", "outcome"): _one_of(*get_args(Ended)),
}


def _codec(kind: type[Record], name: str) -> Callable[[Any], Any]:
    return _SPECIAL.get((kind.kind, name)) or _CODECS[name]
