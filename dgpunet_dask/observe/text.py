"""Findings as lines for people, in the manner of ``linkerd check``. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from dgpunet_dask.observe.finding import Finding, Level, in_order, summary

SIGNS: Final[Mapping[Level, str]] = {"ok": "√", "warn": "!", "fault": "×"}
ASCII_SIGNS: Final[Mapping[Level, str]] = {"ok": "ok", "warn": "!!", "fault": "XX"}
#: Longer evidence is in ``--json``.
_EVIDENCE: Final = 240


def signs_for(encoding: str | None) -> Mapping[Level, str]:
    """Return the signs that a terminal of this encoding can show."""
    try:
        "".join(SIGNS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_SIGNS
    return SIGNS


def lines(findings: Iterable[Finding], signs: Mapping[Level, str] = SIGNS, *, quiet: bool = False) -> Iterator[str]:
    """Yield the findings by cause, one line each, with evidence and cure below what is not well; last, how many there are.

    Parameters
    ----------
    quiet
        Leave out what is well.
    """
    known = list(findings)
    shown = [finding for finding in known if not (quiet and finding.level == "ok")]
    for cause, group in groupby(in_order(shown), key=lambda finding: finding.cause):
        yield from (cause, "-" * len(cause))
        for finding in group:
            yield from _lines(finding, signs)
        yield ""
    count = summary(known)
    yield f"{count['ok']} ok, {_count(count['warn'], 'warning')}, {_count(count['fault'], 'fault')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _lines(finding: Finding, signs: Mapping[Level, str]) -> Iterator[str]:
    yield f"{signs[finding.level]} {finding.subject}: {finding.what}"
    if finding.level == "ok":
        return
    told = {key: value for key, value in finding.evidence.items() if value is not None}
    if told:
        text = "  ".join(f"{key}={_value(value)}" for key, value in told.items())
        yield f"    evidence  {text if len(text) <= _EVIDENCE else text[:_EVIDENCE] + ' ...'}"
    if finding.cure is not None:
        yield f"    cure      {finding.cure}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
