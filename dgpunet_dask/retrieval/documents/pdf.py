"""PDF to text, page by page, each under a heading ``# [page N]`` that the chunker cuts at and hits show as their symbol."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, BinaryIO, Final

from dgpunet_dask.retrieval.documents.texts import Bounded, Extracted, SkippedError, finished

#: More pages than any document has. A tree of pages can state any number; walking it is bounded by the reader's seconds as well.
PAGES_MAX: Final = 20_000


def read_pdf(file: BinaryIO, pages_max: int = PAGES_MAX) -> Extracted:
    """Return the text of all pages; a page that cannot be read is named in its place.

    Raises
    ------
    SkippedError
        `encrypted` where it takes a password, `malformed`, `too_large`, `no_text` where pages hold pictures alone.
    """
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every slip of every producer
    try:
        reader = pypdf.PdfReader(file, strict=False)
        _unlock(reader)
        out, read = Bounded(), 0
        for number, page in enumerate(reader.pages, 1):
            if number > pages_max:
                raise SkippedError("too_large", f"it has more than {pages_max} pages")
            text = _page(page)
            read += bool(text.strip())
            out.block(f"# [page {number}]\n\n{text}")
        title = _title(reader)
    except PyPdfError as error:
        raise SkippedError("malformed", f"{type(error).__name__}: {error}"[:200]) from error
    if not read:
        raise SkippedError("no_text", "its pages hold pictures alone, or nothing")
    return replace(finished(out.text(), title, "document"), title=title)  # the heading of a page is no title


def _unlock(reader: Any) -> None:
    """Open what opens without a password: one that only forbids printing is still read by everybody."""
    if not reader.is_encrypted:
        return
    try:
        opened = reader.decrypt("")
    except Exception as error:  # a cipher that is not known, or a damaged dictionary
        raise SkippedError("encrypted", f"{type(error).__name__}: {error}"[:200]) from error
    if not opened:
        raise SkippedError("encrypted", "it opens with a password")


def _page(page: Any) -> str:
    try:
        return str(page.extract_text())
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return f"(this page cannot be read: {type(error).__name__})"


def _title(reader: Any) -> str | None:
    try:
        title = reader.metadata.title if reader.metadata is not None else None
    except Exception:
        return None
    return title if isinstance(title, str) else None
