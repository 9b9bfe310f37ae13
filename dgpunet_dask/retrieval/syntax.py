"""A text read by a grammar: its definitions, and where it is well cut. Pure.

Grammars come in wheels and are loaded from there. A parse is bounded by its own steps and by the depth of brackets, never by time:
the same text is read the same way on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.retrieval.grammars import CLASSES, GRAMMARS, KINDS, QUERIES, Grammar

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Query

#: A parser reports its progress about once in 190 bytes of ordinary code; one that reports this often has lost its way.
_BYTES_A_REPORT: Final = 40
_REPORTS_FREE: Final = 500
#: More open brackets than this are data or damage, and some grammars take quadratic time over them.
_DEEPEST: Final = 1000
_BRACKETS: Final = re.compile(rb"[^()\[\]{}]+")
_LONGEST_NAME: Final = 120
#: Further from the margin no comment stands alone, and a very long line with many of them would be read again for each.
_INDENT: Final = 200
#: Deeper nesting is a generator's or an attacker's; names would grow with the square of the text.
_LONGEST_SCOPE: Final = 1000
_GENERIC: Final = re.compile(r"<[^<>]*>")
_RECEIVER: Final = re.compile(r"(\w+)\s*(?:\[[^\]]*\]\s*)?\)?\s*$")
_PREFIX: Final = re.compile(r"^(?:module\.)?exports\.")


@dataclass(frozen=True, order=True)
class Definition:
    """What a text defines.

    Parameters
    ----------
    start, end
        Its lines, 1-based, inclusive; decorators, attributes and doc comments right above it are among them, as is the custom.
    name
        With the names of what it lies in, joined by dots.
    kind
        One of `grammars.KINDS`.
    scope
        The name of what it lies in.
    """

    start: int
    end: int
    name: str
    kind: str = "function"
    scope: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Outline:
    """What is known of a text's structure. Rows are 0-based.

    Parameters
    ----------
    definitions
        In the order of their lines, outer ones first.
    above
        From the last row of comments that stand alone to their first.
    breaks
        Given what is too large (first row, row after the last), tells the rows before which that is well cut, with a depth
        each: the lower, the better.
    unparsed
        Why the language's grammar could not be used.
    faulty
        Whether it could, but did not understand all.
    """

    definitions: list[Definition] = field(default_factory=list)
    above: Mapping[int, int] = field(default_factory=dict)
    breaks: Callable[[Callable[[int, int], bool]], dict[int, int]] = field(default=lambda _: {})
    unparsed: str | None = None
    faulty: bool = False


@dataclass
class _Found:
    """A definition as the query found it."""

    first: int
    last: int
    start: int
    end: int
    kind: str
    name: str
    owner: str | None
    rank: int


def parsed(text: str, language: str) -> Outline | None:
    """Return the outline of `text` by its language's grammar; ``None`` if there is no grammar for it."""
    grammar = GRAMMARS.get(language)
    if grammar is None:
        return None
    source = text.encode("utf-8", "replace")
    if _too_deep(source):
        return Outline(unparsed="its brackets are nested too deeply")
    roots = _roots(source, grammar)
    parser, root = min(roots, key=lambda r: _errors(*r)) if len(roots) > 1 else roots[0]
    if root is None:
        return Outline(unparsed="its parser lost its way")
    found, above = _matches(_definitions_query(parser, grammar), root, source)
    definitions = list(_defined(found, above, grammar, text.split("\n")))
    return Outline(definitions, above, lambda large: _breaks(root, above, large), faulty=root.has_error)


def _too_deep(source: bytes) -> bool:
    brackets = _BRACKETS.sub(b"", source)
    steps = brackets.translate(_STEPS)
    return max(accumulate(steps, lambda depth, step: depth + step - 1), default=0) > _DEEPEST


#: An opening bracket is 2, a closing one 0: one less is the step in depth.
_STEPS: Final = bytes.maketrans(b"([{)]}", b"\x02\x02\x02\x00\x00\x00")


