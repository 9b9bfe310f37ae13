"""The sections and paragraphs of text: Markdown, reStructuredText, AsciiDoc, and plain. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from dgpunet_dask.retrieval.syntax import Definition, Outline

#: Languages that are read as text; all but these have no headings.
TEXT: Final = frozenset(("markdown", "restructuredtext", "asciidoc", "latex", "text"))
_HASHES: Final = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#*)?[ \t]*$")
_EQUALS: Final = re.compile(r"^(={1,6})[ \t]+(\S.*?)(?:[ \t]+=*)?[ \t]*$")
_SETEXT: Final = re.compile(r"^ {0,3}(?:=+|-{2,})[ \t]*$")
_PLAIN_LINE: Final = re.compile(r"^ {0,3}[^\s>|#*+-]")
_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_BLOCK: Final = re.compile(r"^(-{4,}|\.{4,})[ \t]*$")
_ADORNMENT: Final = re.compile(r"^([!-/:-@\[-`{-~])\1{2,}[ \t]*$")
_SECTIONS: Final = ("chapter", "section", "subsection", "subsubsection")
_LATEX: Final = re.compile(rf"^[ \t]*\\({'|'.join(_SECTIONS)})\*?(?:\[[^\]]*\])?\{{([^}}]*)\}}")
_LONGEST_NAME: Final = 120
#: Depths of cuts: between paragraphs, between the blank-parted pieces of a code block, between lines, between lines of code.
_PARAGRAPH, _CODE_PART, _LINE, _CODE = 1, 4, 6, 8

#: Row, last row of the heading itself, level, title.
Heading = tuple[int, int, int, str]


def of_text(lines: Sequence[str], language: str) -> Outline:
    """Return the outline of a text: a definition of kind `heading` for each section, cuts between its paragraphs."""
    code = _code_rows(lines, language)
    find = {"markdown": _markdown, "restructuredtext": _underlined, "asciidoc": _asciidoc, "latex": _latex}.get(language)
    headings = list(find(lines, code)) if find else []
    within = {row for first, last, _, _ in headings for row in range(first + 1, last + 1)}
    depths = {row: _depth(lines, row, code) for row in range(1, len(lines)) if row not in within}
    return Outline(_sections(headings, lines), {}, lambda _: depths)


def _depth(lines: Sequence[str], row: int, code: Sequence[bool]) -> int:
    inside = code[row] and code[row - 1]
    if lines[row - 1].strip():
        return _CODE if inside else _LINE
    return _CODE_PART if inside else _PARAGRAPH


def _code_rows(lines: Sequence[str], language: str) -> list[bool]:
    """Which rows lie in a fenced block, its fences included."""
    fence = {"markdown": _FENCE, "asciidoc": _BLOCK}.get(language)
    found = [False] * len(lines)
    opened = ""
    for row, line in enumerate(lines if fence else ()):
        mark = fence.match(line) if fence else None
        found[row] = bool(opened or mark)
        if mark and not opened:
            opened = mark[1]
        elif mark and mark[1].startswith(opened):
            opened = ""
    return found


def _markdown(lines: Sequence[str], code: Sequence[bool]) -> Iterator[Heading]:
    begin = _front_matter(lines)
    for row in range(begin, len(lines)):
        line = lines[row]
        if code[row]:
            continue
        if line.lstrip(" ").startswith("#") and len(line) < 1000 and (marked := _HASHES.match(line)) and marked[2]:
            yield row, row, len(marked[1]), marked[2]
        elif row > begin and _SETEXT.match(line) and _PLAIN_LINE.match(lines[row - 1]) and not code[row - 1]:
            alone = row == begin + 1 or not lines[row - 2].strip()
            if alone and lines[row - 1].strip():
                yield row - 1, row, 1 if "=" in line else 2, lines[row - 1].strip()


def _front_matter(lines: Sequence[str]) -> int:
    """Return the row after the YAML that some pages begin with."""
    if lines[0].rstrip() != "---":
        return 0
    return next((row + 1 for row in range(1, min(len(lines), 200)) if lines[row].rstrip() in {"---", "..."}), 0)


def _underlined(lines: Sequence[str], _: Sequence[bool]) -> Iterator[Heading]:
    """Headings of reStructuredText: a line of one sign below the title, and perhaps above; levels are in the order of their styles."""
    styles: list[tuple[str, bool]] = []
    row = 0
    while row + 1 < len(lines):
        found = _over(lines, row) or _under(lines, row)
        if found is None:
            row += 1
            continue
        first, last, style, title = found
        if style not in styles:
            styles.append(style)
        yield first, last, styles.index(style) + 1, title
        row = last + 1


Styled = tuple[int, int, tuple[str, bool], str]


def _over(lines: Sequence[str], row: int) -> Styled | None:
    above = _ADORNMENT.match(lines[row])
    if above is None or row + 2 >= len(lines) or not lines[row + 1].strip() or lines[row + 2].rstrip() != lines[row].rstrip():
        return None
    return row, row + 2, (above[1], True), lines[row + 1].strip()


def _under(lines: Sequence[str], row: int) -> Styled | None:
    title, below = lines[row].rstrip(), _ADORNMENT.match(lines[row + 1])
    if below is None or not title or title[0].isspace() or _ADORNMENT.match(title) or (row and lines[row - 1].strip()):
        return None
    return (row, row + 1, (below[1], False), title) if len(lines[row + 1].rstrip()) >= min(len(title), 4) else None


def _asciidoc(lines: Sequence[str], code: Sequence[bool]) -> Iterator[Heading]:
    for row, line in enumerate(lines):
        if not code[row] and line.startswith("=") and len(line) < 1000 and (found := _EQUALS.match(line)):
            yield row, row, len(found[1]), found[2]


def _latex(lines: Sequence[str], _: Sequence[bool]) -> Iterator[Heading]:
    for row, line in enumerate(lines):
        if "\\" in line and len(line) < 1000 and (found := _LATEX.match(line)):
            yield row, row, _SECTIONS.index(found[1]) + 1, found[2]


def _sections(headings: Sequence[Heading], lines: Sequence[str]) -> list[Definition]:
    """A section lasts to the next heading of its level or above."""
    found: list[Definition] = []
    around: list[tuple[int, int]] = []
    ends = [len(lines)] * len(headings)
    for index, (row, _, level, _) in enumerate(headings):
        while around and around[-1][0] >= level:
            ends[around.pop()[1]] = row
        around.append((level, index))
    open_: list[tuple[int, str]] = []
    for (row, _, level, title), end in zip(headings, ends, strict=True):
        while open_ and open_[-1][0] >= level:
            open_.pop()
        scope = open_[-1][1] if open_ else None
        own = " ".join(title.split())[:_LONGEST_NAME]
        name = f"{scope}.{own}" if scope else own
        found.append(Definition(row + 1, end, name, "heading", scope))
        open_.append((level, name))
    return found
