"""Why work is where it is, as data and as lines: what is asked once the policy is applied, every verdict, what would wake it, the nearest fix.

`explanation` gives plain JSON values, so that it crosses the head's API as it is; `lines` makes the text of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dgpunet_dask.model.decision import Decision, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.explain import KINDS, kind_of
from dgpunet_dask.placement.fixes import nearest
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.resolve import Request, resolve
from dgpunet_dask.placement.waiting import free_in_s
from dgpunet_dask.units import Mib

OUTCOMES: Final[Mapping[str, str]] = {"placed": "goes on", "wait": "waits", "never": "can never run here"}
#: Refused by what ends by itself: the owner's conditions come to hold, a trial ends. The work stays and is not failed.
NOT_YET: Final = "may not run yet, and waits"


def explanation(fleet: Fleet, demand: Demand, policy: Policy = NO_POLICY, estimates: Estimates = NO_ESTIMATES) -> dict[str, Any]:
    """Return all that can be said about where `demand` goes now.

    Returns
    -------
    dict
        ``demand`` as stated, ``effective`` (see `effective`), ``outcome``, ``final`` (no waiting can help), ``on``, ``waits_for``,
        ``summary``, ``policy`` (its digest), ``run_s`` (of a unit alone on the first of the ranking; ``None`` where it was neither stated nor
        learned), ``ranking`` (device, total, finish_s, parts), ``verdicts`` (device, kind, code, need, have, rule), ``wakes`` (event, text and
        for a release device and in_s), ``fix`` (see `fixes.Fix.to_json`; ``None`` where work is placed or nothing helps).
    """
    request = resolve(demand, policy, estimates)
    decision = place(fleet, demand, policy, estimates)
    placed = decision.outcome == "placed"
    fix = None if placed else nearest(fleet, demand, policy, estimates)
    return {
        "demand": demand.to_mapping(),
        "effective": effective(request, policy),
        "outcome": decision.outcome,
        "final": decision.final,
        "on": list(decision.devices),
        "evict": list(decision.evict),
        "waits_for": decision.waits_for,
        "summary": "" if placed else decision.summary(),
        "policy": decision.policy,
        "run_s": _run_s(fleet, request, decision),
        "ranking": [{"device": s.device, "total": s.total, "finish_s": s.finish_s, "parts": dict(s.parts)} for s in decision.ranking],
        "verdicts": [{"kind": kind_of(v), **v.to_json()} for name in sorted(decision.refusals) for v in decision.refusals[name]],
        "wakes": [] if placed else list(wakes(fleet, request, decision)),
        "fix": None if fix is None else fix.to_json(),
    }


def _run_s(fleet: Fleet, request: Request, decision: Decision) -> float | None:
    first = next((d for d in fleet.devices if decision.ranking and d.name == decision.ranking[0].device), None)
    return request.run_s(first) if first is not None and request.known else None


def effective(request: Request, policy: Policy) -> dict[str, Any]:
    """Return what a request asks once the policy is applied, and the rules that matched, each with its place and layer."""
    rules = [rule for rule in policy.rules if rule.name in request.rules]
    on_oom = request.on_oom
    prefer = None if request.prefer is None else [{"by": p.name, "weight": p.weight} for p in request.prefer]
    return {
        **request.demand.to_mapping(),
        "priority": request.demand.priority,
        "max_per_gpu": request.share,
        "prefer": prefer,
        "allow": None if request.allow is None else [dict(s.globs) for s in request.allow],
        "deny": [{**s.globs, "at": _place(source)} for s, source in request.deny if source is not None],
        "roles": [{"role": role, "at": _place(source)} for role, source in request.roles],
        "on_oom": {"grow": on_oom.grow, "max": None if on_oom.max_mib is None else str(Mib.of(on_oom.max_mib)), "retries": on_oom.retries},
        "rules": [{"name": r.name, "layer": r.layer, "at": _place(r.source())} for r in rules],
    }


def _place(source: Any) -> str:
    return f"{source.file}:{source.line}"


# What would wake it


def wakes(fleet: Fleet, request: Request, decision: Decision) -> Iterator[dict[str, Any]]:
    """Yield each event after which the decision may be another: releases, the owner, trials that end, joins, another policy."""
    for name in sorted(decision.refusals, key=lambda name: _release_order(fleet, request, name)):
        verdicts = decision.refusals[name]
        if not any(v.never for v in verdicts) and (verdicts[0].code != "reserved" or fleet.charges_on(name)):
            yield _release(fleet, fleet.by_name[name], request, verdicts)
    for name, verdicts in sorted(decision.refusals.items()):
        yield from _by_themselves(name, [v for v in verdicts if v.never])
    yield {"event": "join", "text": f"join of {wanted(request)}"}
    lines = dict.fromkeys(v.rule for v in decision.first_verdicts if v.rule is not None and (v.never or v.code == "reserved"))
    if lines:
        yield {"event": "policy", "text": f"another policy than {', '.join(lines)}", "rules": list(lines)}


def _release_order(fleet: Fleet, request: Request, name: str) -> tuple[float, str]:
    in_s = free_in_s(fleet, fleet.by_name[name], request)
    return (float("inf") if in_s is None else in_s, name)


def _release(fleet: Fleet, device: Device, request: Request, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Return when and by what a device that is only not free comes free."""
    states = {"lost": "return", "draining": "end of the draining", "cordoned": "end of the cordon"}
    for verdict in verdicts:
        if verdict.code in states:
            return {"event": verdict.code, "device": device.name, "in_s": None, "text": f"{states[verdict.code]} of {device.name}"}
    in_s = free_in_s(fleet, device, request)
    holders = [c.holder for c in fleet.charges_on(device.name) if c.kind in {"activation", "lease"}]
    when = "" if in_s is None else f" in ~{_seconds(in_s)}"
    who = f" (held by {', '.join(holders[:3])}{', ...' if len(holders) > 3 else ''})" if holders else ""
    return {"event": "release", "device": device.name, "in_s": in_s, "text": f"release of {device.name}{when}{who}"}