def _roots(source: bytes, grammar: Grammar) -> list[tuple[str, Node | None]]:
    """Parse with the first parser, and where it finds errors with the others too."""
    found: list[tuple[str, Node | None]] = []
    for parser in grammar.parsers:
        root = _root(source, parser)
        found.append((parser, root))
        if root is not None and not root.has_error:
            return found[-1:]
    return found


def _root(source: bytes, name: str) -> Node | None:
    from tree_sitter import Parser

    left = _REPORTS_FREE + len(source) // _BYTES_A_REPORT

    def lost(_offset: int, _error: bool) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    try:
        return Parser(_language(name)).parse(lambda offset, _: source[offset : offset + (1 << 16)], progress_callback=lost).root_node
    except ValueError:  # halted
        return None


@cache
def _language(name: str) -> Language:
    from tree_sitter_language_pack import get_language

    return get_language(name)  # type: ignore[arg-type]  # the library lists its names as literals


@cache
def _compiled(parser: str, query: str) -> Query:
    from tree_sitter import Query

    return Query(_language(parser), query)


def _definitions_query(parser: str, grammar: Grammar) -> Query:
    return _compiled(parser, grammar.query if parser == grammar.parsers[0] else QUERIES[parser])


def _errors(parser: str, root: Node | None) -> float:
    from tree_sitter import QueryCursor

    if root is None:
        return float("inf")
    return len(QueryCursor(_compiled(parser, "(ERROR) @error")).captures(root).get("error", []))


def _matches(query: Query, root: Node, source: bytes) -> tuple[list[_Found], dict[int, int]]:
    """Return what the query finds, each name once, with the widest node around it; and the comments that stand alone."""
    from tree_sitter import QueryCursor

    by_name: dict[int, _Found] = {}
    leads: list[tuple[int, int]] = []
    for rank, captures in QueryCursor(query).matches(root):
        if "lead" in captures:
            leads += _alone(captures["lead"][0], source)
            continue
        found = _found(rank, captures, source)
        key = (captures.get("name") or captures["declarator"])[0].start_byte
        if found is not None and (key not in by_name or _better(found, by_name[key])):
            by_name[key] = found
    return sorted(by_name.values(), key=lambda f: (f.first, -f.last)), _runs(leads)


def _better(new: _Found, old: _Found) -> bool:
    return (new.last - new.first, new.rank) > (old.last - old.first, old.rank)


def _found(rank: int, captures: dict[str, list[Any]], source: bytes) -> _Found | None:
    kind = next(k for k in captures if k in KINDS)
    node = captures[kind][0]
    end = captures["tail"][0] if "tail" in captures else node
    texts = {name: [_text(n, source) for n in captures.get(name, ())] for name in ("name", "declarator", "owner")}
    raw = _declared(texts["declarator"][0]) if texts["declarator"] else ".".join(texts["name"])
    receiver = _RECEIVER.search(texts["owner"][0]) if texts["owner"] else None
    name = _clean(raw, kind)
    if not name:  # a parser may fill in what it misses
        return None
    kind = "method" if kind == "function" and "::" in raw else kind
    return _Found(node.start_byte, end.end_byte, *_rows(node, end), kind, name, receiver and receiver[1], rank)


def _text(node: Node, source: bytes) -> str:
    """Its beginning. `Node.text` would read the whole source anew each time."""
    start = node.start_byte
    return source[start : min(node.end_byte, start + 1000)].decode("utf-8", "replace")


def _rows(first: Node, last: Node) -> tuple[int, int]:
    """The first and last row of two nodes; some grammars count the line's end as theirs."""
    start, (end, column) = first.start_point[0], last.end_point
    return start, max(start, end if column else end - 1)


