"""`dgpunet-dask index`: the indexes of this home, straight from their files, or those of a cluster that is named, through its head."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import CheckFailed, DgpunetError, UsageError

if TYPE_CHECKING:
    from dgpunet_dask.config.home import Home


@click.group()
def index() -> None:
    """List, show, share, verify, compact and remove search indexes."""


@index.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_indexes(context: CliContext, as_json: bool) -> None:
    """List the indexes by name; of a cluster those that are yours or shared."""
    from dgpunet_dask.retrieval.described import all_described

    api = context.elsewhere()
    found = all_described(context.home) if api is None else api.indexes()
    if as_json:
        emit_json(found)
        return
    for one in found:
        click.echo(printable(_line(one)))


@index.command()
@click.argument("name")
@click.option("--skipped", is_flag=True, help="List each path that is not in it instead, a line of JSON with its code and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def show(context: CliContext, name: str, skipped: bool, as_json: bool) -> None:
    """Show one index: what it holds, what made it, what was skipped."""
    from dgpunet_dask.retrieval.described import described
    from dgpunet_dask.retrieval.index import check_index_name

    api = context.elsewhere()
    if skipped:
        if api is not None:
            raise UsageError(detail="The list of skipped paths lies with the index: run `index show --skipped` on the head's host.")
        _show_skipped(context.home, name)
        return
    found = {**described(context.home, name), "resident": _resident(context, name)} if api is None else api.index(check_index_name(name))
    if as_json:
        emit_json({**found, "error": None})
        return
    for key, value in found.items():
        click.echo(f"{key:<14} {printable(_plain(value))}")


def _resident(context: CliContext, name: str) -> list[dict[str, Any]]:
    """Return what workers hold of an index of this home, which the head beside its files knows; without one nobody holds anything."""
    with contextlib.suppress(DgpunetError):  # it may be ending
        beside = context.beside()
        return [] if beside is None else list(beside.index(name).get("resident") or ())
    return []


def _show_skipped(home: Home, name: str) -> None:
    from dgpunet_dask.retrieval.index import open_index
    from dgpunet_dask.retrieval.skips import read_skips

    index, manifest = open_index(home, name)
    for skip in read_skips(index.version(manifest)):
        emit_json({"code": skip.code, "path": skip.path, "why": skip.why or None}, indent=None)


@index.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Take it back: its owner and operators alone read it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def share(context: CliContext, name: str, off: bool, as_json: bool) -> None:
    """Let every user of the cluster read and search an index that is yours."""
    from dgpunet_dask.retrieval.index import Index, check_index_name

    api = context.elsewhere()
    if api is None:
        shared = Index(context.home, check_index_name(name)).share(shared=not off).shared
    else:
        shared = bool(api.index_share(check_index_name(name), shared=not off)["shared"])
    if as_json:
        emit_json({"index": name, "shared": shared, "error": None})
    else:
        told = "shared with every user" if shared else "its owner's alone"
        click.echo(f"{name} is {told}.", err=True)


@index.command("verify")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def verify_index(context: CliContext, name: str, as_json: bool) -> None:
    """Compare an index with its digests, its counts and the files it was made from; exit code 3 where something is wrong."""
    from dgpunet_dask.retrieval.index import check_index_name
    from dgpunet_dask.retrieval.verify import verify

    api = context.elsewhere()
    found = verify(context.home, name).to_json() if api is None else api.index_verify(check_index_name(name))
    if as_json:
        emit_json({**found, "error": None})
    else:
        for fault in found["faults"]:
            click.echo(printable(fault))
        told = f"{found['segments']} segments, {found['files']} files, {found['chunks']} chunks, {found['checked_spans']} spans compared"
        click.echo(f"{told}; {found['changed']} files changed since and {found['gone']} are gone.", err=True)
    if found["faults"]:
        raise SystemExit(CheckFailed.exit_code)


@index.command("compact")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def compact_index(context: CliContext, name: str, as_json: bool) -> None:
    """Merge an index's segments into one without what it no longer lists. It can be searched and published into meanwhile."""
    from dgpunet_dask.retrieval.compacting import compact
    from dgpunet_dask.retrieval.index import check_index_name

    api = context.elsewhere()
    found = {"index": name, **asdict(compact(context.home, name))} if api is None else api.index_compact(check_index_name(name))
    if as_json:
        emit_json({**found, "error": None})
    else:
        told = f"{found['segments']} segments with {found['rows']} rows"
        click.echo(f"{name}: {told}, before {found['segments_before']} with {found['rows_before']}.", err=True)


@index.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def remove(context: CliContext, name: str, as_json: bool) -> None:
    """Remove an index for good. Waits for a publication that is under way."""
    from dgpunet_dask.retrieval.index import Index, check_index_name

    api = context.elsewhere()
    if api is None:
        Index(context.home, check_index_name(name)).remove()
    else:
        api.index_remove(check_index_name(name))
    if as_json:
        emit_json({"index": name, "removed": True, "error": None})
    else:
        click.echo(f"Removed {name}.", err=True)


def _line(found: dict[str, Any]) -> str:
    if found["error"] is not None:
        return f"{found['index']:<24} {found['error']['message']}"
    told = f"{found['files']} files  {found['chunks']} chunks  {found['bytes'] / (1 << 20):.1f} MiB"
    whose = f"{found['owner'] or '-'}{', shared' if found['shared'] else ''}"
    return f"{found['index']:<24} {told}  {found['model']}  {found['published']}  {whose}{_freshness(found)}"


def _freshness(found: dict[str, Any]) -> str:
    """Return how long ago an index was compared with its trees, and whether something follows these; a head of an older release does not say."""
    ages, watch = found.get("age_s") or {}, found.get("watch")
    told = "" if ages.get("reconciled") is None else f"  compared with its trees {ages['reconciled']:.0f} s ago"
    if watch is None:
        return told
    return told + (f", followed, {watch['paths']} changes behind for {watch['behind_s']:.0f} s" if watch["paths"] else ", followed, up to date")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k}={v}" for k, v in sorted(value.items())) or "-"
    if isinstance(value, list | tuple):
        return "  ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
