"""From two lists of candidates to one ranking: scores fused, then adjusted by rules that each say why. Pure.

A candidate's score is the sum over `RULES` of weight × value, where a value lies between 0 and 1, and of what its neighbours
add. The first two rules are the fusion itself, a convex combination of normalised scores, which keeps what reciprocal ranks
lose: by how much one hit is better than the next (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
Retrieval", 2023). The others know code. `bench/retrieval.py` says what they are worth, on packages that the weights were not
chosen by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from dgpunet_dask.retrieval import signals
from dgpunet_dask.retrieval.signals import Asked, Candidate, read_query

#: A path hit: score, path, key, as `LexicalIndex.search_paths` gives it.
PathHit = tuple[float, str, str]


class Ranked(NamedTuple):
    """A candidate with its place's reason: `why` has the contribution of each rule that had one, and they sum to `score`."""

    candidate: Candidate
    score: float
    why: dict[str, float]


class Scores(NamedTuple):
    """What one query's raw scores are normalised by."""

    dense_low: float
    dense_high: float
    lexical_high: float
    path_high: float
    paths: dict[tuple[str, str], float]


Value = Callable[[Asked, Scores, Candidate], float]


class Rule(NamedTuple):
    """A named reason to rank a candidate higher (or lower), with its weight for prose and for a query that names a symbol."""

    name: str
    prose: float
    symbol: float
    value: Value
    reason: str


def _dense(_: Asked, scores: Scores, candidate: Candidate) -> float:
    if candidate.dense is None or scores.dense_high <= scores.dense_low:
        return 0.0
    return max(0.0, (candidate.dense - scores.dense_low) / (scores.dense_high - scores.dense_low))


def _lexical(_: Asked, scores: Scores, candidate: Candidate) -> float:
    return (candidate.lexical or 0.0) / scores.lexical_high if scores.lexical_high else 0.0


def _path(_: Asked, scores: Scores, candidate: Candidate) -> float:
    return scores.paths.get((candidate.path, candidate.key), 0.0) / scores.path_high if scores.path_high else 0.0


def _of(signal: Callable[[Asked, Candidate], float]) -> Value:
    return lambda asked, _, candidate: signal(asked, candidate)


#: Chosen on the development packages of bench/retrieval.py alone, in coarse steps: finer ones would only fit those packages.
RULES: Final = (
    Rule("dense", 1.0, 0.5, _dense, "close in meaning"),
    Rule("lexical", 0.8, 1.0, _lexical, "the same words, rare ones above all"),
    Rule("path words", 0.1, 0.1, _path, "words of the query in the path"),
    Rule("defines", 0.0, 1.0, _of(signals.defines), "defines the very name that was asked for; prose mostly mentions other names"),
    Rule("query in name", 0.2, 0.2, _of(signals.query_in_name), "much of the query is in its name"),
    Rule("scope", 0.15, 0.15, _of(signals.scope_named), "what encloses it is named"),
    Rule("file stem", 0.05, 0.05, _of(signals.stem_named), "its file is named"),
    Rule("definition", 0.2, 0.2, _of(signals.begins_definition), "begins a definition, and is not the middle of one"),
    Rule("stub", -0.2, -0.2, _of(signals.stub), "too short to say more than a name"),
    Rule("side path", -0.3, -0.3, _of(signals.side_path), "tests, examples, vendored and generated code seldom answer"),
)
#: Of the best other chunk of the same file: one that stands alone is more often there by chance.
_SIBLING: Final = 0.15
#: From the third part of one definition on: they say little new.
_REPEATED: Final = -0.1


def fuse(dense: Iterable[Candidate], lexical: Iterable[Candidate], paths: Sequence[PathHit], query: str) -> list[Ranked]:
    """Rank candidates, best first, equal ones by path and line.

    A candidate in both lists counts once, with both scores. One without a score of either kind (``None``) was not among the best of
    that kind; knowing its cosine all the same ranks it better, so give it where it costs little.
    """
    asked = read_query(query)
    merged = _merged([*dense, *lexical])
    scores = _scores(merged, paths)
    weights = [(rule.name, weight, rule.value) for rule in RULES if (weight := rule.symbol if asked.symbolic else rule.prose)]
    alone = [_scored(asked, scores, weights, candidate) for candidate in merged]
    return _repeats_lowered(sorted(_with_siblings(alone), key=_order))


def _order(ranked: Ranked) -> tuple[float, str, int, int, str]:
    found = ranked.candidate
    return (-ranked.score, found.path, found.start_line, found.ordinal, found.key)


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    found: dict[tuple[str, str, int], Candidate] = {}
    for candidate in candidates:
        place = (candidate.path, candidate.key, candidate.ordinal)
        known = found.get(place)
        found[place] = candidate if known is None else known.with_scores(candidate.dense, candidate.lexical)
    return list(found.values())


def _scores(candidates: Sequence[Candidate], paths: Sequence[PathHit]) -> Scores:
    cosines = [c.dense for c in candidates if c.dense is not None]
    lexical = [c.lexical for c in candidates if c.lexical is not None]
    return Scores(
        min(cosines, default=0.0),
        max(cosines, default=0.0),
        max(lexical, default=0.0),
        max((score for score, _, _ in paths), default=0.0),
        {(path, key): score for score, path, key in paths},
    )


def _scored(asked: Asked, scores: Scores, weights: Sequence[tuple[str, float, Value]], candidate: Candidate) -> Ranked:
    why = {name: part for name, weight, value in weights if (part := weight * value(asked, scores, candidate))}
    return Ranked(candidate, sum(why.values()), why)


def _and(ranked: Ranked, rule: str, part: float) -> Ranked:
    return Ranked(ranked.candidate, ranked.score + part, ranked.why | {rule: part}) if part else ranked


def _with_siblings(ranked: Sequence[Ranked]) -> Iterator[Ranked]:
    best: dict[str, tuple[float, float]] = {}  # a file's best two; below 0 they count nothing
    for one in ranked:
        first, second = best.get(one.candidate.path, (0.0, 0.0))
        best[one.candidate.path] = (max(first, one.score), max(second, min(first, one.score)))
    for one in ranked:
        first, second = best[one.candidate.path]
        yield _and(one, "sibling", _SIBLING * (second if one.score == first else first))


def _repeats_lowered(ranked: Sequence[Ranked]) -> list[Ranked]:
    seen: Counter[tuple[str, str]] = Counter()
    found: list[Ranked] = []
    for one in ranked:
        definition = (one.candidate.path, one.candidate.symbol or f"line {one.candidate.start_line}")
        seen[definition] += 1
        found.append(_and(one, "repeated", _REPEATED if seen[definition] > 2 else 0.0))
    return sorted(found, key=_order)
