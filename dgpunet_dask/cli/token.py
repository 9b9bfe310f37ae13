"""`dgpunet-dask token`: what lets another machine join, once."""

from __future__ import annotations

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, printable, table
from dgpunet_dask.units import parse_duration


@click.group()
def token() -> None:
    """Make, list and revoke tokens that let another machine join."""


@token.command()
@click.argument("host")
@click.option("--ttl", default="1h", show_default=True, metavar="DURATION", help="How long it works: 15m, 1h, 2d.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def create(context: CliContext, host: str, ttl: str, as_json: bool) -> None:
    """Make a token for the machine that will be called HOST, and print it alone on stdout.

    It works once and for that name only, and it holds what the machine needs to know its head by. Whoever has it can join as HOST.
    """
    made = context.reach().token_create({"host": host, "ttl_s": parse_duration(ttl)})
    if as_json:
        emit_json({**made, "error": None})
        return
    click.echo(made["token"])
    if not context.quiet:
        click.echo(printable(f"on {host}, until {moment(made.get('expires_s'))}: dgpunet-dask join TOKEN"), err=True)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_tokens(context: CliContext, as_json: bool) -> None:
    """List the tokens, without their secrets."""
    found = context.reach().tokens()
    if as_json:
        emit_json({"tokens": found, "error": None})
        return
    rows = [[t["id"], t["host"], t["state"], moment(t["created_s"]), moment(t["expires_s"])] for t in found]
    table(["id", "host", "state", "made", "until"], rows)


@token.command()
@click.argument("token_id", metavar="ID")
@pass_context
def revoke(context: CliContext, token_id: str) -> None:
    """Make a token worthless before it is used. A machine that has joined with it stays in."""
    context.reach().token_revoke(token_id)
    click.echo(f"token {token_id} is revoked")
