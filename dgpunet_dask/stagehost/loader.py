"""Importing the code of workloads. Standard library only.

The modules of the workload with digest ``ab12…`` are imported as ``dgpunet_workload_ab12….<module>`` from ``<workloads>/ab12…/``, in every
process alike. So two workloads whose modules have equal names never meet in one process, and an instance of a user's class that was
pickled in one process is found in any other.

Plain imports of siblings (``import helpers`` in stages.py) are rewritten when the module is compiled: a name that the workload's folder has
is taken from there, as a script's own folder comes first in Python. Imports by name at run time (`importlib.import_module`) are not.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from dgpunet_dask.errors import BadWorkload, DgpunetError, did_you_mean
from dgpunet_dask.model.stage import Stage

PREFIX: Final = "dgpunet_workload_"
_DIGEST_LETTERS: Final = 16
_NAME: Final = re.compile(r"^name:\s*['\"]?([A-Za-z0-9._-]+)", re.MULTILINE)


def package_of(digest: str) -> str:
    """Return the name of the package that the workload `digest` is imported as."""
    return PREFIX + digest[:_DIGEST_LETTERS]


def install(workloads_dir: Path | str) -> None:
    """Let this process import the workloads in `workloads_dir`. Doing so again, or for a second folder, is fine."""
    root = Path(workloads_dir).absolute()
    finder = next((f for f in sys.meta_path if isinstance(f, WorkloadFinder)), None)
    if finder is None:
        finder = WorkloadFinder()
        sys.meta_path.insert(0, finder)
    if root not in finder.roots:
        finder.roots.append(root)


def load_stage(digest: str, run: str) -> type[Stage]:
    """Return the stage class that ``run`` (``module:Class``) names in the workload `digest`; `install` comes first.

    Raises
    ------
    BadWorkload
        If the module cannot be imported, or has no such subclass of `Stage`. ``fields["traceback"]`` says where.
    """
    module_name, _, class_name = run.partition(":")
    module = _import(digest, module_name)
    found = getattr(module, class_name, None)
    if found is None:
        hint = did_you_mean(class_name, _stages_in(module))
        raise BadWorkload(workload=_called(digest), why=f"{module_name} has no class {class_name!r}{hint}")
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise BadWorkload(workload=_called(digest), why=f"{run} is no subclass of dgpunet_dask.Stage")
    return found


def _called(digest: str) -> str:
    """Return the name that a workload's job.yaml gives it, by which its user knows it; else the beginning of its digest."""
    for root in (root for finder in sys.meta_path if isinstance(finder, WorkloadFinder) for root in finder.roots):
        with contextlib.suppress(OSError, ValueError):
            if found := _NAME.search((root / digest / "job.yaml").read_text(encoding="utf-8")):
                return found[1]
    return digest[:12]


def _import(digest: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{package_of(digest)}.{module_name}")
    except DgpunetError:
        raise
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        why = f"importing {module_name} failed with {kind}: {error}"
        raise BadWorkload(workload=_called(digest), why=why, kind=kind, traceback=traceback.format_exc()) from error


def _stages_in(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Stage)]


class WorkloadFinder(MetaPathFinder):
    """Finds ``dgpunet_workload_<digest>`` packages and what is in them."""

    def __init__(self) -> None:
        self.roots: list[Path] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where to import `fullname` from, ``None`` if it is no workload's."""
        if not fullname.startswith(PREFIX):
            return None
        package, _, inner = fullname.partition(".")
        folder = self._folder(package.removeprefix(PREFIX))
        if folder is None:
            return None
        return _module_spec(fullname, folder, folder / "__init__.py") if not inner else _inner_spec(fullname, folder, path)

    def _folder(self, letters: str) -> Path | None:
        if not letters.isalnum():
            return None
        return next((f for root in self.roots for f in sorted(root.glob(f"{letters}*")) if f.is_dir() and f.name.isalnum()), None)


def _inner_spec(fullname: str, folder: Path, path: Sequence[str] | None) -> ModuleSpec | None:
    """Return the spec of a module or package inside a workload; extension modules are left to Python's own finder."""
    leaf = fullname.rpartition(".")[2]
    for parent in map(Path, path or ()):
        if (parent / leaf).is_dir() and (init := parent / leaf / "__init__.py").exists():
            return _module_spec(fullname, folder, init)
        if (file := parent / f"{leaf}.py").exists():
            return importlib.util.spec_from_file_location(fullname, file, loader=WorkloadLoader(fullname, str(file), folder))
    return PathFinder.find_spec(fullname, path)


def _module_spec(fullname: str, folder: Path, init: Path) -> ModuleSpec | None:
    """Return the spec of a package; without an ``__init__.py`` it is a namespace of its one folder."""
    inside = [str(init.parent)]
    if init.exists():
        loader = WorkloadLoader(fullname, str(init), folder)
        return importlib.util.spec_from_file_location(fullname, init, loader=loader, submodule_search_locations=inside)
    spec = ModuleSpec(fullname, None, is_package=True)
    spec.submodule_search_locations = inside
    return spec


class WorkloadLoader(SourceFileLoader):
    """Compiles a workload's module with its sibling imports made absolute. Writes no bytecode: the folder is known by its content."""

    def __init__(self, fullname: str, path: str, folder: Path) -> None:
        super().__init__(fullname, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code, compiled from source each time."""
        path = self.get_filename(fullname)
        return self._compiled(self.get_data(path), path)

    def _compiled(self, data: bytes, path: str) -> CodeType:
        package = self.name.partition(".")[0]
        tree = ast.parse(data, path)
        rewritten = ast.fix_missing_locations(SiblingImports(package, self._folder).visit(tree))
        code: CodeType = compile(rewritten, path, "exec", dont_inherit=True)
        return code


class SiblingImports(ast.NodeTransformer):
    """Rewrites ``import helpers`` to ``import <package>.helpers as helpers`` where the workload's folder has ``helpers``."""

    def __init__(self, package: str, folder: Path) -> None:
        self._package = package
        self._folder = folder

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        """Rewrite ``from helpers import x``; relative imports are right as they are."""
        if node.level == 0 and node.module and is_sibling(self._folder, node.module.partition(".")[0]):
            node.module = f"{self._package}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        """Rewrite ``import helpers``, ``import helpers as h`` and ``import helpers.inner``."""
        statements: list[ast.stmt] = []
        for alias in node.names:
            top = alias.name.partition(".")[0]
            names = self._names(alias, top) if is_sibling(self._folder, top) else [alias]
            statements += [ast.copy_location(ast.Import([name]), node) for name in names]
        return statements

    def _names(self, alias: ast.alias, top: str) -> list[ast.alias]:
        full = f"{self._package}.{alias.name}"
        if alias.asname or alias.name == top:
            return [ast.alias(full, alias.asname or top)]
        # `import helpers.inner` binds `helpers`: import the inner one first, under a name of no use, then the outer
        return [ast.alias(full, "_dgpunet_sibling"), ast.alias(f"{self._package}.{top}", top)]


@lru_cache(maxsize=4096)
def is_sibling(folder: Path, name: str) -> bool:
    """Whether the workload in `folder` has a module or package `name`.

    A folder without ``__init__.py`` counts only where Python has no module of that name, as in Python's own search.
    """
    if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
        return True
    if any((folder / f"{name}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        return True
    if not (folder / name).is_dir() or name in sys.stdlib_module_names:
        return False
    return PathFinder.find_spec(name) is None
