"""`dgpunet-dask mcp`: the indexes for coding agents, over the Model Context Protocol on standard input and output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from dgpunet_dask.cli.context import CliContext, pass_context

if TYPE_CHECKING:
    from dgpunet_dask.daemons.mcp.sources import Source


@click.command()
@pass_context
def mcp(context: CliContext) -> None:
    """Serve search, read_span, list_indexes and status to a coding agent, until standard input ends.

    An agent starts this command itself: put it into its list of MCP servers. It needs no running head; with --cluster it asks one.
    Standard output carries the protocol alone.
    """
    from dgpunet_dask.clock import SystemClock
    from dgpunet_dask.daemons.mcp.server import serve

    if sys.stdin.isatty():
        click.echo("Waiting for a client on standard input. An agent starts this command; Ctrl-C ends it.", err=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `search` has it
    serve(lambda: _source(context), SystemClock())


def _source(context: CliContext) -> Source:
    """Return what the tools ask: the files of this home and the head beside them, or a cluster that was named or joined."""
    from dgpunet_dask.daemons.mcp.sources import Beside, Files, Head

    api = context.elsewhere()
    return Beside(Files(context.home), context.beside) if api is None else Head(api)
