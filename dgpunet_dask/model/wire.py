"""Devices, hosts and charges as plain mappings, for the wire between processes and for files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from dgpunet_dask.errors import BadValue, did_you_mean
from dgpunet_dask.model.fleet import Charge, Device, Host

_Value = TypeVar("_Value", Device, Host, Charge)
_TUPLES: Final = ("capability", "driver", "runtime_arches", "roles")


def to_wire(value: Device | Host | Charge) -> dict[str, Any]:
    """Return all fields of `value` as plain JSON values."""
    return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


def device_from_wire(raw: Mapping[str, Any]) -> Device:
    """Return the device that `to_wire` gave.

    Raises
    ------
    BadValue
        For a missing or unknown field.
    """
    return _from_wire(Device, raw)


def host_from_wire(raw: Mapping[str, Any]) -> Host:
    """Return the host that `to_wire` gave.

    Raises
    ------
    BadValue
        For a missing or unknown field.
    """
    return _from_wire(Host, raw)


def charge_from_wire(raw: Mapping[str, Any]) -> Charge:
    """Return the charge that `to_wire` gave.

    Raises
    ------
    BadValue
        For a missing or unknown field.
    """
    return _from_wire(Charge, raw)


def _from_wire(kind: type[_Value], raw: Mapping[str, Any]) -> _Value:
    what = kind.__name__.lower()
    known = [f.name for f in dataclasses.fields(kind)]
    for name in raw:
        if name not in known:
            raise BadValue(what=f"{what} field", value=name, why=f"known fields: {', '.join(known)}{did_you_mean(name, known)}")
    try:
        return kind(**{name: _value(name, value) for name, value in raw.items()})
    except TypeError as error:
        raise BadValue(what=what, value=dict(raw), why=str(error)) from None


def _value(name: str, value: Any) -> Any:
    if name == "features":
        return frozenset(value)
    return tuple(value) if name in _TUPLES and value is not None else value
