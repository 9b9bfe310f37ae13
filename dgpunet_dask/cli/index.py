"""`dgpunet-dask index`: the indexes of this home, straight from their files; no head is needed."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError


@click.group()
def index() -> None:
    """List, show and remove search indexes."""


@index.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_indexes(context: CliContext, as_json: bool) -> None:
    """List all indexes by name."""
    from dgpunet_dask.retrieval.index import index_names

    described = [_described_or_error(context.home, name) for name in index_names(context.home)]
    if as_json:
        emit_json(described)
        return
    for found in described:
        click.echo(printable(_line(found)))


@index.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def show(context: CliContext, name: str, as_json: bool) -> None:
    """Show one index: what it holds, what made it, what was skipped."""
    found = _described(context.home, name)
    if as_json:
        emit_json({**found, "error": None})
        return
    for key, value in found.items():
        click.echo(f"{key:<14} {printable(_plain(value))}")


@index.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def remove(context: CliContext, name: str, as_json: bool) -> None:
    """Remove an index for good. Waits for a publication that is under way."""
    from dgpunet_dask.retrieval.index import Index, check_index_name

    Index(context.home, check_index_name(name)).remove()
    if as_json:
        emit_json({"index": name, "removed": True, "error": None})
    else:
        click.echo(f"Removed {name}.", err=True)


def _described(home: Home, name: str) -> dict[str, Any]:
    from dgpunet_dask.retrieval.index import open_index, size_bytes

    found, manifest = open_index(home, name)
    fields = asdict(manifest)
    fields.pop("segment")
    published = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(manifest.published_s))
    return {"index": name, **fields, "published": published, "bytes": size_bytes(found, manifest)}


def _described_or_error(home: Home, name: str) -> dict[str, Any]:
    """One index that cannot be read must not hide the others."""
    try:
        return {**_described(home, name), "error": None}
    except DgpunetError as error:
        return {"index": name, "error": error.to_json()}


def _line(found: dict[str, Any]) -> str:
    if found["error"] is not None:
        return f"{found['index']:<24} {found['error']['message']}"
    told = f"{found['files']} files  {found['chunks']} chunks  {found['bytes'] / (1 << 20):.1f} MiB"
    return f"{found['index']:<24} {told}  {found['model']}  {found['published']}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k}={v}" for k, v in sorted(value.items())) or "-"
    if isinstance(value, list | tuple):
        return "  ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
