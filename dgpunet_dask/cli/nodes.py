"""`dgpunet-dask nodes`, `cordon`, `uncordon`, `drain`: the machines of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, printable, table
from dgpunet_dask.errors import NoHead, NoSuchNode, StillDraining
from dgpunet_dask.units import parse_duration

_POLL_S: Final = 0.5
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_JSON
@pass_context
def nodes(context: CliContext, as_json: bool) -> None:
    """List the machines: their state, cards, workers and loaded stages."""
    found = context.reach().nodes()
    if as_json:
        emit_json({"nodes": found, "error": None})
        return
    table(["host", "state", "seen", "address", "devices", "loaded"], [_row(node) for node in found])
    for node in found:
        for why in (node["why"], node["unreachable"], *_of_health(node)):
            if why:
                click.echo(printable(f"{node['host']}: {why}"), err=True)


def _of_health(node: dict[str, Any]) -> Iterator[str]:
    """Yield what a host says of its disk, and of the copy of the head's ledger that it keeps."""
    from dgpunet_dask.observe.facts import Facts
    from dgpunet_dask.units import shown_bytes

    told = Facts(node, str(node["host"]))
    if told.flag("health", "disk", "low"):
        yield f"nothing new is placed here: only {shown_bytes(told.number('health', 'disk', 'free') or 0)} are free on its disk, below the floor"
    error, at = told.text("health", "backup", "error"), told.number("health", "backup", "at")
    if error is not None:
        yield f"it cannot fetch the copy of the ledger: {error}"
    elif at is not None:
        yield f"it keeps a copy of the ledger of {moment(at)}"


def _row(node: dict[str, Any]) -> list[str]:
    seen = "-" if node["seen_s_ago"] is None else f"{node['seen_s_ago']:.0f} s ago"
    devices = ", ".join(device["name"] + ("" if device["state"] == "running" else f" ({device['state']})") for device in node["devices"])
    loaded = ", ".join(sorted({row["stage"] for row in node["stagehosts"]}))
    return [node["host"], node["state"], seen, node["address"], devices, loaded or "-"]


@click.command()
@click.argument("node")
@_JSON
@pass_context
def cordon(context: CliContext, node: str, as_json: bool) -> None:
    """Place nothing new on NODE. What runs there goes on."""
    _act(context, node, "cordon", as_json)


@click.command()
@click.argument("node")
@_JSON
@pass_context
def uncordon(context: CliContext, node: str, as_json: bool) -> None:
    """Place work on NODE again, after `cordon` or `drain`."""
    _act(context, node, "uncordon", as_json)


@click.command()
@click.argument("node")
@click.option("--deadline", default="10m", show_default=True, metavar="DURATION", help="End what still runs then; it is tried elsewhere.")
@click.option("--no-wait", is_flag=True, help="Return at once.")
@_JSON
@pass_context
def drain(context: CliContext, node: str, deadline: str, no_wait: bool, as_json: bool) -> None:
    """Place nothing new on NODE, let its work finish, then let its workers leave. `uncordon` brings them back.

    Returns once the workers have left, with what they had computed handed to others.
    """
    deadline_s = parse_duration(deadline)
    row = context.reach().node_action(node, "drain", {"deadline_s": deadline_s})
    until = time.monotonic() + deadline_s + 90
    while not no_wait and row["state"] == "draining":
        if time.monotonic() > until:
            raise StillDraining(host=node, timeout_s=deadline_s)
        time.sleep(_POLL_S)
        try:
            known = {one["host"]: one for one in context.reach().nodes()}
        except NoHead:  # it is being started again, and goes on with the drain then
            continue
        if node not in known:
            raise NoSuchNode(name=node, known=", ".join(known) or "none")
        row = known[node]
    _tell(row, as_json)


@click.command("remove-node")
@click.argument("node")
@_JSON
@pass_context
def remove_node(context: CliContext, node: str, as_json: bool) -> None:
    """Put NODE out of the cluster: its certificates are revoked and its workers taken out. It can join again with a new token."""
    removed = context.reach().node_action(node, "remove", {})
    if as_json:
        emit_json({**removed, "error": None})
    else:
        click.echo(f"{node} is removed, {removed['certificates_revoked']} certificate(s) revoked")


def _act(context: CliContext, node: str, action: str, as_json: bool) -> None:
    _tell(context.reach().node_action(node, action, {}), as_json)


def _tell(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json({**row, "error": None})
    else:
        click.echo(f"{row['host']} is {row['state']}")