def _by_themselves(name: str, never: list[Verdict]) -> Iterator[dict[str, Any]]:
    """Yield what ends without anybody's doing, where nothing else stands in the way for ever."""
    if never and not any(v.final for v in never):
        for verdict in never:
            what = f"{name}: {verdict.need} (now {verdict.have})" if verdict.code == "owner" else f"end of the trial of {name}"
            yield {"event": "owner" if verdict.code == "owner" else "trial", "device": name, "in_s": None, "text": what}


def wanted(request: Request) -> str:
    """Return in words the device that would do."""
    demand = request.demand
    size = f"vram >= {demand.vram}" if demand.vram is not None else ""
    larger = f"vram > {demand.larger_than}" if demand.larger_than is not None else ""
    needs = [
        size, larger,
        f"compute capability {demand.capability}" if demand.capability is not None else "",
        f"{', '.join(sorted(demand.feature_set))}" if demand.feature_set else "",
        f"driver {demand.driver_spec}" if demand.driver_spec is not None else "",
        *(f"role {role}" for role, _ in request.roles),
        f"{demand.ram} RAM" if demand.ram_mib else "",
        f"{demand.cpus} cpus" if demand.cpus > 1 else "",
        f"({' or '.join(map(str, request.allow)) or 'nothing allowed'})" if request.allow is not None else "",
    ]  # fmt: skip
    told = " and ".join(filter(None, needs))
    what = "a CPU" if demand.gpus == 0 else "a card" if demand.gpus == 1 else f"up to {demand.gpus} cards"
    return f"{what} with {told}" if told else what


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


# As lines


def lines(found: Mapping[str, Any], what: str = "work") -> list[str]:
    """Return an explanation as people read it: the outcome, the ranking, and what never, by rule and not now."""
    told = [_headline(found, what), *_asked(found["effective"]), *_ranking(found["ranking"])]
    return [*told, *refused_lines(found["verdicts"], found["wakes"], found["fix"])]


def refused_lines(
    verdicts: Iterable[Mapping[str, Any]], wakes: Iterable[Mapping[str, Any]], fix: Mapping[str, Any] | None
) -> list[str]:
    """Return which devices will never do, which not by rule, which not now, what would wake the work, and the nearest fix."""
    verdicts, told = list(verdicts), list[str]()
    for kind in KINDS:
        told += _under(kind, _alike(_by_device(verdicts, kind)))
    told += _under("wakes", [wake["text"] for wake in wakes])
    return told + _under("fix", [fix["text"]] if fix else [])


def _under(title: str, found: Iterable[str]) -> list[str]:
    """Return lines of which the first bears `title`."""
    return [f"  {title:<7}: {line}" if i == 0 else f"  {'':7}  {line}" for i, line in enumerate(found)]


def _headline(found: Mapping[str, Any], what: str) -> str:
    told = NOT_YET if found["outcome"] == "never" and not found["final"] else OUTCOMES[found["outcome"]]
    if found["outcome"] == "placed":
        told += f" {' + '.join(found['on'])}" + (f", once {', '.join(found['evict'])} has been unloaded" if found["evict"] else "")
    elif found["waits_for"] is not None:
        told += f" for {found['waits_for']}" + (", which finishes it sooner than any free device" if found["ranking"] else "")
    return f"{what}: {told}  (policy {found['policy']})"


def _asked(asked: Mapping[str, Any]) -> list[str]:
    """Return the needs in force, and the rules that made them so."""
    plain = {k: v for k, v in asked.items() if k not in _TOLD_APART and v is not None}
    told = [f"  asks   : {', '.join(f'{k} {_short(v)}' for k, v in plain.items()) or 'a whole card'}"]
    rules = ", ".join(f"{rule['name']} ({rule['at']})" for rule in asked["rules"])
    return [*told, f"  rules  : {rules}"] if rules else told


_TOLD_APART: Final = frozenset({"prefer", "allow", "deny", "roles", "on_oom", "rules"})


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _ranking(ranking: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for place_, scored in enumerate(ranking, start=1):
        parts = " + ".join(f"{name} {part:.1f}" for name, part in scored["parts"].items())
        yield f"  {place_:>6}. {scored['device']}  {scored['total']:.1f} = {parts}"


def _by_device(verdicts: Iterable[Mapping[str, Any]], kind: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the devices whose first reason is of `kind`, each with all its verdicts."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        found.setdefault(verdict["device"], []).append(verdict)
    return [(name, all_of) for name, all_of in found.items() if all_of[0]["kind"] == kind]


def _alike(devices: Iterable[tuple[str, list[Mapping[str, Any]]]]) -> list[str]:
    """Return a line for each set of verdicts, after the devices that have it."""
    found: dict[str, list[str]] = {}
    for name, verdicts in devices:
        found.setdefault(" · ".join(told_verdict(v) for v in verdicts), []).append(name)
    return [f"{', '.join(names)}  {told}" for told, names in found.items()]


def told_verdict(verdict: Mapping[str, Any]) -> str:
    """Return one verdict: its code, need and have, and the policy line."""
    rule = f" [{verdict['rule']}]" if verdict.get("rule") else ""
    return f"{verdict['code']}: needs {verdict['need']}, has {verdict['have']}{rule}"
