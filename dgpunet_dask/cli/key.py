"""`dgpunet-dask key`: what lets a user in from anywhere."""

from __future__ import annotations

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, printable, table
from dgpunet_dask.security.keys import SCOPES
from dgpunet_dask.units import parse_duration


@click.group()
def key() -> None:
    """Make, list and revoke the API keys of users."""


@key.command()
@click.argument("user")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="What the key allows; each scope holds those before it.")
@click.option("--ttl", metavar="DURATION", help="How long it works: 12h, 90d. Default: until it is revoked.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def create(context: CliContext, user: str, scope: str, ttl: str | None, as_json: bool) -> None:
    """Make a key for USER, and print it alone on stdout. Only a digest of it is kept: it cannot be shown again."""
    made = context.reach().key_create({"user": user, "scope": scope, "ttl_s": None if ttl is None else parse_duration(ttl)})
    if as_json:
        emit_json({**made, "error": None})
        return
    click.echo(made["key"])
    if not context.quiet:
        where = made.get("api", "the head's address")
        click.echo(printable(f"{user} sets $DGPUNET_API_KEY to it, and $DGPUNET_CLUSTER or --cluster to {where}"), err=True)


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_keys(context: CliContext, as_json: bool) -> None:
    """List the keys, without their secrets."""
    found = context.reach().keys()
    if as_json:
        emit_json({"keys": found, "error": None})
        return
    rows = [[k["id"], k["user"], k["scope"], moment(k["created_s"]), moment(k["expires_s"])] for k in found]
    table(["id", "user", "scope", "made", "until"], rows)


@key.command()
@click.argument("key_id", metavar="ID")
@pass_context
def revoke(context: CliContext, key_id: str) -> None:
    """End a key at once, with the dashboard's pages that it has opened."""
    context.reach().key_revoke(key_id)
    click.echo(f"key {key_id} is revoked")
