"""Which lines of a text belong together, before the model's budget cuts what is too large. Pure.

A text is first laid out flat: whole definitions, the heads of those that are cut at their parts, and what lies between. Then small
neighbours are joined.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from dgpunet_dask.retrieval.grammars import CLASSES
from dgpunet_dask.retrieval.syntax import Definition, Outline

#: From so many tokens on a definition stands for itself (in a small budget from an eighth of it).
ENOUGH: Final = 32
#: No more tokens than this are made of several things, whatever the model could read: its one vector would stand for none of them.
TOGETHER: Final = 256
#: Statements and paragraphs that no definition or heading holds together: a text without headings is no one thing either.
LOOSE: Final = 512
_WORD: Final = re.compile(r"\w")
#: What is cut at its parts though it fits, if two of them could stand for themselves twice over.
_CONTAINERS: Final = CLASSES | {"module"}
_FUNCTIONS: Final = frozenset(("function", "method"))

Tokens = Callable[[int, int], int]


@dataclass(frozen=True)
class Region:
    """Rows (0-based, to before `end`).

    Parameters
    ----------
    of
        The definition that they stand for, or lie in.
    owner
        What this one lies in; the definition itself for what lies between its parts.
    begins
        Whether they begin with their definition.
    tail
        Whether they end what they lie in.
    """

    start: int
    end: int
    of: Definition | None
    owner: Definition | None
    begins: bool = False
    tail: bool = False


def regions(lines: Sequence[str], outline: Outline, tokens: Tokens, budget: int) -> Iterator[Region]:
    """Yield regions that cover all rows, in order; those over the budget are to be cut."""
    sizes = _Sizes(tokens, budget, outline)
    joined: Region | None = None
    for region in _Layout(sizes, len(lines)).flat():
        if joined is None:
            joined = region
        elif _together(joined, region, lines, sizes):
            of, begins = (joined.of, joined.begins) if joined.begins or not region.begins else (region.of, True)
            joined = Region(joined.start, region.end, of, joined.owner, begins, joined.tail)
        else:
            yield joined
            joined = region
    if joined is not None:
        yield joined


def _together(left: Region, right: Region, lines: Sequence[str], sizes: _Sizes) -> bool:
    both = sizes.tokens(left.start, right.end)
    small = sizes.tokens(right.start, right.end) < sizes.enough
    if not right.begins and small and (right.tail or not any(_WORD.search(line) for line in lines[right.start : right.end])):
        return both <= sizes.budget  # what closes a definition belongs to the end of it
    if both > sizes.together or left.owner != right.owner:
        return False
    open_ = sizes.tokens(left.start, left.end) < sizes.enough
    if right.begins and not small:
        return open_ and not left.begins
    return open_ or not (left.begins or right.begins)


@dataclass
class _Sizes:
    tokens: Tokens
    budget: int
    outline: Outline
    enough: int = field(init=False)
    together: int = field(init=False)

    def __post_init__(self) -> None:
        self.enough = min(self.budget // 8, ENOUGH)
        self.together = min(self.budget, TOGETHER)

    def begin(self, one: Definition) -> int:
        """The first row of a definition with the comments right above it."""
        return self.outline.above.get(one.start - 2, one.start - 1)

    def whole(self, index: int) -> bool:
        """Whether a definition is one chunk."""
        one = self.outline.definitions[index]
        size = self.tokens(self.begin(one), one.end)
        if size > self.budget:
            return False
        if size <= self.together and one.kind not in _CONTAINERS:
            return True
        return self._sizeable(index) < 2

    def _sizeable(self, index: int) -> int:
        """How many parts of a definition could well stand for themselves."""
        found = self.outline.definitions
        upto = bisect_right(found, found[index].end, key=lambda d: d.start)
        return sum(self.tokens(d.start - 1, min(d.end, found[index].end)) >= 2 * self.enough for d in found[index + 1 : upto])


class _Layout:
    """Lays a text out flat. `_row` is how far it has come."""

    def __init__(self, sizes: _Sizes, rows: int) -> None:
        self._sizes = sizes
        self._rows = rows
        self._row = 0
        self._open: list[tuple[Definition, int]] = []

    def flat(self) -> Iterator[Region]:
        """Yield the regions from the first row to the last."""
        for index, one in enumerate(self._sizes.outline.definitions):
            begin = self._sizes.begin(one)
            yield from self._close(begin)
            if not self._parts(one, begin):
                continue
            yield from self._upto(begin)
            if self._sizes.whole(index):
                yield Region(begin, one.end, one, self._owner, begins=True)
                self._row = one.end
            else:
                self._open.append((one, begin))
        yield from self._close(self._rows)
        yield from self._upto(self._rows)

    @property
    def _owner(self) -> Definition | None:
        return self._open[-1][0] if self._open else None

    def _parts(self, one: Definition, begin: int) -> bool:
        """Whether a definition can be parted from what is around it: not if they share a line, nor if it is a function's small helper."""
        if begin < self._row or (self._open and (begin == self._open[-1][1] or one.end > self._open[-1][0].end)):
            return False
        helper = self._owner is not None and self._owner.kind in _FUNCTIONS
        return not (helper and self._sizes.tokens(begin, one.end) < self._sizes.enough)

    def _close(self, row: int) -> Iterator[Region]:
        """End what ends at or before `row`."""
        while self._open and self._open[-1][0].end <= row:
            yield from self._upto(self._open[-1][0].end, tail=True)
            self._open.pop()

    def _upto(self, row: int, *, tail: bool = False) -> Iterator[Region]:
        """What lies between the parts of the innermost open definition, or between definitions."""
        if row <= self._row:
            return
        owner = self._owner
        begins = bool(self._open) and self._row == self._open[-1][1]
        around = self._open[-2][0] if begins and len(self._open) > 1 else None
        yield Region(self._row, row, owner, around if begins else owner, begins, tail and not begins)
        self._row = row
