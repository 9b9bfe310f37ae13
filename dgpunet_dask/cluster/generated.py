"""The generated policies of a home: ``policy/generated/HOST.yaml``, read for the state that they carry, written whole."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import UnreadablePath
from dgpunet_dask.placement.derive import Generated, Standing, read_standings
from dgpunet_dask.security.files import write_private


def generated_folder(home: Home) -> Path:
    """Return where the generated policies of a home lie."""
    return home.policy / "generated"


def simulated_list(home: Home) -> Path:
    """Return the file that names those of them which are of simulated machines, a line each."""
    return home.policy / "simulated"


def note_simulated(home: Home, found: Iterable[Change]) -> None:
    """Note the files that are about to be written for machines that there are not.

    Raises
    ------
    UnreadablePath
        If the list cannot be read.
    """
    path = simulated_list(home)
    before = set((_read(path) or "").splitlines())
    if new := {change.path.name for change in found if change.old is None and change.new is not None} - before:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # in a new home there are no rules yet
        write_private(path, "".join(f"{name}\n" for name in sorted(before | new)))


def forget_simulated(home: Home) -> None:
    """Remove the files of simulated machines: they are no rules for real ones.

    Raises
    ------
    UnreadablePath
        If the list cannot be read.
    """
    path = simulated_list(home)
    for name in (_read(path) or "").splitlines():
        (generated_folder(home) / Path(name).name).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Change:
    """What becomes of one host's file.

    Parameters
    ----------
    old, new
        Its text before and after, ``None`` where there is no file.
    facts
        The hash of the facts behind `new`.
    """

    host: str
    path: Path
    old: str | None
    new: str | None
    facts: str | None

    @property
    def differs(self) -> bool:
        """Whether the file would be written or removed."""
        return self.old != self.new

    def diff(self) -> str:
        """Return the change as a unified diff, empty where there is none."""
        before, after = ((text or "").splitlines(keepends=True) for text in (self.old, self.new))
        old_name, new_name = ("/dev/null" if text is None else str(self.path) for text in (self.old, self.new))
        return "".join(difflib.unified_diff(before, after, old_name, new_name))


def past_standings(folder: Path) -> dict[str, Standing]:
    """Return the standings of all cards that the files in `folder` know.

    Raises
    ------
    UnreadablePath
        If a file cannot be read.
    """
    found: dict[str, Standing] = {}
    for path in sorted(folder.glob("*.yaml")):
        found |= read_standings(_read(path) or "")
    return found


def changes(folder: Path, derived: Iterable[Generated]) -> list[Change]:
    """Return what `derived` changes in `folder`, one entry a host, those without a difference too.

    The file of another host goes where it speaks of a card that is elsewhere now: two files would have a rule of one name.

    Raises
    ------
    UnreadablePath
        If a file cannot be read.
    """
    derived = list(derived)
    paths = [folder / f"{one.host}.yaml" for one in derived]
    cards = {name for one in derived for name in one.standings}
    found = [Change(one.host, path, _read(path), one.text, one.facts) for one, path in zip(derived, paths, strict=True)]
    for path in sorted(set(folder.glob("*.yaml")).difference(paths)):
        text = _read(path) or ""
        if cards & read_standings(text).keys():
            found.append(Change(path.stem, path, text, None, None))
    return found


def write(found: Iterable[Change]) -> list[Path]:
    """Write the files that differ, each in one step, remove those that are of no use any more, and return both.

    Raises
    ------
    UnreadablePath
        If a folder cannot be made or written.
    """
    written = sorted((change for change in found if change.differs), key=lambda change: change.new is not None)
    for change in written:
        try:
            if change.new is None:
                change.path.unlink(missing_ok=True)
                continue
            _make(change.path.parent)
            write_private(change.path, change.new)
        except OSError as error:
            raise UnreadablePath(path=change.path, why=error.strerror or str(error)) from error
    return [change.path for change in written]


def _make(folder: Path) -> None:
    """Make `folder` and what is missing above it, readable by their owner only."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None  # a folder that cannot be made is told when it is written
    except OSError as error:
        raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
    except UnicodeDecodeError:
        return ""  # broken by a person: it is written anew
