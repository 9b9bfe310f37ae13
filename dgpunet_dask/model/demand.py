"""What one unit of work asks for. Standard library only: stages in their own interpreters import it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.errors import BadValue, did_you_mean
from dgpunet_dask.units import Mib, VersionSpec, parse_bytes, parse_duration

PRIORITIES: Final = ("interactive", "batch", "idle")


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one unit of work asks of a device. Sizes may be given as text (``"2GiB"``) and are kept as whole MiB.

    Parameters
    ----------
    stage, model, user
        Names that policies match.
    vram
        Peak of a call with its model loaded, per card. ``None``: not stated, so the whole card.
    resident
        The part of `vram` that stays while the stage is loaded.
    ram, cpus
        Host memory and cores.
    compute_capability, driver
        Conditions such as ``">=8.9"``; a bare version means at least.
    features
        All must be there, e.g. ``["bf16", "fp8"]``.
    gpus, same_host
        Number of cards, and whether they must share a host. ``gpus=0``: no card at all, a host's CPU (`cpu_ok` is then implied).
    cpu_ok
        Whether a host's CPU will do as well, where it would be done there before any card.
    exclusive
        Alone on its device.
    priority
        ``interactive``, ``batch`` or ``idle``; ``None`` leaves it to the policy.
    inputs
        Bytes already lying on a device or host, by its name.
    work
        Seconds at speed 1, ``None`` where unknown.
    larger_than
        Only cards with more VRAM than this: one of that size ran out of memory.
    avoid
        Names of devices that will not do: this very unit failed there, or runs there already.

    Raises
    ------
    BadValue
        Naming the field and what would be right.
    """

    stage: str | None = None
    model: str | None = None
    vram: Mib | str | None = None
    resident: Mib | str | int = 0
    ram: Mib | str | int = 0
    cpus: int = 1
    compute_capability: VersionSpec | str | None = None
    features: Iterable[str] = ()
    driver: VersionSpec | str | None = None
    gpus: int = 1
    same_host: bool = False
    cpu_ok: bool = False
    exclusive: bool = False
    priority: str | None = None
    user: str | None = None
    inputs: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    work: float | str | None = None
    larger_than: Mib | str | None = None
    avoid: Iterable[str] = ()

    def __post_init__(self) -> None:
        for name in ("vram", "resident", "ram", "larger_than"):
            self._set(name, _named(name, Mib, getattr(self, name)))
        for name in ("compute_capability", "driver"):
            self._set(name, _named(name, _spec, getattr(self, name)))
        self._set("features", _names("features", self.features, '["bf16"]'))
        self._set("avoid", _names("avoid", self.avoid, '["4090l"]'))
        self._set("inputs", _sizes(self.inputs))
        self._set("work", _named("work", _seconds, self.work))
        self._check()
        self._set("cpu_ok", self.cpu_ok or self.gpus == 0)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        for name in ("stage", "model", "user"):
            if not isinstance(getattr(self, name), str | None):
                raise BadValue(what=name, value=getattr(self, name), why='write a text, as "embed"')
        for name in ("same_host", "cpu_ok", "exclusive"):
            if not isinstance(getattr(self, name), bool):
                raise BadValue(what=name, value=getattr(self, name), why="write true or false")
        if self.priority is not None and self.priority not in PRIORITIES:
            raise BadValue(what="priority", value=self.priority, why=f"choose one of {', '.join(PRIORITIES)}")
        for name in ("gpus", "cpus"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool) or getattr(self, name) < 0:
                raise BadValue(what=name, value=getattr(self, name), why="write a whole number, 0 or more")
        if self.vram_mib is not None and self.resident_mib > self.vram_mib:
            raise BadValue(what="resident", value=str(self.resident), why=f"it is part of vram, which is {self.vram}")

    @property
    def vram_mib(self) -> int | None:
        """The peak in MiB, ``None`` for the whole card."""
        return None if self.vram is None else int(self.vram)

    @property
    def resident_mib(self) -> int:
        """The part that stays, in MiB."""
        return int(self.resident)

    @property
    def ram_mib(self) -> int:
        """Host memory in MiB."""
        return int(self.ram)

    @property
    def capability(self) -> VersionSpec | None:
        """The condition on the compute capability."""
        return self.compute_capability  # type: ignore[return-value]  # text became a VersionSpec in __post_init__

    @property
    def driver_spec(self) -> VersionSpec | None:
        """The condition on the driver."""
        return self.driver  # type: ignore[return-value]  # text became a VersionSpec in __post_init__

    @property
    def feature_set(self) -> frozenset[str]:
        """The features as a set."""
        return frozenset(self.features)

    def named(self, stage: str) -> Demand:
        """Return this demand with `stage` filled in where it had none."""
        return self if self.stage is not None else dataclasses.replace(self, stage=stage)

    def of_model(self, model: str | None) -> Demand:
        """Return this demand with `model` filled in where it had none."""
        return self if self.model is not None or model is None else dataclasses.replace(self, model=str(model))

    def to_mapping(self) -> dict[str, Any]:
        """Return only what differs from the defaults, as plain JSON values; `parse` reads it back."""
        plain = Demand()
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: _plain(v) for k, v in changed.items() if v != getattr(plain, k)}

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | Demand) -> Demand:
        """Return the demand that a mapping states, as in ``dask.annotate(demand={"vram": "4GiB"})``.

        Raises
        ------
        BadValue
            For an unknown key (with the nearest known one) or a bad value.
        """
        if isinstance(raw, Demand):
            return raw
        if not isinstance(raw, Mapping):
            raise BadValue(what="demand", value=raw, why='write a mapping such as {"vram": "4GiB"}')
        known = [f.name for f in dataclasses.fields(cls)]
        for key in raw:
            if key not in known:
                raise BadValue(what="demand key", value=key, why=f"known keys: {', '.join(known)}{did_you_mean(key, known)}")
        return cls(**raw)


def _spec(text: VersionSpec | str) -> VersionSpec:
    return text if isinstance(text, VersionSpec) else VersionSpec(text)


def _named(name: str, parse: Any, value: Any) -> Any:
    """Parse `value` unless it is None, and name the field in the error."""
    if value is None:
        return None
    try:
        return parse(value)
    except BadValue as error:
        raise BadValue(what=name, value=value, why=error.fields["why"]) from None


def _seconds(value: float | str) -> float:
    try:
        found = parse_duration(value)
    except OverflowError:
        found = math.inf
    if not 0 <= found < math.inf:
        raise BadValue(what="duration", value=value, why="write 0 s or more, as 10s, 15m or 2h")
    return found


def _sizes(inputs: Mapping[str, int | str]) -> dict[str, int]:
    """Return the bytes of each input; a bare number is bytes."""
    if not isinstance(inputs, Mapping):
        raise BadValue(what="inputs", value=inputs, why='write a mapping such as {"5090": "2GiB"}')
    found = {}
    for place, size in inputs.items():
        if not isinstance(place, str) or isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 0):
            raise BadValue(what="inputs", value=inputs, why='write names of devices or hosts and sizes, as {"5090": "2GiB"}')
        found[place] = parse_bytes(size) if isinstance(size, str) else size
    return found


def _names(what: str, names: Iterable[str], example: str) -> tuple[str, ...]:
    if not isinstance(names, Iterable) or isinstance(names, str | Mapping) or not all(isinstance(n, str) for n in names):
        raise BadValue(what=what, value=names, why=f"write a list, as {example}")
    return tuple(sorted(set(names)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mib | VersionSpec):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
