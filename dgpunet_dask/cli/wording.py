"""Events, causes and progress of jobs in words."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

#: Causes of failed attempts, as people read them.
CAUSES: Final[Mapping[str, str]] = {
    "user": "the stage's own code failed",
    "data": "the unit's data could not be worked on",
    "gpu-oom": "the card's memory was too small",
    "host-oom": "the host ran out of memory",
    "gpu-hardware": "the card has a fault",
    "thermal": "the card was too hot",
    "network": "the connection to the host was lost",
    "disk": "the disk was full",
    "version": "versions differ",
    "system": "a process of the cluster ended",
}
#: Failed attempts that `jobs show` tells of.
SHOWN: Final = 10
_FAILED: Final = frozenset({"failed", "lost"})


def spoken(seconds: float) -> str:
    """Return a span of time as people say it."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate_and_rest(rate_per_s: float | None, eta_s: float | None) -> list[str]:
    """Return what is known of a job's rate and of the time that is left."""
    rate = [] if rate_per_s is None else [f"{rate_per_s:.3g} units/s"]
    return [*rate, f"about {spoken(eta_s)} left"] if eta_s else rate


def cause_of(code: str | None) -> str:
    """Return a cause in words, with its code."""
    return "cause not known" if code is None else f"{CAUSES[code]} ({code})" if code in CAUSES else code


def placement_line(event: Mapping[str, Any]) -> str:
    """Return a placement in one line: what went where, and how full the device is with it."""
    usable = event.get("usable_mib")
    room = "" if usable is None else f" ({event['vram_mib']} MiB; {event['charged_mib']} of {usable} MiB charged)"
    return f"placed {event['key']} on {event['device']}{room}"


def attempt_line(event: Mapping[str, Any]) -> str:
    """Return what became of one attempt at a unit in one line."""
    where = f" on {event['device']}" if event.get("device") else ""
    cause = f": {cause_of(event['cause'])}" if event.get("cause") else ""
    why = f": {event['why']}" if event.get("why") else ""
    return f"attempt at unit {str(event.get('unit'))[:12]}{where} {event['state']}{cause}{why}"


def event_line(event: Mapping[str, Any]) -> str:
    """Return one event as a line for people."""
    return f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {_event(event)}"


def _event(event: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in {"seq", "time", "kind"} and v is not None}
    if event["kind"] == "placement":
        return placement_line(event)
    if event["kind"] == "attempt":
        return attempt_line(event)
    if event["kind"] == "log":
        return _log(event)
    return f"{event['kind']}: " + ", ".join(f"{k} {v}" for k, v in rest.items())


def _log(event: Mapping[str, Any]) -> str:
    """Return what a stage printed, after where it was printed."""
    named = [str(event[name])[:12] if name == "unit" else str(event[name]) for name in ("stage", "device", "unit") if event.get(name)]
    text = str(event["text"]).rstrip("\n")
    return f"[{' '.join(named)}] {text}" if named else text


def progress_lines(progress: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far a job is: a line of its units, one for each stage, one for each device."""
    units = progress["units"]
    total = "?" if units["total"] is None else units["total"]
    told = [f"{units['done']} of {total} done", *(f"{units[name]} {name}" for name in ("reused", "failed", "attempts") if units.get(name))]
    yield f"  units: {', '.join([*told, *rate_and_rest(progress['rate_per_s'], progress['eta_s'])])}"
    for row in progress["stages"]:
        yield f"  stage {row['stage']}: {row['done']} done, {row['running']} running, {row['waiting']} waiting"
    for row in progress["devices"]:
        yield f"  device {row['device']}: {row['done']} done in {row['seconds']:.1f} s, {row['running']} running"


def failed_lines(attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the attempts that failed, the last `SHOWN` of them, each with its cause."""
    failed = [attempt for attempt in attempts if attempt["state"] in _FAILED]
    if failed:
        left_out = f"; the last {SHOWN}" if len(failed) > SHOWN else ""
        yield f"  failed attempts: {len(failed)}{left_out}"
    for attempt in failed[-SHOWN:]:
        evidence = attempt.get("evidence") or {}
        where = " ".join(str(attempt[name]) for name in ("device", "host") if attempt.get(name)) or "no device"
        why = f": {evidence['why']}" if evidence.get("why") else ""
        yield f"    unit {str(attempt['unit'])[:12]} on {where}: {cause_of(attempt.get('cause'))}{why}"
