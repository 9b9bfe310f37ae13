"""What one search over the API may ask for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.grammars import KINDS

#: The most of one request: what it asks for has to fit into memory, and others wait meanwhile.
QUERIES_MAX: Final = 256
QUERY_CHARS_MAX: Final = 16_384
K_MAX: Final = 1000
#: Queries of one request that are reranked: each may take seconds.
RERANKED_MAX: Final = 16
HITS_MAX: Final = 10_000
FILTER_CHARS_MAX: Final = 200
#: Wildcards of a path filter. Each multiplies the ways in which a path can match, and matching lets nobody else go on.
WILDCARDS_MAX: Final = 3
#: Bytes of text that the client sends at once, far below what a request may have.
BATCH_BYTES: Final = 256 << 10


def asked_for(body: dict[str, Any]) -> dict[str, Any]:
    """Return a search request that is whole and within bounds: queries, k, path, lang, kind, rerank.

    Raises
    ------
    BadValue
        If it is not, with the bound.
    """
    queries, k = body.get("queries"), body.get("k", 10)
    if not isinstance(queries, list) or not queries or not all(map(_is_query, queries)):
        raise BadValue(what="queries", value=_shown(queries), why='send [{"id": ..., "query": "text"}, ...]')
    if len(queries) > QUERIES_MAX:
        raise BadValue(what="queries", value=len(queries), why=f"send {QUERIES_MAX} at most at once")
    longest = max(len(query["query"]) for query in queries)
    if longest > QUERY_CHARS_MAX:
        raise BadValue(what="query", value=longest, why=f"a query may have {QUERY_CHARS_MAX} characters at most")
    if isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= K_MAX:
        raise BadValue(what="k", value=_shown(k), why=f"write a number from 1 to {K_MAX}")
    if k * len(queries) > HITS_MAX:
        raise BadValue(what="k", value=k, why=f"{len(queries)} queries at once may ask for {HITS_MAX} hits together")
    return {"queries": queries, "k": k, "path": _path(body), "lang": _text(body, "lang"), "kind": _kinds(body), "rerank": _text(body, "rerank")}


def check_reranked(queries: int) -> None:
    """Refuse more queries than are reranked at once. Asked once the reranker is known to be there: without one there is no such bound.

    Raises
    ------
    BadValue
    """
    if queries > RERANKED_MAX:
        raise BadValue(what="queries", value=queries, why=f"send {RERANKED_MAX} at most at once where they are reranked")


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of definitions that a filter names, each once, in lower case and in order.

    Raises
    ------
    BadValue
        For one that there is not, with those that there are.
    """
    found = tuple(dict.fromkeys(kind.lower() for kind in kinds))
    for kind in found:
        if kind not in KINDS:
            raise BadValue(what="kind", value=kind[:80], why=f"kinds are {', '.join(sorted(KINDS))}")
    return found


def _kinds(body: dict[str, Any]) -> list[str]:
    """Return the kinds that are asked for: none, one as a text, or a list of them."""
    given = body.get("kind")
    listed = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(kind, str) and _encodes(kind) for kind in listed):
        raise BadValue(what="kind", value=_shown(given), why=f"write one of, or a list of, {', '.join(sorted(KINDS))}, or leave it out")
    return list(check_kinds(listed))


def _is_query(query: object) -> bool:
    return isinstance(query, dict) and isinstance(query.get("query"), str) and _encodes(query["query"])


def _encodes(text: str) -> bool:
    """Whether a tokenizer can take it: JSON may hold half of a surrogate pair, UTF-8 may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(body: dict[str, Any]) -> str | None:
    path = _text(body, "path")
    if path is not None and sum(map(_wildcards, path.split("/"))) > WILDCARDS_MAX:
        raise BadValue(what="path", value=path, why=f"a path filter may have {WILDCARDS_MAX} wildcards at most")
    return path


def _wildcards(segment: str) -> int:
    """Count them: only as a whole segment are two stars one wildcard, elsewhere each star in a row can match by itself."""
    return 1 if segment == "**" else sum(map(segment.count, "*?["))


def _text(body: dict[str, Any], name: str) -> str | None:
    text = body.get(name)
    if text is not None and (not isinstance(text, str) or len(text) > FILTER_CHARS_MAX or not _encodes(text)):
        raise BadValue(what=name, value=_shown(text), why=f"write a text of at most {FILTER_CHARS_MAX} characters, or leave it out")
    return text


def _shown(value: object) -> str:
    return str(value)[:80]


def batches(queries: Sequence[Mapping[str, Any]], k: int, *, reranked: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Yield `queries` in order, in lists that one request may hold with `k` hits each; what is too large by itself goes alone."""
    most = max(1, min(RERANKED_MAX if reranked else QUERIES_MAX, HITS_MAX // max(1, k)))
    batch, size = list[dict[str, Any]](), 0
    for query in queries:
        bytes_of = len(str(query).encode("utf-8", "surrogatepass"))
        if batch and (len(batch) == most or size + bytes_of > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(dict(query))
        size += bytes_of
    if batch:
        yield batch
