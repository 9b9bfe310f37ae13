"""`dgpunet-dask search`: hits of an index, through a head that has it open, or straight from its files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.cli.hits import answers, hit_options, wanted_hits
from dgpunet_dask.errors import MalformedFile, MissingPath, Problem, UnreadablePath, UsageError

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.search import Query

#: Lines of a hit's text that are shown to people.
_SHOWN_LINES: Final = 6


@click.command()
@click.argument("index")
@click.argument("query", required=False)
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='Lines of {"id", "query"} instead of one query; needs --json.',
)
@click.option("-k", "k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Number of hits.")
@hit_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --queries one object a line.")
@pass_context
def search(
    context: CliContext,
    index: str,
    query: str | None,
    queries: Path | None,
    k: int,
    path_glob: str | None,
    lang: str | None,
    kinds: tuple[str, ...],
    rerank: str | None,
    as_json: bool,
) -> None:
    """Search INDEX for QUERY; better hits come first."""
    if (query is None) == (queries is None):
        raise UsageError(detail="Give either a query or `--queries FILE.jsonl`.")
    if queries is not None and not as_json:
        raise UsageError(detail="`--queries` prints one JSON object a line: add `--json`.")
    wanted = wanted_hits(k, path_glob, lang, kinds, rerank)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before the first import of numpy; `hits` says why
    from dgpunet_dask.retrieval.search import Query

    asked = [Query(query)] if query is not None else _read_queries(queries)  # type: ignore[arg-type]  # one of both is given
    for answer in answers(context, index, asked, wanted):
        if as_json:
            emit_json(answer, indent=None if queries else 2)
        else:
            _show(answer["hits"])


def _read_queries(file: Path) -> list[Query]:
    """Read the lines of a queries file; every mistake is told at once. ``-`` is standard input."""
    from dgpunet_dask.retrieval.search import Query

    found, problems = [], []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError as error:
            problems.append(Problem(str(file), number, getattr(error, "colno", 1), "not JSON; write one object a line"))
            continue
        if isinstance(raw, dict) and isinstance(raw.get("query"), str) and "id" in raw:
            found.append(Query(raw["query"], raw["id"]))
        else:
            problems.append(Problem(str(file), number, 1, 'write {"id": ..., "query": "..."}'))
    if problems:
        raise MalformedFile(problems)
    return found


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text("utf-8")
    except FileNotFoundError as error:
        raise MissingPath(path=file) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadablePath(path=file, why=getattr(error, "strerror", None) or "it is not UTF-8") from error


def _show(hits: list[dict[str, Any]]) -> None:
    for hit in hits:
        place = click.style(f"{printable(hit['path'])}:{hit['start_line']}-{hit['end_line']}", bold=True)
        symbol = f"  {printable(hit['symbol'])}" if hit["symbol"] else ""
        click.echo(f"{place}  {hit['score']:.4f}{symbol}")
        lines = hit["text"].split("\n")
        for line in lines[:_SHOWN_LINES]:
            click.echo(f"    {printable(line[:160])}")
        if len(lines) > _SHOWN_LINES:
            click.echo(f"    … {len(lines) - _SHOWN_LINES} more")
    if not hits:
        click.echo("No hits.", err=True)
