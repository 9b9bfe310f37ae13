"""What the scheduler answers about placement: plain mappings, for the head, `explain` and the status page.

=========================  ==============================================================================================
``dgpunet_fleet``          hosts, devices, charges, states (of devices that do not run), links, lingering holders, waiting tasks
``dgpunet_placements``     the decision log after a sequence number
``dgpunet_estimates``      takes what the head has learned (`placement.estimate.Estimates.to_json`)
``dgpunet_explain``        one task: its state, its place in the queue, and every verdict of every device
``dgpunet_set_policy``     takes the policy files in force (text, name and layer of each); answers with the policy's digest
``dgpunet_policy``         the digest of the policy in force, and its files
``dgpunet_trace``          lines of the decision log (`placement.trace`) after a sequence number
``dgpunet_own``            takes what an earlier scheduler had learned by itself, and gives what this one knows so
``dgpunet_learned``        what is known by now, as JSON: the head's estimates and beside them what the scheduler has seen itself
``dgpunet_links``          takes the measured links: [from host, to host, bytes per second] of each
``dgpunet_usage``          seconds at speed 1 that each user has had
=========================  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dgpunet_dask.model.policy import Layer
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.placement.rank import transfers
from dgpunet_dask.plugins.facts import to_wire

if TYPE_CHECKING:
    from dask.typing import Key

    from dgpunet_dask.plugins.scheduler import PlacementPlugin


def handlers(plugin: PlacementPlugin) -> Mapping[str, Callable[..., Any]]:
    """Return the RPC handlers by name."""

    def dgpunet_fleet() -> dict[str, Any]:
        return fleet(plugin)

    def dgpunet_placements(since: int = 0) -> list[Mapping[str, Any]]:
        return plugin.pump.log.since(since)

    def dgpunet_explain(key: Key) -> dict[str, Any]:
        return explain(plugin, key)

    def dgpunet_estimates(estimates: Mapping[str, Any]) -> None:
        plugin.set_estimates(Estimates.from_json(estimates))

    def dgpunet_set_policy(sources: Iterable[tuple[str, str, Layer]]) -> str:
        return plugin.set_policy(sources)

    def dgpunet_policy() -> dict[str, Any]:
        return {"digest": plugin.policy.digest, "sources": [list(source) for source in plugin.sources]}

    def dgpunet_trace(since: int = 0) -> Mapping[str, Any]:
        return plugin.journal.since(since)

    def dgpunet_learned() -> dict[str, Any]:
        return plugin.observer.fold().to_json()

    def dgpunet_own(estimates: Mapping[str, Any]) -> dict[str, Any]:
        plugin.recall(Estimates.from_json(estimates))
        return plugin.observer.own.to_json()

    def dgpunet_usage() -> dict[str, float]:
        return {user or "": had for user, had in plugin.pump.usage.had.items()}

    def dgpunet_links(links: Iterable[tuple[str, str, float]]) -> None:
        plugin.set_links({(src, dst): float(rate) for src, dst, rate in links})

    asked = (dgpunet_fleet, dgpunet_placements, dgpunet_explain, dgpunet_policy, dgpunet_trace, dgpunet_learned, dgpunet_usage)
    return {f.__name__: f for f in (*asked, dgpunet_estimates, dgpunet_links, dgpunet_own, dgpunet_set_policy)}


def fleet(plugin: PlacementPlugin) -> dict[str, Any]:
    """Return the fleet as it is now.

    `links`: measured bytes per second from one host to another. `lingering` names charges of calls that run on after their task has gone.
    `waiting` counts queued tasks; some may have been cancelled since. `succeeded` counts the units that have ended well on each device
    since the scheduler started.
    """
    plugin.pump.look()
    now = plugin.book.pool.fleet()
    return {
        "hosts": [to_wire(h) for h in now.hosts],
        "devices": [to_wire(d) for d in now.devices],
        "charges": [to_wire(c) for c in now.charges],
        "states": dict(now.states),
        "links": [[src, dst, rate] for (src, dst), rate in sorted(now.links.items())],
        "lingering": sorted(plugin.book.lingering),
        "waiting": len(plugin.pump.queues),
        "succeeded": dict(plugin.book.succeeded),
    }


def explain(plugin: PlacementPlugin, key: Key) -> dict[str, Any]:
    """Return why `key` is where it is.

    `managed` is false for a task without a demand. `passed`: how often others went before the head of its queue on devices that it
    could use; `kept`: devices held free for that head; `waits_for`: the busy device that would finish it first, or a card on its way.
    `transfers`, where inputs lie elsewhere: what bringing them to each host would take, and whether the link was measured.
    """
    record = plugin.records.get(key)
    if record is None:
        return {"key": key, "managed": False}
    signature = record.signature
    queue = next((q for q in plugin.pump.queues if q.signature is signature), None)
    answer: dict[str, Any] = {
        "key": key, "managed": True, "state": record.ts.state, "demand": signature.plain, "devices": list(record.devices),
        "passed": queue.passed if queue else 0, "kept": list(queue.kept) if queue else [], "settling": record.settling,
    }  # fmt: skip
    if signature.error is not None:
        return answer | {"error": signature.error.to_json()}
    plugin.pump.look()
    decision = plugin.pump.decide(signature, verdicts=True)
    verdicts = {name: [v.to_json() for v in found] for name, found in decision.refusals.items()}
    ranking = [{"device": s.device, "total": s.total, "finish_s": s.finish_s, "parts": dict(s.parts)} for s in decision.ranking]
    ways = transfers(plugin.book.pool.fleet(), plugin.book.pool.plan(signature.demand).request)
    answer |= {"transfers": ways} if ways else {}
    coming = plugin.book.coming(plugin.book.pool.plan(signature.demand))
    if coming:
        decision = replace(decision, outcome="wait", devices=(), waits_for=coming[0])
    told = {"outcome": decision.outcome, "summary": decision.summary(), "verdicts": verdicts, "ranking": ranking}
    request = plugin.book.pool.plan(signature.demand).request
    united = {"priority": request.demand.priority, "rules": list(request.rules), "estimate_s": request.work_s if request.known else None}
    return answer | told | united | {"waits_for": decision.waits_for, "final": decision.final, "policy": decision.policy}
