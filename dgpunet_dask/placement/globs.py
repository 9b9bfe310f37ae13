"""Whether two globs overlap, and whether one covers the other: exactly, for the patterns of `fnmatch` (``*``, ``?``, ``[a-z]``, ``[!x]``).

A glob is a row of tokens, and so a small automaton whose state is a place in the row. Which of a token's characters are taken changes
only at characters that stand in a glob, so that one character from each gap between those stands for all of the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

#: Sets of states after which `covers` gives up and says no; a glob that people write needs a few dozen.
MAX_STATES: Final = 5_000
_LAST: Final = 0x10FFFF


def tokens(glob: str) -> tuple[str, ...]:
    """Return the parts of `glob`: ``*``, ``?``, a set in brackets, or one character. A ``[`` that is never closed is a character."""
    found: list[str] = []
    i = 0
    while i < len(glob):
        end = set_end(glob, i) if glob[i] == "[" else None
        stop = i + 1 if end is None else end + 1
        if not (glob[i] == "*" and found[-1:] == ["*"]):
            found.append(glob[i:stop])
        i = stop
    return tuple(found)


def set_end(glob: str, start: int) -> int | None:
    """Return where the set that opens at `start` closes; a ``]`` that comes first belongs to the set. ``None``: it does not close."""
    first = start + 1 + (glob[start + 1 : start + 2] == "!")
    end = glob.find("]", first + 1 if glob[first : first + 1] == "]" else first)
    return None if end < 0 else end


def unclosed(glob: str) -> bool:
    """Whether a ``[`` in `glob` opens a set that never closes."""
    return "[" in tokens(glob)


@lru_cache(maxsize=4096)
def overlap(one: str, other: str) -> bool:
    """Whether some text is matched by both globs."""
    a, b = tokens(one), tokens(other)
    letters = _letters((*a, *b))
    seen, todo = {(0, 0)}, [(0, 0)]
    while todo:
        at = todo.pop()
        if at == (len(a), len(b)):
            return True
        for step in _steps(a, b, at, letters):
            if step not in seen:
                seen.add(step)
                todo.append(step)
    return False


def _steps(a: tuple[str, ...], b: tuple[str, ...], at: tuple[int, int], letters: str) -> Iterator[tuple[int, int]]:
    i, j = at
    if i < len(a) and a[i] == "*":
        yield i + 1, j
    if j < len(b) and b[j] == "*":
        yield i, j + 1
    if i < len(a) and j < len(b) and any(_takes(a[i], c) and _takes(b[j], c) for c in letters):
        yield i + (a[i] != "*"), j + (b[j] != "*")


@lru_cache(maxsize=4096)
def covers(wide: str, narrow: str) -> bool:
    """Whether every text that `narrow` matches is matched by `wide`. No, where that would take too long to tell."""
    a, b = tokens(wide), tokens(narrow)
    letters = _letters((*a, *b))
    start = (_closure(a, {0}), _closure(b, {0}))
    seen, todo = {start}, [start]
    while todo:
        wides, narrows = todo.pop()
        if (len(b) in narrows and len(a) not in wides) or len(seen) > MAX_STATES:
            return False
        for c in letters:
            step = (_after(a, wides, c), _after(b, narrows, c))
            if step[1] and step not in seen:
                seen.add(step)
                todo.append(step)
    return True


def _after(row: tuple[str, ...], states: frozenset[int], c: str) -> frozenset[int]:
    """Return the states after `c`."""
    return _closure(row, {i + (row[i] != "*") for i in states if i < len(row) and _takes(row[i], c)})


def _closure(row: tuple[str, ...], states: set[int]) -> frozenset[int]:
    """Return `states` and those that are reached from there without a character: past a star."""
    reached, todo = set(states), list(states)
    while todo:
        i = todo.pop()
        if i < len(row) and row[i] == "*" and i + 1 not in reached:
            reached.add(i + 1)
            todo.append(i + 1)
    return frozenset(reached)


@lru_cache(maxsize=65536)
def _takes(part: str, c: str) -> bool:
    return part in {"*", "?"} or fnmatchcase(c, part)


def _letters(parts: Iterable[str]) -> str:
    """Return a character for each class of characters that no token tells apart."""
    named = {ord(c) for part in parts for c in part}
    near = {n + d for n in named or {ord("a")} for d in (-1, 0, 1)}
    return "".join(chr(n) for n in sorted(near) if 0 <= n <= _LAST)


def witness(glob: str) -> str | None:
    """Return a short text that `glob` matches, ``None`` where there is none (an empty range, as in ``[z-a]``)."""
    parts = [_witness(part) for part in tokens(glob)]
    return None if None in parts else "".join(part for part in parts if part is not None)


def _witness(part: str) -> str | None:
    if len(part) == 1:
        return {"*": "", "?": "a"}.get(part, part)
    return next((c for c in sorted(_letters((part, "a")), key=lambda c: (not c.isalnum(), c)) if _takes(part, c)), None)