def _declared(declarator: str) -> str:
    """The name in a C declarator: ``*find(int)`` declares `find`."""
    name = declarator.lstrip("*&^( \t\n")
    if "operator" in name:
        return re.split(r"(?<=operator)\s*\(\)|(?<!operator)\(", name, maxsplit=1)[0]
    return (name.partition("(")[0].split() or [""])[-1]


def _clean(raw: str, kind: str) -> str:
    if kind == "section":
        return " ".join(raw.replace('"', "").split()).strip("'")[:_LONGEST_NAME]
    if "operator" not in raw:
        while "<" in raw and (shorter := _GENERIC.sub("", raw)) != raw:
            raw = shorter
        raw = re.split(r"[<({\[]", raw, maxsplit=1)[0]
    raw = _PREFIX.sub("", raw.replace("::", ".").replace(":", ".").replace(".prototype.", "."))
    return " ".join(raw.split()).strip("`'\". ")[:_LONGEST_NAME]


def _alone(node: Node, source: bytes) -> Iterator[tuple[int, int]]:
    """The rows of a comment, if nothing else stands there."""
    (_, column), start, end = node.start_point, node.start_byte, node.end_byte
    if column > _INDENT or source[start - column : start].strip():
        return
    if not node.end_point[1] or not source[end : end + _INDENT].partition(b"\n")[0].strip():
        yield _rows(node, node)


def _runs(leads: Iterable[tuple[int, int]]) -> dict[int, int]:
    above: dict[int, int] = {}
    for start, end in sorted(leads):
        above[end] = above.get(start - 1, start)
    return above


def _defined(found: list[_Found], above: Mapping[int, int], grammar: Grammar, lines: list[str]) -> Iterator[Definition]:
    """Name what was found by what it lies in."""
    around: list[tuple[int, Definition]] = []
    kept: list[Definition] = []
    last: dict[str | None, int] = {}
    for one in found:
        while around and around[-1][0] <= one.first:
            around.pop()
        made = _definition(one, around[-1][1] if around else None)
        start = above.get(made.start - 2, made.start - 1) + 1 if grammar.comments_above else made.start
        made = replace(made, start=start, end=_last_filled(lines, {} if grammar.comments_above else above, made))
        before = last.get(made.scope)
        if grammar.joined and before is not None and (kept[before].name, kept[before].kind) == (made.name, made.kind):
            kept[before] = replace(kept[before], end=max(kept[before].end, made.end))
        else:
            last[made.scope] = len(kept)
            kept.append(made)
        around.append((one.last, made))
    yield from sorted(kept, key=lambda d: (d.start, -d.end))


def _last_filled(lines: list[str], above: Mapping[int, int], one: Definition) -> int:
    """The last line that is neither blank nor a comment of its own."""
    end = one.end
    while end > one.start and (end - 1 in above or not lines[end - 1].strip()):
        end = max(one.start, above.get(end - 1, end - 1))
    return end


def _definition(one: _Found, outer: Definition | None) -> Definition:
    scope = outer.name if outer else one.owner
    kind = "method" if one.kind == "function" and outer and outer.kind in CLASSES else one.kind
    name = f"{scope}.{one.name}" if scope and len(scope) < _LONGEST_SCOPE else one.name
    if kind in {"function", "method"} and "." in one.name:
        scope = name.rpartition(".")[0]  # `void Server::run()` is written outside of its class
    return Definition(one.start + 1, one.end + 1, name, kind, scope)


def _breaks(root: Node, above: Mapping[int, int], too_large: Callable[[int, int], bool]) -> dict[int, int]:
    """Go down only into nodes that are too large."""
    found: dict[int, int] = {}
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        last = node.start_point[0]
        for child in node.children:
            start, end = _rows(child, child)
            if start > last and child.is_named and start - 1 not in above:
                found[start] = min(depth, found.get(start, depth))
            last = max(last, end)
            if end > start and too_large(start, end + 1):
                pending.append((child, depth + 1))
    return found
