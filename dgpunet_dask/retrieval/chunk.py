"""A text cut into chunks that fit the model, with the exact lines of each.

A definition that has enough text and fits is a chunk of its own: one function, one chunk. What is too large is cut at its parts: a
class becomes its header and its methods, a long function its statements, a section its paragraphs, always at the shallowest place
that leaves the pieces of a like size. Small neighbours go together, but never with a definition that stands for itself. A line
longer than the budget is split inside; the pieces' span is that line. Blank lines at either end belong to no chunk. So every
non-blank line lies in a chunk, in order, and no two chunks share a line except for the pieces of a long one.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dgpunet_dask.retrieval.outline import read_outline
from dgpunet_dask.retrieval.regions import LOOSE, Region, regions
from dgpunet_dask.retrieval.syntax import Definition, Outline
from dgpunet_dask.retrieval.tokens import TextTokens

#: Languages of which only the grammar is another: they go by one name.
_NAMED: Final = {"tsx": "typescript"}
#: Changes whenever the same text would be cut differently, or its chunks described differently: old chunks are then not reused.
CHUNKER_VERSION: Final = 2
#: A row that no part begins at is a worse place than any that one does.
_NO_PART: Final = 100
#: A piece under half of its fair share counts as so many levels of depth; a mere scrap, on either side, as more than any real depth.
_THIN: Final = 2.0
_SCRAP: Final = 10.0
#: A blank line before a place is worth half a level.
_BLANK: Final = 0.5

_LOG: Final = logging.getLogger(__name__)


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
        The innermost definition that it begins in; of several small ones together, the first.
    tokens
        Of `text`, without special tokens.
    kind, scope
        Of the symbol: what it is (`grammars.KINDS`), and the name of what it lies in.
    """

    key: str
    text: str
    start_line: int
    end_line: int
    symbol: str | None
    language: str
    tokens: int
    kind: str | None = None
    scope: str | None = None


@dataclass(frozen=True)
class _Piece:
    text: str
    start: int
    end: int
    tokens: int
    of: Definition | None


def chunks_of(
    files: Sequence[tuple[str, str, str]], tokens: TextTokens, count: Callable[[str], None] | None = None
) -> Iterator[Chunk]:
    """Yield the chunks of ``(key, text, language)`` files, file by file, each within the model's budget.

    `count` is told ``unparsed`` of each file that its language's grammar could not read, so that it was cut by line patterns.
    """
    starts = tokens.starts([text for _, text, _ in files])
    for (key, text, language), begins in zip(files, starts, strict=True):
        outline = read_outline(text, language)
        if outline.unparsed is not None:
            _LOG.warning("a %s text of %d characters is cut by line patterns: %s", language, len(text), outline.unparsed)
            if count is not None:
                count("unparsed")
        for piece in _counted(_cut(_Lines(text, begins), outline, tokens.budget), tokens):
            name, kind, scope = (piece.of.name, piece.of.kind, piece.of.scope) if piece.of else (None, None, None)
            yield Chunk(key, piece.text, piece.start, piece.end, name, _NAMED.get(language, language), piece.tokens, kind, scope)


def _counted(pieces: Sequence[_Piece], tokens: TextTokens) -> Iterator[_Piece]:
    """Count each piece on its own: some tokenizers see more tokens in a part than the whole had there. Too long ones are halved."""
    for piece, count in zip(pieces, tokens.count([p.text for p in pieces]), strict=True):
        if count <= tokens.budget or len(piece.text) < 2:
            yield _Piece(piece.text, piece.start, piece.end, count, piece.of)
        else:
            yield from _counted(_halves(piece), tokens)


def _halves(piece: _Piece) -> list[_Piece]:
    lines = piece.text.split("\n")
    if len(lines) == 1:
        middle = len(piece.text) // 2
        halves = (piece.text[:middle], piece.text[middle:])
        return [_Piece(half, piece.start, piece.end, 0, piece.of) for half in halves if half.strip()]
    middle = len(lines) // 2
    parts = ((lines[:middle], piece.start), (lines[middle:], piece.start + middle))
    return [p for part, start in parts if (p := _trimmed(part, start, piece.of)) is not None]


class _Lines:
    """The lines of a text with the number of tokens that begin in each. Rows are 0-based and end before."""

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

    def split(self, row: int, budget: int, of: Definition | None) -> list[_Piece]:
        """One line in pieces of `budget` tokens, cut where tokens begin."""
        line, offset = self.lines[row], self._offsets[row]
        inside = self._begins[self._before[row] : self._before[row + 1]]
        cuts = [0, *sorted({b - offset for b in inside[budget::budget]} - {0}), len(line)]
        parts = (line[a:b] for a, b in pairwise(cuts))
        return [_Piece(part, row + 1, row + 1, 0, of) for part in parts if part.strip()]


def _cut(lines: _Lines, outline: Outline, budget: int) -> list[_Piece]:
    pieces: list[_Piece] = []
    breaks: dict[int, int] | None = None
    half = min(budget, LOOSE) // 2  # such parts are cut too where nothing better is at hand
    for region in regions(lines.lines, outline, lines.tokens, budget):
        limit = budget if region.begins else min(budget, LOOSE)
        if lines.tokens(region.start, region.end) <= limit:
            piece = _trimmed(lines.lines[region.start : region.end], region.start + 1, region.of)
            pieces += [] if piece is None else [piece]
            continue
        if breaks is None:
            breaks = outline.breaks(lambda start, end: lines.tokens(start, end) > half)
        pieces += _split(region, lines, breaks, limit)
    return pieces


def _split(region: Region, lines: _Lines, breaks: dict[int, int], budget: int) -> Iterator[_Piece]:
    start = region.start
    while start < region.end:
        if lines.tokens(start, start + 1) > budget:
            yield from lines.split(start, budget, region.of)
            start += 1
            continue
        end = _end(start, region.end, lines, breaks, budget)
        piece = _trimmed(lines.lines[start:end], start + 1, region.of)
        if piece is not None:
            yield piece
        start = end


def _end(start: int, last: int, lines: _Lines, breaks: dict[int, int], budget: int) -> int:
    """Return the row before which the piece from `start` ends: at the shallowest part, near to equal shares of what is left."""
    limit = lines.fitting(start, budget)
    if limit >= last:
        return last
    left = lines.tokens(start, last)
    share = left // -(-left // budget)

    def cost(row: int) -> tuple[float, int]:
        fill = lines.tokens(start, row)
        text = lines.lines[row]
        depth = breaks.get(row, _NO_PART + len(text) - len(text.lstrip()))
        blank = _BLANK if not lines.lines[row - 1].strip() else 0.0
        scrap = _SCRAP if min(fill, left - fill) * 4 < share else 0.0
        return depth - blank + scrap + _THIN * (fill * 2 < share), abs(fill - share)

    return min(range(start + 1, limit + 1), key=cost)


def _trimmed(lines: Sequence[str], first: int, of: Definition | None) -> _Piece | None:
    """Return the piece of `lines` (numbered from `first`) without blank lines at its ends; ``None`` if all are blank."""
    filled = [n for n, line in enumerate(lines) if line.strip()]
    if not filled:
        return None
    return _Piece("\n".join(lines[filled[0] : filled[-1] + 1]), first + filled[0], first + filled[-1], 0, of)
