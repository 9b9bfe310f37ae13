"""What git ignores below a folder, asked of git itself; `pathspec` answers where git cannot.

The tree may be anyone's: nothing that its ``.git/config`` names is run. `ls-files` runs no hooks; the file system monitor, the
only program it would start, is switched off; transports are forbidden, so that a partial clone fetches nothing; the
environment's own ``GIT_*`` are dropped. Outside a repository an empty one is made for the length of the call, with the folder
as its work tree, so that ``.gitignore`` files hold there with exactly the same meaning.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

_OPTIONS: Final = (
    "-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.untrackedCache=false",
    "-c", "core.quotePath=false",
)  # fmt: skip
_IGNORED: Final = ("ls-files", "-z", "-o", "-i", "--exclude-standard", "--directory")
#: A listing of a million files takes seconds; a git that says nothing for this long hangs on a dead network mount.
_TIMEOUT_S: Final = 600.0


class Ignored(Protocol):
    """Answers whether an entry is ignored. Paths are bytes, relative to the root asked about, without a slash at the end."""

    def __call__(self, path: bytes, is_dir: bool) -> bool:
        """Whether `path` is ignored."""


class GitUnavailableError(Exception):
    """Git is not installed or did not answer; the caller reads the ignore files itself."""


def run_git(folder: bytes, *arguments: str) -> bytes:
    """Run git in `folder` and return what it printed.

    Raises
    ------
    GitUnavailableError
        If there is no git, or it reports an error.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    command = ["git", *_OPTIONS, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise GitUnavailableError(str(error)) from error
    return done.stdout


def ignored_below(folder: bytes) -> Ignored:
    """Return what is ignored below `folder`: its repository's view, else that of ``.gitignore`` files alone."""
    try:
        return GitIgnored(_listing(folder))
    except GitUnavailableError:
        return SpecIgnored(folder)


def is_repository(folder: bytes) -> bool:
    """Whether `folder` is the top of a git work tree, and not merely has something called ``.git``."""
    try:
        top = run_git(folder, "rev-parse", "--show-toplevel").removesuffix(b"\n")
    except GitUnavailableError:
        return False
    return bool(top) and os.path.realpath(top) == os.path.realpath(folder)


def _listing(folder: bytes) -> bytes:
    if _inside_work_tree(folder):
        return run_git(folder, *_IGNORED)
    with _empty_repository() as git_dir:
        return run_git(folder, f"--git-dir={git_dir}", f"--work-tree={os.fsdecode(os.path.abspath(folder))}", *_IGNORED)


def _inside_work_tree(folder: bytes) -> bool:
    """Whether a repository's rules hold for `folder`: one that its repository ignores was named on purpose, and has its own."""
    try:
        top = run_git(folder, "rev-parse", "--show-toplevel").removesuffix(b"\n")
    except GitUnavailableError:
        return False
    here, top = os.path.realpath(folder), os.path.realpath(top)
    if os.path.commonpath((here, top)) != top:
        return False  # core.worktree points elsewhere
    try:
        run_git(folder, "check-ignore", "-q", ".")
    except GitUnavailableError:
        return True
    return here == top


class _empty_repository:  # noqa: N801  # reads as a function at its call
    """A bare minimum of a repository in a temporary folder."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="dgpunet-git-")
        git_dir = Path(self._folder.name)
        for name in ("objects", "refs"):
            (git_dir / name).mkdir()
        (git_dir / "HEAD").write_text("ref: refs/heads/none\n")
        return str(git_dir)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


class GitIgnored:
    """Git's own list of ignored files and folders."""

    def __init__(self, listing: bytes) -> None:
        entries = [e for e in listing.split(b"\0") if e]
        self._files = {e for e in entries if not e.endswith(b"/")}
        folders = {e[:-1] for e in entries if e.endswith(b"/")}
        # git also names a folder that is not ignored itself but holds nothing else than ignored entries, beside these entries
        self._folders = folders - {parent for e in entries for parent in _parents(e.rstrip(b"/"))}

    def __call__(self, path: bytes, is_dir: bool) -> bool:
        """Whether `path` is ignored."""
        return path in (self._folders if is_dir else self._files)


def _parents(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


class SpecIgnored:
    """``.gitignore`` files read by `pathspec`, each when the walk first comes below it; the deepest one with a say decides."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._specs: dict[bytes, object] = {}

    def __call__(self, path: bytes, is_dir: bool) -> bool:
        """Whether `path` is ignored."""
        for folder in (*_parents(path), b""):
            verdict = self._verdict(folder, path, is_dir)
            if verdict is not None:
                return verdict
        return False

    def _verdict(self, folder: bytes, path: bytes, is_dir: bool) -> bool | None:
        from pathspec import GitIgnoreSpec

        if folder not in self._specs:
            self._specs[folder] = GitIgnoreSpec.from_lines(_lines(os.path.join(self._root, folder, b".gitignore")))
        spec = self._specs[folder]
        relative = path[len(folder) + 1 :] if folder else path
        assert isinstance(spec, GitIgnoreSpec)  # the dict's type stays light for a lazy import
        return spec.check_file(os.fsdecode(relative) + ("/" if is_dir else "")).include


def _lines(file: bytes) -> list[str]:
    try:
        with open(file, "rb") as opened:
            return os.fsdecode(opened.read(1 << 20)).splitlines()
    except OSError:
        return []
