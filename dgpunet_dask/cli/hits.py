"""What `search` and `ask` have in common: which hits are wanted, and where they come from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dgpunet_dask.cli.context import CliContext
from dgpunet_dask.errors import DgpunetError

if TYPE_CHECKING:
    from dgpunet_dask.cluster.api_client import ApiClient
    from dgpunet_dask.retrieval.rerank import SecondLook
    from dgpunet_dask.retrieval.search import Filter, Query

Command = TypeVar("Command", bound=Callable[..., Any])

#: Queries of a file that are embedded together.
_BATCH: Final = 256


def hit_options(command: Command) -> Command:
    """Give a command the options that say which hits count, and in which order: ``path_glob``, ``lang``, ``kinds``, ``rerank``."""
    for option in reversed((
        click.option("--path", "path_glob", metavar="GLOB", help="Only files that match, as in .gitignore: '*.py', '/src/**/test_*'."),
        click.option("--lang", metavar="L", help="Only this language, such as python."),
        click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only parts of such a definition: function, method, class, …; repeatable."),
        click.option("--rerank", metavar="MODEL", help="Read the best hits again with this cross-encoder: a name of config.yaml, or a folder."),
    )):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Wanted:
    """How many hits are wanted, which, and what reads the best of them again."""

    k: int
    path: str | None = None
    lang: str | None = None
    kinds: tuple[str, ...] = ()
    rerank: str | None = None

    @property
    def filter(self) -> Filter:
        """What the files are asked with."""
        from dgpunet_dask.retrieval.search import Filter

        return Filter(self.path, self.lang, self.kinds)

    def request(self, queries: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a head is asked."""
        return {"queries": queries, "k": self.k, "path": self.path, "lang": self.lang, "kind": list(self.kinds), "rerank": self.rerank}


def wanted_hits(k: int, path: str | None, lang: str | None, kinds: Sequence[str], rerank: str | None) -> Wanted:
    """Return which hits are wanted.

    Raises
    ------
    BadValue
        For a kind that there is not.
    """
    from dgpunet_dask.retrieval.request import check_kinds

    return Wanted(k, path, lang, check_kinds(kinds), rerank)


def answers(context: CliContext, index: str, asked: Sequence[Query], wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Yield an answer to each query: from a cluster that is named, from the head beside these files, which has them open, or from the files."""
    api = context.elsewhere()
    if api is not None:
        yield from _answers_of(api, index, asked, wanted)
        return
    beside, told = context.beside(), 0
    if beside is not None:
        with contextlib.suppress(DgpunetError):  # the head has bounds, and may be ending: the files have the same answers
            for answer in _answers_of(beside, index, asked, wanted):
                yield answer
                told += 1
            return
    yield from _answers_from_files(context, index, asked[told:], wanted)


def _answers_from_files(context: CliContext, index: str, asked: Sequence[Query], wanted: Wanted) -> Iterator[dict[str, Any]]:
    # a query's products are too small to share: threads made them six times slower
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from dgpunet_dask.retrieval.search import open_searcher

    searcher = open_searcher(context.home, index, queries=len(asked))
    second = _second_look(context, wanted.rerank)
    for start in range(0, len(asked), _BATCH):
        yield from searcher.search(asked[start : start + _BATCH], wanted.k, wanted.filter, second)


def _second_look(context: CliContext, rerank: str | None) -> SecondLook | None:
    """Return what reads the best hits again: a model that the settings name, or one in a folder of the caller's."""
    if rerank is None:
        return None
    from dgpunet_dask.clock import SystemClock
    from dgpunet_dask.config.settings_file import read_settings
    from dgpunet_dask.retrieval.rerank import SecondLook, find_reranker, load_reranker

    known = read_settings(context.home.config).rerankers
    folder = find_reranker(rerank, known, context.home.root / "cache", folders=True)
    return SecondLook(rerank, load_reranker(folder), SystemClock.monotonic)


def _answers_of(api: ApiClient, index: str, asked: Sequence[Query], wanted: Wanted) -> Iterator[dict[str, Any]]:
    from dgpunet_dask.retrieval.index import check_index_name
    from dgpunet_dask.retrieval.request import batches

    rows = [{"query": query.query} if query.id is None else {"id": query.id, "query": query.query} for query in asked]
    for batch in batches(rows, wanted.k, reranked=wanted.rerank is not None):
        yield from api.search(check_index_name(index), wanted.request(batch))
