"""What speaks for or against a chunk as the answer to a query, each a number from 0 to 1. Pure.

Nothing here reads more of a chunk's text than its first lines, so that hundreds of candidates are judged within a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Final, NamedTuple

from dgpunet_dask.retrieval.words import FUNCTION_WORDS, stem, whole, words
from dgpunet_dask.retrieval.words import asked as asked_words


class Candidate(NamedTuple):
    """A chunk that may be the answer.

    Parameters
    ----------
    key, ordinal
        The content digest of its file, and which of that file's chunks it is.
    symbol, scope
        The definition's name, qualified or not, and what encloses it; ``None`` where not known.
    kind
        What the definition is (``function``, ``class``, …) where the chunker tells.
    dense, lexical
        Cosine and BM25 score; ``None`` where not among the best of that kind.
    """

    key: str
    ordinal: int
    path: str
    start_line: int
    end_line: int
    symbol: str | None
    kind: str | None
    scope: str | None
    language: str
    text: str
    dense: float | None
    lexical: float | None

    def with_scores(self, dense: float | None, lexical: float | None) -> Candidate:
        """Return it with the scores that it does not have yet."""
        known = (self.dense if self.dense is not None else dense, self.lexical if self.lexical is not None else lexical)
        return Candidate(*self[:-2], *known)


@dataclass(frozen=True)
class Asked:
    """A query as the rules see it.

    Parameters
    ----------
    stems
        Of its words, function words left out.
    names
        What is spelled like an identifier in it, or stands alone, without joints and lower-cased.
    definition
        Matches where a text defines one of these names; ``None`` without names.
    spelled
        The names as `definition` looks for them.
    symbolic
        Whether it names a symbol more than it tells something.
    side
        Which kinds of side path it asks for itself.
    """

    stems: frozenset[str]
    names: frozenset[str]
    definition: re.Pattern[str] | None
    symbolic: bool
    side: frozenset[str]
    spelled: tuple[str, ...] = ()


#: Spelled as only code is: joined by underscores or dots, capitals inside, called, or in backticks.
_IDENTIFIER: Final = re.compile(r"`([^`\s]+)`|\b(\w*[^\W_]_\w+|_+[^\W_]\w*|[^\W\d]\w*(?:(?:\.|::|->|#)[^\W\d]\w+)+|[^\W_]*[a-z0-9][A-Z]\w*)\b|\b([^\W\d]\w*)\(")
#: What stands before a name where it is defined, in the languages that have such words; ``(…)`` is Go's receiver.
_KEYWORDS: Final = (
    "def|class|function|func|fn|fun|struct|interface|trait|enum|union|module|namespace|object|protocol|record|sub|proc|type"
    "|typedef|defmodule|defp|define"
)
#: A query of so few words without any function word is a name as much as it is prose.
_FEW: Final = 2
_SIDE: Final = {
    "tests": re.compile(r"(?:^|/)(?:tests?|testing|spec|specs|__tests__|testdata|fixtures)/|(?:^|/)(?:test_|conftest)[^/]*$|[._-](?:tests?|spec)\.\w+$|Tests?\.(?:java|kt|cs|scala)$"),
    "examples": re.compile(r"(?:^|/)(?:examples?|samples?|demos?|tutorials?|benchmarks?|bench)/", re.IGNORECASE),
    "vendored": re.compile(r"(?:^|/)(?:_?vendor(?:ed)?|third[_-]?party|node_modules|extern(?:al)?s?|deps)/", re.IGNORECASE),
    "generated": re.compile(r"(?:^|/)(?:generated|gen)/|(?:_pb2(?:_grpc)?\.pyi?|\.pb\.\w+|\.g\.\w+|[._-]generated\.\w+|\.min\.\w+)$", re.IGNORECASE),
}  # fmt: skip
#: Stems that ask for a side path, which is then no longer one.
_ASKS_SIDE: Final = {
    **dict.fromkeys(map(stem, ("test", "spec", "fixture", "mock")), "tests"),
    **dict.fromkeys(map(stem, ("example", "sample", "demo", "benchmark", "tutorial")), "examples"),
    **dict.fromkeys(map(stem, ("vendor", "vendored")), "vendored"),
    **dict.fromkeys(map(stem, ("generated", "generator")), "generated"),
}
#: What stands between a scope and a name.
_SCOPED: Final = re.compile(r"\.|::|->|#")
_PIECE: Final = re.compile(r"\w+")
#: What a line begins with that is no code: comments, decorators and attributes, which stand above a definition.
_ABOVE: Final = ("@", "#", "//", "/*", "*", "--", ";", "[", '"""', "'''")
#: In so many lines of code a definition's name is reached; some styles put the type on a line of its own.
_HEAD: Final = 2
#: Comments above a definition may be long; further down nothing is looked for.
_ABOVE_AT_MOST: Final = 50
_WORD: Final = re.compile(r"\w")
#: A chunk of so few characters holds a signature and little more.
_SHORT: Final = 80
#: What a definition counts that is not the one its chunk begins with.
_AMONG_OTHERS: Final = 0.8
#: Files of these names say nothing.
_MODULES: Final = frozenset(map(stem, ("init", "main", "index", "mod", "lib", "utils", "common", "base", "core", "helpers")))


