"""A text cut into chunks that fit the model, with the exact lines of each.

Lines are packed from the top until the next would not fit the budget of tokens, then cut at the best place so far: before a
definition, else after a blank line, else where the indentation is least. A definition that begins after enough text starts a
chunk of its own. A line longer than the budget is split inside; the pieces' span is that line. Blank lines at either end belong
to no chunk. So every non-blank line lies in a chunk, in order, and no two chunks share a line except for the pieces of a long
one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dgpunet_dask.retrieval.outline import Definition, outline
from dgpunet_dask.retrieval.tokens import TextTokens

#: Changes whenever the same text would be cut differently, or its chunks described differently: old chunks are then not reused.
CHUNKER_VERSION: Final = 1
#: A definition closes the chunk before it once that has this share of the budget; smaller ones go together.
_ENOUGH: Final = 8
#: Scores of cutting before a line; the later of two equal ones wins.
_DEFINITION, _BLANK, _LEFT = 3.0, 2.0, 1.0
#: A cut may waste at most half of the budget for a better place.
_LEAST_FILL: Final = 2
#: What a line right above a definition begins with if it belongs to it.
_COMMENTS: Final = ("#", "//", "/*", "*", "--", ";;", "@", "[<", "[[")


@dataclass(frozen=True)
class Chunk:
    """A piece of a file. The file's path is not part of it: a copy or a renamed file has the same chunks.

    Parameters
    ----------
    key
        The file's content digest.
    start_line, end_line
        1-based, inclusive.
    symbol
        The definition that it begins in, or the first that begins in it.
    tokens
        Of `text`, without special tokens.
    """

    key: str
    text: str
    start_line: int
    end_line: int
    symbol: str | None
    language: str
    tokens: int


@dataclass(frozen=True)
class _Piece:
    text: str
    start: int
    end: int
    tokens: int


def chunks_of(files: Sequence[tuple[str, str, str]], tokens: TextTokens) -> Iterator[Chunk]:
    """Yield the chunks of ``(key, text, language)`` files, file by file, each within the model's budget."""
    starts = tokens.starts([text for _, text, _ in files])
    for (key, text, language), begins in zip(files, starts, strict=True):
        definitions = outline(text, language)
        pieces = _counted(_cut(text, begins, definitions, tokens.budget), tokens)
        for piece in pieces:
            yield Chunk(key, piece.text, piece.start, piece.end, _symbol(definitions, piece), language, piece.tokens)


def _counted(pieces: Sequence[_Piece], tokens: TextTokens) -> Iterator[_Piece]:
    """Count each piece on its own: some tokenizers see more tokens in a part than the whole had there. Too long ones are halved."""
    for piece, count in zip(pieces, tokens.count([p.text for p in pieces]), strict=True):
        if count <= tokens.budget or len(piece.text) < 2:
            yield _Piece(piece.text, piece.start, piece.end, count)
        else:
            yield from _counted(_halves(piece), tokens)


def _halves(piece: _Piece) -> list[_Piece]:
    lines = piece.text.split("\n")
    if len(lines) == 1:
        middle = len(piece.text) // 2
        halves = (piece.text[:middle], piece.text[middle:])
        return [_Piece(half, piece.start, piece.end, 0) for half in halves if half.strip()]
    middle = len(lines) // 2
    parts = ((lines[:middle], piece.start), (lines[middle:], piece.start + middle))
    return [p for part, start in parts if (p := _trimmed(part, start, 0)) is not None]


def _cut(text: str, begins: Sequence[int], definitions: Sequence[Definition], budget: int) -> list[_Piece]:
    lines = _Lines(text, begins)
    marks = _Marks(lines.lines, definitions)
    pieces: list[_Piece] = []
    start = 0
    while start < len(lines.lines):
        if lines.tokens(start, start + 1) > budget:
            pieces += lines.split(start, budget)
            start += 1
            continue
        end = _end(start, lines, marks, budget)
        piece = _trimmed(lines.lines[start:end], start + 1, lines.tokens(start, end))
        pieces += [] if piece is None else [piece]
        start = end
    return pieces


