"""HTML to Markdown-like text: headings, paragraphs, lists, tables and code, without the page's machinery. Pure.

The tree is walked by hand with a stack: a page may nest its elements deeper than Python recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.retrieval.documents.texts import Bounded, Extracted, finished

if TYPE_CHECKING:
    from bs4.element import PageElement, Tag

_LEFT_OUT: Final = frozenset(
    ("script", "style", "noscript", "template", "nav", "footer", "aside", "head", "svg", "math", "iframe", "object", "canvas",
     "audio", "video", "button", "select", "textarea", "dialog")
)  # fmt: skip
_HEADINGS: Final = {f"h{level}": "#" * level + " " for level in range(1, 7)}
#: Each begins and ends a line; those of `_APART` also a paragraph.
_LINES: Final = frozenset(
    ("div", "section", "article", "main", "header", "body", "li", "dt", "dd", "tr", "br", "hr", "figure", "figcaption", "form", "fieldset",
     "address", "details", "summary", "caption", "thead", "tbody", "tfoot", "legend", "option", "html")
)  # fmt: skip
_APART: Final = frozenset((*_HEADINGS, "p", "ul", "ol", "dl", "table", "blockquote", "pre"))
_PREFIXES: Final = {**_HEADINGS, "li": "- ", "dd": "  "}


def read_html(data: bytes, charset: str | None = None) -> Extracted:
    """Return the text of a page: of its main part where it names one, else of its body.

    Parameters
    ----------
    charset
        What the server said; a byte order mark is believed before it, the page itself after it.

    Raises
    ------
    SkippedError
        `no_text`, `too_large`.
    """
    import bs4

    page = bs4.BeautifulSoup(data, "lxml", from_encoding=None if data.startswith(_MARKS) else charset)
    title = page.find("title")
    for root in (*page.find_all("main", limit=1), *page.find_all(True, {"role": "main"}, limit=1), page.body or page):
        text = _Page(root).text()
        if text.strip():
            break
    return finished(text, title.get_text() if title is not None else None, "page")


_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def _events(root: Tag) -> Iterator[tuple[Tag | str, bool]]:
    """Yield each element as it is entered (with True) and left, and the pieces of text between; what is left out is not entered."""
    from bs4.element import PreformattedString, Tag

    stack: list[tuple[Tag, Iterator[PageElement]]] = [(root, iter(root.children))]
    while stack:
        tag, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            if stack:
                yield tag, False
        elif isinstance(child, Tag):
            if child.name not in _LEFT_OUT and not child.has_attr("hidden"):
                yield child, True
                stack.append((child, iter(child.children)))
        elif not isinstance(child, PreformattedString):  # a comment, a doctype
            yield str(child), True


class _Page:
    """Makes lines of a page's events."""

    def __init__(self, root: Tag) -> None:
        self._out = Bounded()
        self._line: list[str] = []
        self._prefix = ""
        self._apart = False
        self._preformatted = 0
        for event, entered in _events(root):
            if isinstance(event, str):
                self._line.append(event)
            elif event.name == "pre":
                self._pre(entered=entered)
            else:
                self._tag(event.name, entered=entered)
        self._end_line()

    def text(self) -> str:
        return self._out.text()

    def _tag(self, name: str, *, entered: bool) -> None:
        if name in {"td", "th"} and not entered:
            self._line.append(" | ")
        if self._preformatted:
            self._line += ["\n"] if name == "br" and entered else []
            return
        if name not in _LINES and name not in _APART:
            return
        self._end_line()
        self._apart = self._apart or name in _APART
        self._prefix = _PREFIXES.get(name, self._prefix) if entered else ""

    def _pre(self, *, entered: bool) -> None:
        if entered:
            if not self._preformatted:
                self._end_line()
            self._preformatted += 1
            return
        self._preformatted -= 1
        if not self._preformatted:
            code = "".join(self._line).strip("\n")
            self._line = []
            if code.strip():
                self._out.block(f"```\n{code}\n```")
            self._apart = True

    def _end_line(self) -> None:
        """Write the line so far. White space in it means nothing, and a cell's bar at its end neither."""
        line = re.sub(r"( \|)+$", "", " ".join("".join(self._line).split()))
        self._line = []
        if not line:
            return
        write: Any = self._out.block if self._apart else self._out.add
        write(self._prefix + line)
        self._apart, self._prefix = False, ""
