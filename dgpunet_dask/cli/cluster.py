"""`dgpunet-dask up`, `down` and `status`."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, printable
from dgpunet_dask.errors import DgpunetError, OtherFleetRunning, OtherPolicyRunning, UsageError

if TYPE_CHECKING:
    from dgpunet_dask.cluster.headfile import HeadFile
    from dgpunet_dask.model.fleet import Fleet


@click.command()
@click.option("--simulate", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Simulate the fleet of this file on the CPU.")
@click.option(
    "--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Follow this policy file, or those of a folder; repeatable. Default: $DGPUNET_HOME/policy/{generated,human}/*.yaml.",
)  # fmt: skip
@pass_context
def up(context: CliContext, simulate: Path | None, policy: tuple[Path, ...]) -> None:
    """Start a cluster on this machine and leave it running.

    Returns once all its workers have joined. If it runs already, nothing changes; with another fleet or other policy files that is an
    error. Policy files are read again whenever they change.
    """
    from dgpunet_dask.cluster.config import joined_cluster
    from dgpunet_dask.daemons.embedded import answering_head, clear_remains, start_lock, starting

    wanted = check_files(simulate, policy)
    joined = joined_cluster(context.home)
    if joined is not None:
        raise UsageError(detail=f"This machine belongs to the cluster of {joined}. `dgpunet-dask join` starts its part of it again.")
    with start_lock(context.home):
        head = answering_head(context.home)
        if head is not None:
            _keep(context, head, wanted, policy)
            return
        clear_remains(context.home)
        with starting(context.home, simulate=simulate, embedded=False, policy=policy, say=sayer(context)) as (_, head):
            pass  # released at the end of the block
    say_up(context, head)


def check_files(simulate: Path | None, policy: tuple[Path, ...]) -> Fleet | None:
    """Return the fleet of a file; a mistake in it or in the policy files is told before anything is started."""
    from dgpunet_dask.cluster.policy_files import policy_paths, read_policies
    from dgpunet_dask.hardware.simulated import simulated_fleet

    read_policies(policy_paths(policy))
    return None if simulate is None else simulated_fleet(simulate)


def _keep(context: CliContext, head: HeadFile, wanted: Any, policy: tuple[Path, ...]) -> None:
    """Leave the running head as it is, or make an embedded one stay."""
    from dgpunet_dask.cluster.fleets import fleet_digest
    from dgpunet_dask.daemons.embedded import client_of

    if wanted is not None and fleet_digest(wanted) != head.fleet_digest:
        raise OtherFleetRunning(running=head.fleet)
    if policy and tuple(str(path.absolute()) for path in policy) != head.policy:
        raise OtherPolicyRunning(running=", ".join(head.policy) or "those of its home")
    if head.embedded:
        client_of(head).keep()
        sayer(context)("a command had started it: it stays from now on, but does not come back if it is killed (`down` and `up` make it one that does)")
    say_up(context, head)


def sayer(context: CliContext) -> Any:
    """Return what tells people how far a start is."""
    from dgpunet_dask.daemons.embedded import quietly

    return quietly if context.quiet else functools.partial(click.echo, err=True)


def say_up(context: CliContext, head: HeadFile) -> None:
    """Tell where the cluster answers; its dashboard is where the head says, which of several machines is not where Dask serves it."""
    from dgpunet_dask.daemons.embedded import client_of

    shown = head.dashboard
    with contextlib.suppress(DgpunetError):  # it may have ended meanwhile: it was up
        shown = client_of(head).status()["dashboard"]
    dashboard = f", dashboard {shown}" if shown else ""
    sayer(context)(f"the cluster is up: Dask scheduler {head.scheduler}{dashboard}")


@click.command()
@pass_context
def down(context: CliContext) -> None:
    """Stop the cluster under $DGPUNET_HOME, and end what a killed one left behind. Without a cluster, nothing happens."""
    from dgpunet_dask.cluster.config import joined_cluster
    from dgpunet_dask.daemons.embedded import stop_cluster

    if not context.home.run.is_dir():
        sayer(context)("no cluster is running")
        return
    ran, ended = stop_cluster(context.home)
    say = sayer(context)
    if ended:
        say("ended what was left: " + ", ".join(f"{entry.what} ({entry.pid})" for entry in ended))
    what = "this machine's part of the cluster" if joined_cluster(context.home) else "the cluster"
    say(f"{what} is stopped" if ran else "no cluster is running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def status(context: CliContext, as_json: bool) -> None:
    """Show the running cluster: its daemon, addresses and workers."""
    found = context.reach().status()
    if as_json:
        emit_json({**found, "error": None})
        return
    click.echo(f"head      pid {found['head_pid']}, API {found['api']}")
    click.echo(f"scheduler {found['address']}")
    click.echo(f"dashboard {found['dashboard'] or '-'}")
    _say_policy(found["policy"])
    _say_settings((found.get("disk") or {}).get("settings") or {})
    _say_backup(found.get("backup") or {})
    _say_resident(found.get("resident") or {})
    rows = [[w["name"], w["host"], w["device"], _memory(w), w["state"]] for w in found["workers"]]
    widths = [max(map(len, column)) for column in zip(["worker"] * 5, *rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _say_policy(policy: dict[str, Any]) -> None:
    click.echo(printable(f"policy    {policy['digest']} of {', '.join(policy['files'])}" if policy["files"] else "policy    none"))
    if policy["error"] is not None:
        click.echo("the policy files have changed and are not in force:", err=True)
        click.echo(printable(policy["error"]["message"], keep="\n"), err=True)


def _say_settings(settings: dict[str, Any]) -> None:
    if settings.get("error"):
        click.echo(printable(f"{settings['file']} is wrong; the settings before it stay in force:"), err=True)
        click.echo(printable(settings["error"]["message"], keep="\n"), err=True)


def _say_backup(backup: dict[str, Any]) -> None:
    if backup.get("error"):
        click.echo(printable(f"the ledger cannot be copied: {backup['error']}"), err=True)
    if backup.get("at") is not None:
        there = f"{backup['host']} ({moment(backup['host_at'])})" if backup["host"] else "no other host"
        click.echo(printable(f"ledger    copied {moment(backup['at'])}, on {there}"))


def _say_resident(resident: dict[str, Any]) -> None:
    if resident.get("bytes"):
        told = ", ".join(f"{held >> 20} MiB on {name}" for name, held in resident["workers"].items())
        click.echo(printable(f"vectors   {told}"))


def _memory(worker: dict[str, Any]) -> str:
    total = "-" if worker["vram_mib"] is None else str(worker["vram_mib"])
    return f"{worker['charged_mib']}/{total} MiB"