class _Lines:
    """The lines of a text with the number of tokens that begin in each. Indices are 0-based and end before."""

    def __init__(self, text: str, begins: Sequence[int]) -> None:
        self.lines = text.split("\n")
        self._begins = begins
        self._offsets = [0]
        for line in self.lines:
            self._offsets.append(self._offsets[-1] + len(line) + 1)
        self._before = [bisect_left(begins, offset) for offset in self._offsets]

    def tokens(self, start: int, end: int) -> int:
        """How many tokens begin in these lines."""
        return self._before[end] - self._before[start]

    def fitting(self, start: int, budget: int) -> int:
        """The furthest end of a chunk from `start`; at least one line."""
        return max(start + 1, bisect_right(self._before, self._before[start] + budget, lo=start) - 1)

    def split(self, index: int, budget: int) -> list[_Piece]:
        """One line in pieces of `budget` tokens, cut where tokens begin."""
        line, offset = self.lines[index], self._offsets[index]
        inside = self._begins[self._before[index] : self._before[index + 1]]
        cuts = [0, *sorted({b - offset for b in inside[budget::budget]} - {0}), len(line)]
        parts = (line[a:b] for a, b in pairwise(cuts))
        return [_Piece(part, index + 1, index + 1, 0) for part in parts if part.strip()]


class _Marks:
    """Where a text is well cut.

    `score[i]` is for a cut before line i; `starts` are the lines where definitions, or the comments on them, begin.
    """

    def __init__(self, lines: Sequence[str], definitions: Sequence[Definition]) -> None:
        above = {d: _with_comments(lines, d.start - 1) for d in definitions}
        self.starts = sorted(set(above.values()))
        self._spans = sorted((begin, d.end) for d, begin in above.items())
        self.score = [_LEFT / (1 + len(line) - len(line.lstrip())) for line in lines]
        for index in range(1, len(lines)):
            if not lines[index - 1].strip():
                self.score[index] += _BLANK
        for index in self.starts:
            self.score[index] += _DEFINITION

    def whole_until(self, start: int, at: int) -> int:
        """The furthest end of the definitions that begin from `start` to before `at` and reach over it; `at` if none does."""
        first = bisect_left(self._spans, (start, 0))
        return max((end for begin, end in self._spans[first : bisect_left(self._spans, (at, 0))] if end > at), default=at)


def _with_comments(lines: Sequence[str], index: int) -> int:
    """Go up from a definition over the comments, decorators and attributes right above it."""
    while index > 0 and lines[index - 1].lstrip().startswith(_COMMENTS):
        index -= 1
    return index


def _end(start: int, lines: _Lines, marks: _Marks, budget: int) -> int:
    """Return the line before which the chunk from `start` ends."""
    limit = lines.fitting(start, budget)
    for index in marks.starts[bisect_right(marks.starts, start) : bisect_left(marks.starts, limit)]:
        if lines.tokens(start, index) * _ENOUGH >= budget and not index < marks.whole_until(start, index) <= limit:
            return index
    if limit == len(lines.lines):
        return limit
    least = next(i for i in range(start + 1, limit + 1) if i == limit or lines.tokens(start, i) * _LEAST_FILL >= budget)
    return max(range(least, limit + 1), key=lambda i: (marks.score[i], i))


def _trimmed(lines: Sequence[str], first: int, tokens: int) -> _Piece | None:
    """Return the piece of `lines` (numbered from `first`) without blank lines at its ends; ``None`` if all are blank."""
    filled = [n for n, line in enumerate(lines) if line.strip()]
    if not filled:
        return None
    return _Piece("\n".join(lines[filled[0] : filled[-1] + 1]), first + filled[0], first + filled[-1], tokens)


def _symbol(definitions: Sequence[Definition], piece: _Piece) -> str | None:
    """The innermost definition around the piece's first line, unless it only ends there what other definitions begin in."""
    around = [d for d in definitions if d.start <= piece.start <= d.end]
    inside = next((d for d in definitions if piece.start < d.start <= piece.end), None)
    if around and (inside is None or around[-1].start == piece.start or around[-1].end < inside.start):
        return around[-1].name
    return inside.name if inside else None
