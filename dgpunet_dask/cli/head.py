"""`dgpunet-dask head`: a cluster in the foreground, as a service manager runs it."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any, NoReturn

import click

from dgpunet_dask.cli.context import CliContext, pass_context
from dgpunet_dask.errors import UsageError


@click.command()
@click.option("--simulate", type=click.Path(path_type=Path), metavar="FLEET.yaml", help="Simulate the fleet of this file on the CPU.")
@click.option(
    "--policy", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Follow this policy file, or those of a folder; repeatable. Default: $DGPUNET_HOME/policy/{generated,human}/*.yaml.",
)  # fmt: skip
@pass_context
def head(context: CliContext, simulate: Path | None, policy: tuple[Path, ...]) -> int:
    """Run a cluster in the foreground, until it is interrupted, terminated, or stopped by `down`.

    What `up` leaves running, this command waits for. Its log is $DGPUNET_HOME/run/logs/head.log.
    """
    from dgpunet_dask.cli.cluster import check_files, say_up, sayer
    from dgpunet_dask.daemons.embedded import clear_remains, current_head, start_lock, starting

    check_files(simulate, policy)
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.ExitStack() as running:
        with start_lock(context.home):
            if current_head(context.home) is not None:
                raise UsageError(detail=f"A cluster is running already under {context.home.root}. Run `dgpunet-dask down` first.")
            clear_remains(context.home)
            process, file = running.enter_context(
                starting(context.home, simulate=simulate, embedded=False, policy=policy, say=sayer(context))
            )
        say_up(context, file)
        return process.process.wait()


def _leave(*_: Any) -> NoReturn:
    """End in good order: what has been started is stopped on the way out."""
    raise SystemExit(0)
