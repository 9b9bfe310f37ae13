"""What a text consists of: by its language's grammar, by headings and paragraphs, or else by line patterns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dgpunet_dask.retrieval.headings import TEXT, of_text
from dgpunet_dask.retrieval.patterns import comments_above, of_lines
from dgpunet_dask.retrieval.syntax import Definition, Outline, parsed


def read_outline(text: str, language: str) -> Outline:
    """Return what is known of the structure of `text`."""
    lines = text.split("\n")
    if language in TEXT:
        return of_text(lines, language)
    found = parsed(text, language)
    if found is not None and found.unparsed is None:
        return found
    by_lines = Outline(of_lines(lines, language), comments_above(lines), lambda _: _indents(lines))
    return by_lines if found is None else replace(by_lines, unparsed=found.unparsed)


def outline(text: str, language: str) -> list[Definition]:
    """Return the definitions of `text` in the order of their lines; empty where the language has none that are known."""
    return read_outline(text, language).definitions


def _indents(lines: Sequence[str]) -> dict[int, int]:
    """Before which rows a text is well cut, if only its indentation is known."""
    return {row: 1 + min(len(line) - len(line.lstrip()), 99) for row, line in enumerate(lines) if row and line.strip()}