def read_query(query: str) -> Asked:
    """Return what the rules need to know of a query."""
    terms = frozenset(asked_words(query))
    every = query.split()
    spelled = [next(filter(None, found)) for found in _IDENTIFIER.findall(query)]
    spelled += every if len(every) <= _FEW and not {w.casefold() for w in every} & FUNCTION_WORDS else []
    own = [name for text in spelled if whole(name := _SCOPED.split(text)[-1])]
    names = frozenset(map(whole, own))
    prose = sum(word.isalpha() for word in every)
    asked_side = frozenset(_ASKS_SIDE[term] for term in terms if term in _ASKS_SIDE)
    looked_for = tuple(sorted({name.strip("()`:.,;") for name in own}))
    return Asked(stems(query) & terms, names, _definition(looked_for), bool(names) and prose <= 2 * len(names), asked_side, looked_for)


def _definition(names: Iterable[str]) -> re.Pattern[str] | None:
    either = "|".join(map(re.escape, names))
    return re.compile(rf"\b(?:{_KEYWORDS})\s+(?:\([^)\n]*\)\s*)?(?:{either})\b") if either else None


@lru_cache(1 << 16)
def stems(name: str) -> frozenset[str]:
    """Return the stems of a name's parts."""
    return frozenset(chain.from_iterable(t[1:] if len(t) > 1 else t for t in map(words, _PIECE.findall(name))))


def own_name(candidate: Candidate) -> str:
    """Return the last part of a qualified name."""
    return (candidate.symbol or "").rpartition(".")[2]


def defines(asked: Asked, candidate: Candidate) -> float:
    """It begins the definition of a name in the query, or holds it among others."""
    if whole(own_name(candidate)) in asked.names and begins_definition(asked, candidate):
        return 1.0
    text = candidate.text
    # most texts do not even hold the name, and looking for that is a hundred times as fast as the pattern
    if asked.definition is None or not any(name in text for name in asked.spelled):
        return 0.0
    return _AMONG_OTHERS if asked.definition.search(text) else 0.0


def query_in_name(asked: Asked, candidate: Candidate) -> float:
    """Which share of the query's words its name has."""
    return len(stems(own_name(candidate)) & asked.stems) / len(asked.stems) if asked.stems else 0.0


def scope_named(asked: Asked, candidate: Candidate) -> float:
    """Which share of the words of what encloses it the query has."""
    of_scope = stems(f"{candidate.scope or ''} {(candidate.symbol or '').rpartition('.')[0]}")
    return len(of_scope & asked.stems) / len(of_scope) if of_scope else 0.0


def stem_named(asked: Asked, candidate: Candidate) -> float:
    """Which share of the words of its file's name the query has."""
    of_file = stems(candidate.path.rpartition("/")[2].partition(".")[0]) - _MODULES
    return len(of_file & asked.stems) / len(of_file) if of_file else 0.0


def begins_definition(_: Asked, candidate: Candidate) -> float:
    """Its symbol's name stands in its first lines of code, as it does where the definition begins, in whatever language."""
    name = own_name(candidate)
    return float(bool(name) and name in candidate.text and any(_has(line, name) for line in _head(candidate.text)))


def _head(text: str) -> Iterator[str]:
    """Yield the first `_HEAD` lines of code, below comments and decorators."""
    lines = map(str.strip, _lines(text))
    return islice((line for line in lines if line and not line.startswith(_ABOVE)), _HEAD)


def _lines(text: str) -> Iterator[str]:
    """Yield the first lines of `text`, and all that follows them as one; mostly one or two are wanted."""
    at = 0
    for _ in range(_ABOVE_AT_MOST):
        end = text.find("\n", at)
        if end < 0:
            break
        yield text[at:end]
        at = end + 1
    yield text[at:]


def _has(line: str, name: str) -> bool:
    """Whether `name` stands in `line` as a word of its own; a pattern for each name would take most of the time."""
    at = line.find(name)
    while at >= 0:
        if not _WORD.match(line, at + len(name)) and not (at and _WORD.match(line, at - 1)):
            return True
        at = line.find(name, at + 1)
    return False


def stub(_: Asked, candidate: Candidate) -> float:
    """How far it is from saying anything: 1 for nothing, 0 from `_SHORT` characters on."""
    return max(0.0, 1 - len(candidate.text) / _SHORT)


def side_path(asked: Asked, candidate: Candidate) -> float:
    """It lies among tests, examples, vendored or generated code, and the query does not ask for those."""
    return float(bool(side_kinds(candidate.path) - asked.side))


@lru_cache(1 << 14)
def side_kinds(path: str) -> frozenset[str]:
    """Return which kinds of side path this is: ``tests``, ``examples``, ``vendored``, ``generated``."""
    return frozenset(kind for kind, pattern in _SIDE.items() if pattern.search(path))
