"""Policy files on disk: which they are, of which layer, and what they say together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dgpunet_dask.config.yamlfile import read_text
from dgpunet_dask.errors import MalformedFile, MissingPath
from dgpunet_dask.model.policy import Layer, Policy
from dgpunet_dask.placement.policy_file import Source, parse_policies

FOLDERS = ("generated", "human")


def policy_paths(given: Iterable[Path]) -> list[Path]:
    """Return the files among `given`, and of each folder all its ``*.yaml``: in it, then in its ``generated`` and ``human``.

    A file that is named twice counts once. Hidden files of a folder are left out, as a shell does: they are those of editors and copiers.

    Raises
    ------
    MissingPath
        For a folder without any.
    """
    found: dict[Path, Path] = {}
    for path in given:
        for file in _in_folder(path) if path.is_dir() else (path,):
            found.setdefault(Path(os.path.realpath(file)), file)
    return list(found.values())


def _in_folder(folder: Path) -> Iterator[Path]:
    files = [file for part in ("", *FOLDERS) for file in yaml_files(folder / part)]
    if not files:
        raise MissingPath(path=folder / "*.yaml")
    yield from files


def yaml_files(folder: Path) -> list[Path]:
    """Return the policy files that lie in `folder` itself, by name."""
    return [file for file in sorted(folder.glob("*.yaml")) if file.is_file() and not file.name.startswith(".")]


def layer_of(path: Path) -> Layer:
    """Return the layer of a file by the folder that it lies in: `generated`, else people have written it."""
    return "generated" if Path(os.path.realpath(path)).parent.name == "generated" else "human"


def read_policies(paths: Iterable[Path]) -> Policy:
    """Return what the files at `paths` say together; see `read_sources` for what may be wrong."""
    return read_sources(paths)[1]


def read_sources(paths: Iterable[Path]) -> tuple[tuple[Source, ...], Policy]:
    """Return the text, name and layer of each file at `paths`, and what they say together.

    Raises
    ------
    MissingPath, UnreadablePath
        If one cannot be read.
    MalformedFile
        With every mistake of every file.
    NewerFormat
        For a version that this release does not know.
    """
    sources: list[Source] = []
    problems = []
    for path in paths:
        try:
            sources.append((read_text(path), str(path), layer_of(path)))
        except MalformedFile as error:
            problems += error.problems
    try:
        policy = parse_policies(sources)
    except MalformedFile as error:
        problems += error.problems
    if problems:
        raise MalformedFile(problems)
    return tuple(sources), policy
