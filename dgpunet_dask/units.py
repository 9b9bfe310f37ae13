"""Sizes, rates, durations and versions: parsed once at the border, plain numbers inside."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Final, Self

from dgpunet_dask.errors import BadValue

#: The digits of a number are bounded, so that each has a finite value.
_SIZE: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]i?B|B)\s*", re.IGNORECASE)
_SIZE_BYTES: Final = {
    "b": 1,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_RATE: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMG]?)(bit|B)/s\s*")
_RATE_FACTOR: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_DURATION: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*(ms|s|m|h|d)\s*")
_DURATION_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_COMPARE: Final[dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_CLAUSE: Final = re.compile(r"\s*(>=|<=|==|>|<)?\s*(\d{1,18}(?:\.\d{1,18})*)\s*")


def parse_bytes(text: str) -> int:
    """Return the bytes that a size such as ``"2GiB"`` or ``"500 MB"`` names.

    Raises
    ------
    BadValue
        If the text is no number with a unit. A bare number is refused: its unit would be a guess.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BadValue(what="size", value=text, why="write a number with its unit, such as 512MiB or 2GiB")
    return round(float(found[1]) * _SIZE_BYTES[found[2].lower()])


def shown_bytes(size: float) -> str:
    """Return bytes as ``1.5 GiB``, ``10.0 MiB`` or ``3 KiB``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"


class Mib(int):
    """A size in whole MiB, rounded up, so that a charge is never smaller than the need.

    ``Mib("1.5GiB") == 1536``; a bare positive integer is refused because its unit would be a guess, ``Mib.of(n)`` says MiB.
    """

    __slots__ = ()

    def __new__(cls, value: str | int) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return super().__new__(cls, -(-parse_bytes(value) // (1 << 20)))
        if value == 0 and not isinstance(value, bool):
            return super().__new__(cls, 0)
        raise BadValue(what="size", value=value, why="write it with its unit, such as 512MiB or 2GiB")

    @classmethod
    def of(cls, mib: int) -> Self:
        """Return `mib` MiB."""
        return super().__new__(cls, mib)

    def __str__(self) -> str:
        return f"{int(self) >> 10}GiB" if self and int(self) % 1024 == 0 else f"{int(self)}MiB"

    def __reduce__(self) -> tuple[object, ...]:
        return Mib.of, (int(self),)


def parse_rate(text: str) -> float:
    """Return the bytes per second of a link such as ``"10Gbit/s"`` or ``"1GB/s"``."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise BadValue(what="rate", value=text, why="write it as 10Gbit/s or 1GB/s")
    return float(found[1]) * _RATE_FACTOR[found[2]] / (8 if found[3] == "bit" else 1)


def parse_duration(text: str | float) -> float:
    """Return the seconds of a duration such as ``"15m"``, ``"10s"``; a bare number is seconds."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    found = _DURATION.fullmatch(str(text))
    if found is None:
        raise BadValue(what="duration", value=text, why="write it as 10s, 15m or 2h")
    return float(found[1]) * _DURATION_S[found[2]]


def parse_version(text: str) -> tuple[int, ...]:
    """Return ``(8, 9)`` for ``"8.9"``. Versions are integer tuples: as text 12.0 sorts before 8.9, as a float 8.10 is 8.1."""
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,18}(\.\d{1,18})*", text):
        raise BadValue(what="version", value=text, why='write it quoted, as "8.9"')
    return tuple(map(int, text.split(".")))


class VersionSpec:
    """A condition on a version: ``">=8.9"``, ``">=8.0,<10"``; a bare ``"8.9"`` means at least.

    Missing parts compare as zero, so ``>=550`` accepts 550.54.14.
    """

    __slots__ = ("clauses", "text")

    def __init__(self, text: str) -> None:
        clauses = []
        for part in str(text).split(","):
            found = _CLAUSE.fullmatch(part)
            if found is None or not isinstance(text, str):
                raise BadValue(what="version condition", value=text, why='write it quoted, as ">=8.9"')
            clauses.append((found[1] or ">=", parse_version(found[2])))
        self.clauses: tuple[tuple[str, tuple[int, ...]], ...] = tuple(clauses)
        self.text = ",".join(f"{op}{'.'.join(map(str, v))}" for op, v in clauses)

    def accepts(self, version: tuple[int, ...]) -> bool:
        """Whether every clause holds for `version`."""
        return all(_holds(op, version, bound) for op, bound in self.clauses)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionSpec) and self.clauses == other.clauses

    def __hash__(self) -> int:
        return hash(self.clauses)

    def __repr__(self) -> str:
        return f"VersionSpec({self.text!r})"

    def __str__(self) -> str:
        return self.text


def _holds(op: str, version: tuple[int, ...], bound: tuple[int, ...]) -> bool:
    width = max(len(version), len(bound))
    return _COMPARE[op](version + (0,) * (width - len(version)), bound + (0,) * (width - len(bound)))
