"""The points where a process may fail are those that the code comes to."""

from __future__ import annotations

import ast

from dgpunet_dask.failpoints import POINTS
from tests.unit.structure import report, sources


def hits() -> dict[str, list[str]]:
    """Return where each point is hit, by its name; a name that is not written out is under its source text."""
    found: dict[str, list[str]] = {}
    for source in sources("dgpunet_dask"):
        if source.module == "dgpunet_dask.failpoints" or source.path.parts[1] == "testing":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and _called(node.func) in {"hit", "failpoint", "_failpoint"} and node.args:
                name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0])
                found.setdefault(str(name), []).append(f"{source.path}:{node.lineno}")
    return found


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def test_the_code_hits_the_points_of_the_table_and_no_others():
    found = hits()
    report([f"{name} is hit nowhere" for name in POINTS if name not in found], "each point of POINTS stands in the code")
    report([f"{where} hits {name}" for name, places in found.items() if name not in POINTS for where in places], "POINTS lists each point")
