"""Events, causes and progress of jobs in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "version": "what is installed there does not fit",
    "system": "a process of the cluster ended",
}
#: Failed attempts that `jobs show` tells of.
SHOWN: Final = 10
_FAILED: Final = frozenset({"failed", "lost", "damaged"})


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
    return [*rate, f"about {spoken(eta_s)} left"] if eta_s is not None and eta_s >= 1 else rate


def progress_counts(event: Mapping[str, Any]) -> list[str]:
    """Return what a `progress` event tells beside the units that are done: rate, time left, failed units, the whole numbers of its metrics."""
    failed = [f"{event['failed']} failed"] if event.get("failed") else []
    counts = [f"{value} {name}" for name, value in event["metrics"].items() if isinstance(value, int)]
    return [*rate_and_rest(event.get("rate_per_s"), event.get("eta_s")), *failed, *counts]


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
    told = [cause_of(event["cause"])] if event.get("cause") else []
    told += [str(event[name]) for name in ("why", "message") if event.get(name)]
    return ": ".join([f"attempt at unit {event['unit']}{where} {event['state']}", *told])


def event_line(event: Mapping[str, Any]) -> str:
    """Return one event as a line for people."""
    told = _TOLD.get(event["kind"], _other)(event)
    return f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {told}"


def _log(event: Mapping[str, Any]) -> str:
    """Return what a stage printed, after where it was printed."""
    named = [f"unit {event[name]}" if name == "unit" else str(event[name]) for name in ("stage", "device", "unit") if event.get(name) is not None]
    text = str(event["text"]).rstrip("\n")
    return f"[{' '.join(named)}] {text}" if named else text


def _state(event: Mapping[str, Any]) -> str:
    error = event.get("error")
    return f"state: {event['state']}" + (f": {error['message']}" if error else "")


def _progress(event: Mapping[str, Any]) -> str:
    total = "?" if event["total"] is None else event["total"]
    return ", ".join([f"progress: {event['done']}/{total} units", *progress_counts(event)])


def _again(event: Mapping[str, Any]) -> str:
    return f"the job is started again after try {event['tries']}: {event['error']['message']}"


def _other(event: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in {"seq", "time", "kind"} and v is not None}
    return f"{event['kind']}: " + ", ".join(f"{k} {v}" for k, v in rest.items())


_TOLD: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "placement": placement_line,
    "attempt": attempt_line,
    "log": _log,
    "state": _state,
    "progress": _progress,
    "again": _again,
    "resumed": lambda event: f"a head that started again went on with it: {event['done']} units were done",
}


def awaited_lines(awaited: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the jobs that have to be done before a job begins, a line each."""
    for other in awaited:
        yield f"  waits for job {other['job_id']} ({other['state']})"


def progress_lines(progress: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far a job is: whom it waits for, a line of its units, one for each stage, one for each device."""
    yield from awaited_lines(progress.get("waits_for", ()))  # an older head says nothing of it
    units = progress["units"]
    total = "?" if units["total"] is None else units["total"]
    told = [f"{units['done']} of {total} done", *(f"{units[name]} {name}" for name in ("reused", "failed", "attempts") if units.get(name))]
    yield f"  units: {', '.join([*told, *rate_and_rest(progress['rate_per_s'], progress['eta_s'])])}"
    for row in progress["stages"]:
        yield f"  stage {row['stage']}: {row['done']} done, {row['running']} running, {row['waiting']} waiting"
    for row in progress["devices"]:
        yield f"  device {row['device']}: {row['done']} done in {row['seconds']:.1f} s, {row['running']} running"


def failed_lines(attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the attempts that failed, the last `SHOWN` of them, each with its cause, and how many ended with the job.

    Where nothing had begun and nothing is known to be wrong, nothing has failed: the unit was in line when its head ended.
    """
    failed = [a for a in attempts if a["state"] in _FAILED and (a.get("began", True) or a.get("cause") is not None)]
    if ended := sum(a["state"] == "cancelled" and a.get("began", True) for a in attempts):
        yield f"  cancelled attempts: {ended}"
    if failed:
        left_out = f"; the last {SHOWN}" if len(failed) > SHOWN else ""
        yield f"  failed attempts: {len(failed)}{left_out}"
    for attempt in failed[-SHOWN:]:
        evidence = attempt.get("evidence") or {}
        where = " ".join(str(attempt[name]) for name in ("device", "host") if attempt.get(name)) or "no device"
        why = f": {' '.join(str(evidence['why']).split())}" if evidence.get("why") else ""  # it may have several lines
        yield f"    unit {attempt['unit']} on {where}: {cause_of(attempt.get('cause'))}{why}"
