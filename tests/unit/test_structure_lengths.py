"""Functions and files stay short."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

from tests.helpers import ROOT
from tests.unit.structure import Source, report, sources, tracked_files

MEDIAN, P95, MOST, FILE = 10, 45, 70, 500


def lengths(source: Source) -> list[tuple[int, str]]:
    """Return the lines of each function, from ``def`` to the last line with the docstring left out, and where it stands."""
    functions = [node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(_lines(node), f"{source.path}:{node.lineno} {node.name}") for node in functions]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    has_docstring = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def every_function() -> list[tuple[int, str]]:
    return sorted((pair for source in sources("dgpunet_dask", "workloads") for pair in lengths(source)), reverse=True)


def test_no_function_is_long():
    report([f"{where}: {lines} lines" for lines, where in every_function() if lines > MOST], f"a function has at most {MOST} lines")


def test_functions_are_short_as_a_whole():
    counts = [lines for lines, _ in every_function()]
    assert statistics.median(counts) <= MEDIAN
    assert statistics.quantiles(counts, n=20)[-1] <= P95, f"the longest: {every_function()[:8]}"


def test_no_file_is_long():
    files = [path for path in tracked_files() if path.suffix == ".py" or _is_script(path)]
    counts = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in files}
    report([f"{path}: {lines} lines" for path, lines in counts.items() if lines > FILE], f"a file has at most {FILE} lines")


def _is_script(path: Path) -> bool:
    return path.parts[0] in {"scripts", ".ci"} and not path.suffix


def test_a_docstring_is_left_out_of_the_count():
    tree = ast.parse('def f(a):\n    """One.\n\n    Two.\n    """\n    return a\n')
    assert _lines(tree.body[0]) == 2
