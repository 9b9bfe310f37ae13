"""The text that a reader makes of a document: bounded, clean, with its title on top. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Characters of one document's text. The longest books have a tenth of it.
CHARS_MAX: Final = 32 << 20
_TITLE_MAX: Final = 300
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
_FENCE: Final = re.compile(r"\s{0,3}(```|~~~)")
_ADORNMENT: Final = re.compile(r"([^\w\s])\1{2,}\s*$")
#: How many lines a title is looked for in.
_TITLE_LINES: Final = 200


class SkippedError(Exception):
    """A document that is left out: its skip code, and why."""

    def __init__(self, code: str, why: str = "") -> None:
        super().__init__(f"{code}: {why}" if why else code)
        self.code = code

    @property
    def reason(self) -> str:
        """The code, or the code, a colon and why."""
        return str(self)


@dataclass(frozen=True)
class Extracted:
    """A document's text, the language it is to be cut as, and its title."""

    text: str
    language: str = "markdown"
    title: str | None = None


class Bounded:
    """Lines that become a text. They are counted as they come, so that no document fills the memory before it is found too large."""

    def __init__(self, chars_max: int = CHARS_MAX) -> None:
        self._lines: list[str] = []
        self._left = self._max = chars_max

    def add(self, text: str) -> None:
        """Add a line, or several at once.

        Raises
        ------
        SkippedError
            `too_large`.
        """
        self._left -= len(text) + 1
        if self._left < 0:
            raise SkippedError("too_large", f"its text is longer than {self._max} characters")
        self._lines.append(text)

    def block(self, text: str) -> None:
        """Add `text` with a blank line before it."""
        if self._lines:
            self.add("")
        self.add(text)

    def text(self) -> str:
        """Everything, without what no text holds: control characters, halves of surrogate pairs."""
        return cleaned("\n".join(self._lines))


def cleaned(text: str) -> str:
    """Return `text` with uniform line ends and without control characters; lines end without blanks, three blank lines become one."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = re.sub(r"[ \t\xa0]+(?=\n|$)", "", _CONTROL.sub("", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def finished(text: str, title: str | None, kind: str) -> Extracted:
    """Return a made text with its title as first heading, unless it begins with one that says the same.

    Raises
    ------
    SkippedError
        `no_text` where there is none.
    """
    if not text.strip():
        raise SkippedError("no_text", f"the {kind} holds no text")
    title = " ".join(cleaned(title or "").split())[:_TITLE_MAX] or None
    begins = text.lstrip("\n").partition("\n")[0].lstrip("# ").strip()
    if title is not None and begins != title:
        text = f"# {title}\n\n{text}"
    return Extracted(text, "markdown", title or _markdown_title(text.split("\n", _TITLE_LINES)[:_TITLE_LINES]))


def plain_title(text: str, language: str) -> str | None:
    """Return the first heading of a text in a language with headings."""
    find = {"markdown": _markdown_title, "restructuredtext": _rst_title}.get(language)
    return None if find is None else find(text.split("\n", _TITLE_LINES)[:_TITLE_LINES])


def _markdown_title(lines: Iterable[str]) -> str | None:
    fence = ""
    for line in lines:
        mark = _FENCE.match(line)
        if mark is not None and fence in {"", mark[1]}:
            fence = "" if fence else mark[1]
        elif not fence and re.match(r"#{1,6}\s+\S", line):
            return line.strip("# \t")[:_TITLE_MAX] or None
    return None


def _rst_title(lines: Iterable[str]) -> str | None:
    before = ""
    for line in lines:
        if before.strip() and _ADORNMENT.match(line) and not _ADORNMENT.match(before) and len(line.rstrip()) >= len(before.strip()):
            return before.strip()[:_TITLE_MAX]
        before = line
    return None
