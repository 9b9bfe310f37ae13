"""Jupyter notebooks to Markdown: prose as it is, code in fences that name the cell. Results are left out. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dgpunet_dask.retrieval.documents.texts import Bounded, Extracted, SkippedError, finished


def read_notebook(data: bytes) -> Extracted:
    """Return the text of a notebook of format 3 or later.

    Raises
    ------
    SkippedError
        `malformed`, `too_large`, `no_text`.
    """
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SkippedError("malformed", f"it is not JSON: {error}"[:200]) from error
    out = Bounded()
    language = _language(notebook)
    for number, cell in enumerate(_cells(notebook), 1):
        source = _source(cell).strip("\n")
        if not source.strip():
            continue
        code = cell.get("cell_type") == "code"
        out.block(f"```{language} [cell {number}]\n{source}\n```" if code else source)
    title = _of(_of(notebook, "metadata"), "title")
    return finished(out.text(), title if isinstance(title, str) else None, "notebook")


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _cells(notebook: Any) -> list[Mapping[str, Any]]:
    cells = _of(notebook, "cells")
    if cells is None and isinstance(sheets := _of(notebook, "worksheets"), list):  # format 3
        cells = [cell for sheet in sheets for cell in _of(sheet, "cells") or ()]
    if not isinstance(cells, list):
        raise SkippedError("malformed", "it is no notebook: it has no cells")
    return [cell for cell in cells if isinstance(cell, Mapping)]


def _source(cell: Mapping[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    if cell.get("cell_type") == "heading":  # format 3
        level = cell.get("level")
        return "#" * (level if isinstance(level, int) and 0 < level <= 6 else 1) + " " + text
    return text


def _language(notebook: Any) -> str:
    metadata = _of(notebook, "metadata")
    name = _of(_of(metadata, "language_info"), "name") or _of(_of(metadata, "kernelspec"), "language")
    return name if isinstance(name, str) and name.isidentifier() else "python"
