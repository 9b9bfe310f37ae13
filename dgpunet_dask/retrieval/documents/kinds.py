"""What kind of document a file name or a content type promises, and how large it may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Kind:
    """A kind of document.

    Parameters
    ----------
    name
        ``html``, ``pdf``, …; of a text format the language that its chunks have.
    bytes_max
        A larger file is `too_large`.
    plain
        Whether the text is the file's own, line by line.
    """

    name: str
    bytes_max: int
    plain: bool = False


PDF: Final = Kind("pdf", 256 * _MIB)
DOCX: Final = Kind("docx", 64 * _MIB)
NOTEBOOK: Final = Kind("notebook", 64 * _MIB)  # pictures lie in it, as text
HTML: Final = Kind("html", 16 * _MIB)
MARKDOWN: Final = Kind("markdown", 16 * _MIB, plain=True)
RST: Final = Kind("restructuredtext", 16 * _MIB, plain=True)
ASCIIDOC: Final = Kind("asciidoc", 16 * _MIB, plain=True)
LATEX: Final = Kind("latex", 16 * _MIB, plain=True)
TEXT: Final = Kind("text", 16 * _MIB, plain=True)

_BY_EXTENSION: Final = {
    "md": MARKDOWN, "markdown": MARKDOWN, "mdx": MARKDOWN, "rst": RST, "adoc": ASCIIDOC, "asciidoc": ASCIIDOC, "tex": LATEX,
    "txt": TEXT, "text": TEXT, "html": HTML, "htm": HTML, "xhtml": HTML, "pdf": PDF, "docx": DOCX, "ipynb": NOTEBOOK,
}  # fmt: skip
_BY_NAME: Final = dict.fromkeys(("readme", "license", "licence", "copying", "authors", "changelog", "changes", "news", "notice", "install"), TEXT)
_BY_TYPE: Final = {
    "text/html": HTML, "application/xhtml+xml": HTML, "application/pdf": PDF, "application/x-pdf": PDF,
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": DOCX, "application/x-ipynb+json": NOTEBOOK,
    "text/markdown": MARKDOWN, "text/x-markdown": MARKDOWN, "text/x-rst": RST, "text/prs.fallenstein.rst": RST,
    "text/asciidoc": ASCIIDOC, "text/x-tex": LATEX, "application/x-tex": LATEX, "text/plain": TEXT,
}  # fmt: skip
#: Types that say no more than "some file", or "some text": the name in the address may then say more.
_VAGUE: Final = frozenset(("", "text/plain", "application/octet-stream", "binary/octet-stream", "application/json"))


def kind_of_name(name: str) -> Kind | None:
    """Return the kind that a file's name promises, ``None`` for what is no document."""
    stem, dot, extension = name.lower().rpartition(".")
    if not dot or not stem:
        return _BY_NAME.get(name.lower())
    return _BY_EXTENSION.get(extension)


def kind_of_type(content_type: str, path: str) -> Kind | None:
    """Return the kind of what a server gives: by its content type (without parameters), where that is vague by the address's path."""
    plain = content_type.strip().lower()
    by_name = kind_of_name(path.rstrip("/").rpartition("/")[2]) if plain in _VAGUE else None
    return by_name or _BY_TYPE.get(plain)


def judge_document(name: str, size: int) -> str | None:
    """Return the skip code of a file by its name and size, ``None`` for a document to be read."""
    kind = kind_of_name(name)
    if kind is None:
        return "not_a_document"
    return "too_large" if size > kind.bytes_max else None
