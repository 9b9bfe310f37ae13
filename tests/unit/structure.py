"""The product's source as syntax trees, for the tests of its structure."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers import ROOT

PACKAGE = "dgpunet_dask"


@dataclass(frozen=True)
class Source:
    """One Python file: its place below the checkout, its text and its tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The dotted name: ``dgpunet_dask.model.stage``; a package's ``__init__`` has the package's name."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, and where the import stands."""

    name: str
    line: int
    in_function: bool
    typing_only: bool


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return the files of the checkout that git tracks or would track, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return tuple(sorted(Path(line) for line in set(listed) if (ROOT / line).is_file()))


@cache
def sources(*tops: str) -> tuple[Source, ...]:
    """Return the Python files below these top folders."""
    found = [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] in tops]
    return tuple(_read(path) for path in found)


def _read(path: Path) -> Source:
    text = (ROOT / path).read_text(encoding="utf-8")
    return Source(path, text, ast.parse(text, filename=str(path)))


@cache
def modules() -> dict[str, Source]:
    """Return the package's files by dotted name."""
    return {source.module: source for source in sources(PACKAGE)}


def imports(source: Source) -> list[Import]:
    """Return what a file imports; ``from package import module`` counts as the module where there is one."""
    return list(_walk(source.tree, source, in_function=False, typing_only=False))


def _walk(node: ast.AST, source: Source, *, in_function: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, in_function, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(name, child.lineno, in_function, typing_only) for name in _from_names(child, source))
        else:
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typed = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            yield from _walk(child, source, in_function=inside, typing_only=typed)


def _from_names(node: ast.ImportFrom, source: Source) -> list[str]:
    base = node.module or ""
    if node.level:
        package = source.path.parent.parts[: len(source.path.parent.parts) - node.level + 1]
        base = ".".join([*package, *([node.module] if node.module else [])])
    if not base.startswith(PACKAGE):
        return [base]
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in _module_names() else base for alias in node.names]


@cache
def _module_names() -> frozenset[str]:
    parts = (path.with_suffix("").parts for path in tracked_files() if path.suffix == ".py" and path.parts[0] == PACKAGE)
    return frozenset(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)


def report(faults: list[str], rule: str) -> None:
    """Fail with the rule and every fault."""
    assert not faults, "\n  ".join([f"{len(faults)} against the rule: {rule}", *faults])
