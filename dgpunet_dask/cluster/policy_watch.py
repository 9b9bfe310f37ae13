"""The policy files of a head on disk: which they are, whether they have changed and come to rest, and the cases that go with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dgpunet_dask.cluster.policy_files import FOLDERS, policy_paths, yaml_files
from dgpunet_dask.cluster.policy_tests import find_cases, load_suites
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.yamlfile import read_text
from dgpunet_dask.errors import DgpunetError, PolicyCasesFailed
from dgpunet_dask.placement.cases.case_file import references
from dgpunet_dask.placement.cases.run import run_suite

log = logging.getLogger(__name__)

#: For each file its name, modification time (ns), size and inode; all -1 where there is no file.
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Places:
    """Where a head's policies lie: the files or folders `given` to it, else ``policy/generated`` and ``policy/human`` of its home."""

    home: Home
    given: tuple[Path, ...] = ()

    def files(self) -> list[Path]:
        """Return the files that are there now.

        Raises
        ------
        MissingPath
            For a given folder without any.
        """
        if self.given:
            return policy_paths(self.given)
        return [file for part in FOLDERS for file in yaml_files(self.home.policy / part)]

    def folders(self) -> list[Path]:
        """Return where cases may lie: the folder ``tests`` beside the files."""
        return list(dict.fromkeys([p / "tests" if p.is_dir() else p.parent / "tests" for p in self.given])) or [self.home.policy / "tests"]

    def cases(self, files: Iterable[Path]) -> list[Path]:
        """Return the test files that name one of `files`; others in those folders are none of ours."""
        known = {os.path.realpath(file) for file in files}
        return [path for folder in self.folders() if folder.is_dir() for path in find_cases([folder]) if known & set(_named_by(path))]


def _named_by(path: Path) -> Iterator[str]:
    """Yield the policy files that a test file names, as real paths: unlike `resolve`, those of a loop of links too."""
    try:
        found = references(read_text(path), str(path))
    except DgpunetError as error:
        log.info("%s holds no cases that can be read: %s", path, error)
        return
    for reference in found.policies:
        yield os.path.realpath(path.parent / reference.path)


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return what tells one state of the files at `paths` from another."""
    return tuple((str(path), *_stat(path)) for path in paths)


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1, -1
    return found.st_mtime_ns, found.st_size, found.st_ino


class Rest:
    """Tells when files differ from what was read and have come to rest: equal in two looks, since editors write in several steps."""

    def __init__(self, read: Stamp = ()) -> None:
        self._read = self._last = read

    def due(self, now: Stamp) -> bool:
        """Whether the files, which are `now` like this, are to be read."""
        rested, self._last = now == self._last, now
        return rested and now != self._read

    def took(self, read: Stamp) -> None:
        """Note that the files have been read in this state, whatever came of it."""
        self._read = read


def check_cases(paths: Iterable[Path]) -> None:
    """Run the cases of the test files at `paths`, as ``policy test`` does.

    Raises
    ------
    PolicyCasesFailed
        If any fails.
    UsageError
        If a file is malformed.
    """
    results = [result for suite in load_suites(paths) for result in run_suite(suite)]
    failed = [result for result in results if not result.passed]
    if failed:
        names = "; ".join(f"{r.case.name!r} ({r.file}:{r.case.line})" for r in failed[:3]) + ("; ..." if len(failed) > 3 else "")
        where = " ".join(dict.fromkeys(r.file for r in failed))
        raise PolicyCasesFailed(count=len(failed), names=names, where=where)
