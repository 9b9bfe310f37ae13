"""`dgpunet-dask model`: the models that jobs on a head have named, beside the shipped one."""

from __future__ import annotations

from pathlib import Path

import click

from dgpunet_dask.cli.context import CliContext, emit_json, moment, pass_context, table
from dgpunet_dask.errors import MissingPath


@click.group()
def model() -> None:
    """List and share the models that users brought."""


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def list_models(context: CliContext, as_json: bool) -> None:
    """List the models that are yours or shared, by name. The shipped minilm is everybody's and is not among them."""
    found = context.reach().models()
    if as_json:
        emit_json({"models": found, "error": None})
        return
    rows = [[m["id"], m["owner"] or "-", "yes" if m["shared"] else "no", moment(m["since_s"]), m["name"]] for m in found]
    table(["id", "owner", "shared", "since", "name"], rows)


@model.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def digest(folder: Path, as_json: bool) -> None:
    """Print the digest of the model in FOLDER: over the names and contents of all files that are loaded. `rerankers:` in config.yaml takes it."""
    from dgpunet_dask.retrieval.modelfiles import find_model

    if not folder.is_dir():
        raise MissingPath(path=folder)
    found = find_model(str(folder.absolute())).digest
    if as_json:
        emit_json({"folder": str(folder.absolute()), "digest": found, "error": None})
    else:
        click.echo(found)


@model.command()
@click.argument("model_id", metavar="ID")
@click.option("--off", is_flag=True, help="Take it back: jobs of its owner and of operators alone use it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_context
def share(context: CliContext, model_id: str, off: bool, as_json: bool) -> None:
    """Let every user's jobs use a model that is yours."""
    found = context.reach().model_share(model_id, shared=not off)
    if as_json:
        emit_json({**found, "error": None})
        return
    told = "shared with every user" if found["shared"] else "its owner's alone"
    click.echo(f"model {model_id} is {told}", err=True)
