"""Documents made by the real libraries, or by hand where these make no bad ones."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

#: A child that reads its request and never answers, as a library does in an endless loop.
SILENT = (sys.executable, "-c", "import sys, threading; sys.stdin.readline(); threading.Event().wait()")

def pdf(pages: Sequence[str], title: str | None = None, kids: str | None = None) -> bytes:
    """Return a PDF whose pages show these lines of text; `kids` replaces the list of pages in the tree."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    numbers = []
    for text in pages:
        shown = b"".join(b"(%s) Tj 0 -14 Td " % _escaped(line) for line in text.split("\n")) if text else b""
        stream = b"BT /F1 12 Tf 72 720 Td " + shown + b"ET"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        objects.append(page % len(objects))
        numbers.append(len(objects))
    listed = " ".join(f"{n} 0 R" for n in numbers) if kids is None else kids
    objects[1] = f"<< /Type /Pages /Count {len(numbers)} /Kids [{listed}] >>".encode()
    info = b""
    if title is not None:
        objects.append(b"<< /Title (%s) >>" % _escaped(title))
        info = b"/Info %d 0 R " % len(objects)
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, info, start))
    return out.getvalue()


def _escaped(text: str) -> bytes:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("latin-1")


def encrypted_pdf(user: str, owner: str = "owner") -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(["secret words"])))
    writer.encrypt(user, owner, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def docx(build: Any) -> bytes:
    """Return the DOCX that `build` makes of an empty python-docx document."""
    import docx as library

    document = library.Document()
    build(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def repacked(data: bytes, parts: Mapping[str, bytes]) -> bytes:
    """Return an archive with some of its parts replaced, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in parts:
                new.writestr(name, old.read(name))
        for name, content in parts.items():
            new.writestr(name, content)
    return out.getvalue()


def notebook(*cells: Mapping[str, Any], **rest: Any) -> bytes:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells), **rest}).encode()


def cell(kind: str, *source: str, **rest: Any) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": list(source), **rest}
