"""`dgpunet-dask head`: the head of a cluster, in the foreground, as a service manager runs it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import click

from dgpunet_dask.cli.context import CliContext, pass_context
from dgpunet_dask.errors import DgpunetError, UsageError


@click.command()
@click.option("--simulate", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Simulate the fleet of this file on the CPU.")
@click.option(
    "--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Follow this policy file, or those of a folder; repeatable. Default: $DGPUNET_HOME/policy/{generated,human}/*.yaml.",
)  # fmt: skip
@click.option("--name", metavar="HOST", help="This machine's name in the cluster. Default: its host name.")
@click.option("--listen", metavar="ADDRESS", help="Listen on this address of the machine. Default: that of its best interface.")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="A further role that policies may match; repeatable.")
@pass_context
def head(
    context: CliContext, simulate: Path | None, policy: tuple[Path, ...], name: str | None, listen: str | None, roles: tuple[str, ...]
) -> int:
    """Run the head of a cluster that other machines can join, in the foreground, until it is interrupted, terminated, or stopped by `down`.

    The first start makes the cluster's own certificate authority. Everything that listens beyond 127.0.0.1 does so under TLS. `token create`
    invites another machine, which then runs `join`. With --simulate the cluster stays on 127.0.0.1.
    """
    from dgpunet_dask.cli.cluster import check_files
    from dgpunet_dask.config.settings_file import read_settings

    check_files(simulate, policy)
    read_settings(context.home.config)  # a mistake is told here, and not only in the head's log
    if simulate is not None:
        return _simulated(context, simulate, policy)
    return _real(context, policy, name, listen, roles)


def _free(context: CliContext) -> None:
    """Clear what a killed cluster left; refuse where one runs."""
    from dgpunet_dask.daemons.embedded import clear_remains, current_head
    from dgpunet_dask.daemons.register import supervisor_of

    if current_head(context.home) is not None or supervisor_of(context.home) is not None:
        raise UsageError(detail=f"A cluster is running already under {context.home.root}. Run `dgpunet-dask down` first.")
    clear_remains(context.home)


def _real(context: CliContext, policy: tuple[Path, ...], name: str | None, listen: str | None, roles: tuple[str, ...]) -> int:
    from dgpunet_dask.cli.cluster import sayer
    from dgpunet_dask.clock import SystemClock
    from dgpunet_dask.daemons.embedded import start_lock
    from dgpunet_dask.daemons.joining import prepare_head
    from dgpunet_dask.daemons.register import SUPERVISOR, registered
    from dgpunet_dask.daemons.supervisor import daemons_of, supervise

    say, home = sayer(context), context.home
    with contextlib.ExitStack() as running:
        with start_lock(home):
            _free(context)
            config = prepare_head(home, name=name, listen=listen, roles=roles, now=SystemClock().wall(), say=say)
            running.enter_context(registered(home, SUPERVISOR))
        ended = threading.Event()
        threading.Thread(target=_tell_when_ready, args=(home, config, ended, say), daemon=True).start()
        try:
            return asyncio.run(supervise(home, daemons_of("head", home, [path.absolute() for path in policy]), say))
        finally:
            ended.set()


def _tell_when_ready(home: Any, config: Any, ended: threading.Event, say: Any) -> None:
    from dgpunet_dask.daemons.joining import until_ready

    try:
        until_ready(home, config, lambda: not ended.is_set(), say)
    except DgpunetError as error:
        if not ended.is_set():
            say(str(error))
    else:
        say(f"the cluster is up: {config.host} at {config.scheduler}, API https://{config.api[0]}")
        say("invite another machine with `dgpunet-dask token create HOST`")


def _simulated(context: CliContext, simulate: Path, policy: tuple[Path, ...]) -> int:
    """What `up` leaves running, this waits for. Its log is $DGPUNET_HOME/run/logs/head.log."""
    from dgpunet_dask.cli.cluster import say_up, sayer
    from dgpunet_dask.daemons.embedded import start_lock, starting

    signal.signal(signal.SIGTERM, _leave)
    with contextlib.ExitStack() as running:
        with start_lock(context.home):
            _free(context)
            process, file = running.enter_context(
                starting(context.home, simulate=simulate, embedded=False, policy=policy, say=sayer(context))
            )
        say_up(context, file)
        return process.process.wait()


def _leave(*_: Any) -> NoReturn:
    """End in good order: what has been started is stopped on the way out."""
    raise SystemExit(0)
