"""`dgpunet-dask join`: this machine becomes part of a cluster."""

from __future__ import annotations

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, said_or_given
from dgpunet_dask.errors import UsageError


@click.command()
@click.argument("token", required=False, callback=said_or_given)
@click.option("--name", metavar="HOST", help="This machine's name in the cluster, as the token states it. Default: its host name.")
@click.option("--listen", metavar="ADDRESS", help="Use this address of the machine. Default: the one on the way to the head.")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="A role that policies may match; repeatable.")
@click.option("--force", is_flag=True, help="Join although versions differ that should not.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, as a service manager wants it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def join(
    context: CliContext, token: str | None, name: str | None, listen: str | None, roles: tuple[str, ...], force: bool, foreground: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Make this machine part of the cluster that TOKEN invites it to, and leave its agent running.

    TOKEN comes from `dgpunet-dask token create` on the head, works once, and for one name; `-` reads it from standard input, where `ps` does
    not show it. Without TOKEN a machine that has joined before starts again; so it does after a reboot once `install-service` has been
    run. Returns when all its workers are in the cluster.
    """
    import asyncio

    from dgpunet_dask.cli.cluster import sayer
    from dgpunet_dask.cluster.config import read_config
    from dgpunet_dask.daemons.embedded import clear_remains, start_lock
    from dgpunet_dask.daemons.joining import enrol, moved, supervising, until_ready
    from dgpunet_dask.daemons.register import supervisor_of
    from dgpunet_dask.daemons.supervisor import daemons_of, supervise

    say, home = sayer(context), context.home
    with start_lock(home):
        if supervisor_of(home) is not None:
            raise UsageError(detail=f"This machine's part of a cluster is running already under {home.root}. Run `dgpunet-dask down` first.")
        if token is not None:
            config = enrol(home, token, name=name, listen=listen, roles=roles, force=force, say=say)
        else:
            found = read_config(home.cluster_file)
            if found is None or found.membership != "node":
                raise UsageError(detail="This machine has not joined a cluster. Give the token that `dgpunet-dask token create` made on its head.")
            config = moved(home, found, say)
        clear_remains(home)
        if not foreground:
            if token is not None:
                say("this machine has joined; if its part does not start, mend what is named and run `dgpunet-dask join` without a token")
            with supervising(home, "node") as process:
                row = until_ready(home, config, lambda: process.returncode is None, say)
                process.release()
    if foreground:
        return asyncio.run(supervise(home, daemons_of("node", home)))
    if as_json:
        emit_json({**row, "cluster": config.cluster, "error": None})
    else:
        say(f"{config.host} is in the cluster {config.cluster} with {', '.join(device['name'] for device in row['devices'])}")
        say("commands here go to its head, and want a key in $DGPUNET_API_KEY: `dgpunet-dask key create USER` on the head makes one")
    return 0
