"""Trees on disk for tests of discovery."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from dgpunet_dask.retrieval.discover import Text, discover, read_text, roots_of


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=folder, check=True, capture_output=True)


def walk(*paths: Path) -> tuple[list[str], Counter[tuple[str, str]]]:
    skipped: Counter[tuple[str, str]] = Counter()
    entries = discover(roots_of(paths), lambda code, path: skipped.update([(code, path)]))
    return [e.path for e in entries], skipped


def texts(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the texts found below `root`, and the skip codes of all else, by path."""
    skipped: dict[str, str] = {}
    found = {e.path: read_text(e) for e in discover(roots_of([root]), lambda code, path: skipped.update({path: code}))}
    return (
        {p: t.text for p, t in found.items() if isinstance(t, Text)},
        skipped | {p: t for p, t in found.items() if isinstance(t, str)},
    )
