"""`dgpunet-dask install-service`: this machine's part of the cluster starts with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dgpunet_dask.cli.context import CliContext, pass_context
from dgpunet_dask.errors import UnreadablePath, UsageError

if TYPE_CHECKING:
    from dgpunet_dask.cluster.config import ClusterConfig

SYSTEM_UNITS: Final = Path("/etc/systemd/system")
UNIT: Final = "dgpunet-dask.service"


@click.command("install-service")
@click.option("--dry-run", is_flag=True, help="Print the unit and change nothing.")
@click.option("--user", "as_user", is_flag=True, help="A unit of the calling user, also when root calls; see `loginctl enable-linger`.")
@click.option("--no-start", is_flag=True, help="Write the unit, but neither enable nor start it.")
@click.option("--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Policy files for a head, as `head` takes them.")
@pass_context
def install_service(context: CliContext, dry_run: bool, as_user: bool, no_start: bool, policy: tuple[Path, ...]) -> None:
    """Write a systemd unit for what this machine is in the cluster, its head or one of its hosts, and start it.

    Called by root it is the machine's unit, started at boot as the user whose $DGPUNET_HOME it is; called by anybody else the user's own.
    It restarts whatever ends. What runs here already is stopped first.
    """
    from dgpunet_dask.cluster.config import read_config
    from dgpunet_dask.cluster.service_unit import unit_text
    from dgpunet_dask.daemons.embedded import stop_cluster

    config = read_config(context.home.cluster_file)
    if config is None:
        raise UsageError(detail="This machine is in no cluster yet. Run `dgpunet-dask head`, or `dgpunet-dask join TOKEN`, once before.")
    system = os.geteuid() == 0 and not as_user
    what, command = _command(config, policy)
    text = unit_text(what, command, {"DGPUNET_HOME": str(context.home.root)}, system=system, user=_owner(context.home.root) if system else None)
    if dry_run:
        click.echo(text, nl=False)
        return
    path = (SYSTEM_UNITS if system else _user_units()) / UNIT
    _write(path, text)
    click.echo(f"{path} is written", err=True)
    if not no_start and shutil.which("systemctl") is not None:
        stop_cluster(context.home)  # systemd's would meet it, and try again for ever
    _start(system, no_start)


def _command(config: ClusterConfig, policy: tuple[Path, ...]) -> tuple[str, list[str]]:
    """Return what runs here, and the command that runs it in the foreground."""
    program = [sys.executable, "-P", "-m", "dgpunet_dask.cli.main"]
    files = [word for path in policy for word in ("--policy", str(path.absolute()))]
    return ("head", [*program, "head", *files]) if config.membership == "head" else ("agent", [*program, "join", "--foreground"])


def _owner(root: Path) -> str | None:
    """Return the name of the user whose home this is, ``None`` for root's: what users' stages run, they run as that user."""
    try:
        owner = root.owner()
    except (OSError, KeyError):
        return None
    return None if owner == "root" else owner


def _user_units() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UnreadablePath(path=path, why=error.strerror or str(error)) from error


def _start(system: bool, no_start: bool) -> None:
    """Have systemd read the unit, enable and start it; where there is no systemd that runs, say what to do."""
    systemctl = shutil.which("systemctl")
    scope = [] if system else ["--user"]
    steps = [["daemon-reload"], ["enable", "--now", UNIT]]
    by_hand = " && ".join(" ".join(["systemctl", *scope, *step]) for step in steps)
    if no_start or systemctl is None:
        click.echo(f"start it with: {by_hand}", err=True)
        return
    for step in steps:
        done = subprocess.run([systemctl, *scope, *step], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UsageError(detail=f"The unit is written, and systemctl refused it: {done.stderr.strip()}. Start it by hand: {by_hand}")
    click.echo(f"{UNIT} is enabled and runs", err=True)
