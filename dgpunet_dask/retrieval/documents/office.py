"""DOCX to Markdown-like text: headings, paragraphs, lists and tables, in the order of the document."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dgpunet_dask.retrieval.documents.texts import Bounded, Extracted, SkippedError, finished

if TYPE_CHECKING:
    from docx.table import Table
    from docx.text.paragraph import Paragraph

#: What a document may unpack to, all parts together, and its text parts (XML) alone: a bomb promises thousands of times its own size.
UNPACKED_MAX: Final = 512 << 20
XML_MAX: Final = 64 << 20
#: Tables within tables are read to this depth; deeper ones are left out, with a note in the text.
_TABLES_DEEP: Final = 8
#: How an encrypted DOCX begins: it is wrapped into an old compound file.
_COMPOUND: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def read_docx(file: BinaryIO, unpacked_max: int = UNPACKED_MAX, xml_max: int = XML_MAX) -> Extracted:
    """Return the text of a document: its body. Headers, footers, footnotes and comments are left out.

    Raises
    ------
    SkippedError
        `encrypted`, `malformed`, `too_large`, `no_text`.
    """
    import docx
    from docx.table import Table

    if file.read(len(_COMPOUND)) == _COMPOUND:
        raise SkippedError("encrypted", "it opens with a password, or is a file of an older Word")
    file.seek(0)
    _check_size(file, unpacked_max, xml_max)
    document = docx.Document(file)
    out = Bounded()
    for block in document.iter_inner_content():
        text = "\n".join(_rows(block, 0)) if isinstance(block, Table) else _paragraph(block)
        if text.strip():
            out.block(text)
    return finished(out.text(), document.core_properties.title, "document")


def _check_size(file: BinaryIO, unpacked_max: int, xml_max: int) -> None:
    """Look at the sizes that the archive states; more than these `zipfile` never unpacks, whatever follows."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SkippedError("malformed", str(error)) from error
    everything = sum(part.file_size for part in parts)
    xml = sum(part.file_size for part in parts if part.filename.endswith((".xml", ".rels")))
    if everything > unpacked_max or xml > xml_max:
        raise SkippedError("too_large", f"it unpacks to {everything} bytes, {xml} of them XML")
    file.seek(0)


def _paragraph(paragraph: Paragraph) -> str:
    style = (paragraph.style.name or "") if paragraph.style is not None else ""
    text = paragraph.text.strip("\n")
    heading = re.fullmatch(r"(?:Heading|heading) (\d)", style)
    if heading is not None or style in {"Title", "Subtitle"}:
        level = min(6, int(heading[1])) if heading is not None else 1 + (style == "Subtitle")
        return f"{'#' * level} {' '.join(text.split())}" if text.strip() else ""
    return f"- {text.strip()}" if style.startswith("List") and text.strip() else text


def _rows(table: Table, depth: int) -> Iterator[str]:
    for row in table.rows:
        cells: list[str] = []
        before: Any = None
        for cell in row.cells:
            if cell is not before:  # a merged cell is given once for each column that it spans
                cells.append(" ".join(" ".join(_cell(cell, depth)).split()))
            before = cell
        if any(cells):
            yield " | ".join(cells)


def _cell(cell: Any, depth: int) -> Iterator[str]:
    for block in cell.iter_inner_content():
        if not hasattr(block, "rows"):
            yield block.text
        elif depth < _TABLES_DEEP:
            yield from _rows(block, depth + 1)
        else:
            yield "(a table within tables, left out)"
