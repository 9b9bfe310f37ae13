"""Policy test files on disk: found, and read with the fleet and the policies that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dgpunet_dask.cluster.policy_files import layer_of
from dgpunet_dask.config.yamlfile import read_text
from dgpunet_dask.errors import MalformedFile, MissingPath, Problem, UnreadablePath
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.cases.case_file import Reference, parse_cases, references
from dgpunet_dask.placement.cases.values import Suite
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.policy_file import parse_policies


def find_cases(paths: Iterable[Path]) -> list[Path]:
    """Return the files that `paths` name, each once; of a folder the policy test files in and below it, sorted.

    Raises
    ------
    MissingPath
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise MissingPath(path=path)
        found.update(dict.fromkeys(filter(_looks_like_cases, sorted(path.rglob("*"))) if path.is_dir() else [path]))
    return list(found)


#: What no policy and no fleet file has at its top.
_CASES: Final = re.compile(rb"""(?:^|[{,]\s*)["']?(?:cases|fleet)["']?\s*:""", re.MULTILINE)


def _looks_like_cases(path: Path) -> bool:
    """Whether a file in a folder is meant: policies and fleets may lie beside their tests."""
    return path.suffix in {".yaml", ".yml"} and path.is_file() and _CASES.search(path.read_bytes()) is not None


def load_suites(paths: Iterable[Path]) -> list[Suite]:
    """Return the cases of each of the files `paths`.

    Raises
    ------
    MalformedFile
        With every mistake of every file, those of fleets and policies too.
    MissingPath, UnreadablePath, NewerFormat
    """
    loader = _Loader()
    suites = [suite for path in paths if (suite := loader.suite(path)) is not None]
    if loader.problems:
        raise MalformedFile(loader.problems)
    return suites


class _Loader:
    """Reads each file once, and gathers what is wrong in all of them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._texts: dict[Path, str | None] = {}
        self._fleets: dict[Path, Fleet | None] = {}
        self._policies: dict[tuple[tuple[Path, str], ...], Policy | None] = {}

    def suite(self, path: Path) -> Suite | None:
        """Return the cases of one file; ``None`` where something is wrong with it."""
        text = self._text(path)
        if text is None:
            return None
        try:
            named = references(text, str(path))
            fleet = None if named.fleet is None else self._fleet(path, named.fleet)
            return parse_cases(text, str(path), fleet, self._policy(path, named.policies))
        except MalformedFile as error:
            self.problems += error.problems
            return None

    def _text(self, path: Path) -> str | None:
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def _read(self, path: Path) -> str | None:
        try:
            return read_text(path)
        except MalformedFile as error:
            self.problems += error.problems
            return None

    def _named(self, file: Path, named: Reference) -> tuple[Path, str] | None:
        """Return place and text of a file that `file` names."""
        path = Path(os.path.normpath(file.parent / named.path))
        try:
            text = self._text(path)
        except (MissingPath, UnreadablePath, ValueError):
            what = f"there is no file {str(path)!r} that can be read; write its path as seen from this file's folder"
            self.problems.append(Problem(str(file), named.line, named.col, what))
            return None
        return None if text is None else (path, text)

    def _fleet(self, file: Path, named: Reference) -> Fleet | None:
        found = self._named(file, named)
        if found is None:
            return None
        path, text = found
        if path not in self._fleets:
            self._fleets[path] = None
            try:
                self._fleets[path] = parse_fleet(text, str(path))
            except MalformedFile as error:
                self.problems += error.problems
        return self._fleets[path]

    def _policy(self, file: Path, named: Iterable[Reference]) -> Policy | None:
        found = [(self._named(file, reference), reference.layer) for reference in named]
        sources = [(pair[1], str(pair[0]), layer or layer_of(pair[0])) for pair, layer in found if pair is not None]
        if len(sources) < len(found):
            return None
        key = tuple((Path(path), layer) for _, path, layer in sources)
        if key not in self._policies:
            self._policies[key] = None
            try:
                self._policies[key] = parse_policies(sources)
            except MalformedFile as error:
                self.problems += error.problems
        return self._policies[key]
