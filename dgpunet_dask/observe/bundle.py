"""The bundle for a bug report: texts, redacted, in one archive that its writer alone can read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.observe.redact import Rules, redact, shortened, without_output

#: Of each log, its last lines within this size.
TAIL_BYTES: Final = 256 << 10
#: The newest logs; stage hosts leave one each.
LOGS: Final = 64
_FOLDER: Final = "dgpunet-report"


@dataclass(frozen=True)
class Item:
    """One file of a bundle.

    Parameters
    ----------
    name
        Below the bundle's folder.
    text
        As it is written: redacted.
    redacted
        How often each kind of thing was taken out.
    left_out
        Lines of a log that no logger wrote.
    """

    name: str
    text: str
    redacted: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.text.encode())

    def to_json(self) -> dict[str, Any]:
        """Return what a list of contents says of it."""
        return {"name": self.name, "bytes": self.size, "redacted": dict(self.redacted), "lines_left_out": self.left_out}

    def __str__(self) -> str:
        told = [f"{kind}: {count}" for kind, count in sorted(self.redacted.items())]
        told += [f"lines left out: {self.left_out}"] if self.left_out else []
        return f"{self.name}  {self.size} bytes" + (f"  ({', '.join(told)})" if told else "")


def item(name: str, text: str, rules: Rules, *, log: bool = False) -> Item:
    """Return a text as an item, redacted; of a log, the lines that a logger wrote."""
    clean, count = redact(text, rules)
    clean, left = without_output(clean) if log else (clean, 0)
    safe, _ = redact(name, rules)
    return Item(safe.replace("/", "_") if not name.startswith(("logs/", "policies/")) else safe, clean, +count, left)


def json_item(name: str, value: Any, rules: Rules) -> Item:
    """Return a JSON value as an item. Each text in it is redacted by itself, so that the file stays JSON."""
    count: Counter[str] = Counter()
    text = json.dumps(_clean(value, rules, count), indent=1, default=str)
    return Item(name, text + "\n", +count)


def _clean(value: Any, rules: Rules, count: Counter[str], name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_text(str(key), rules, count): _clean(inner, rules, count, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner, rules, count, name) for inner in value]
    if not isinstance(value, str):
        return value
    # a secret may be known by its key alone
    told = _text(f"{name}={value}", rules, count) if name else _text(value, rules, count)
    return told[len(name) + 1 :] if name and told.startswith(f"{name}=") else told


def _text(text: str, rules: Rules, count: Counter[str]) -> str:
    clean, found = redact(text, rules)
    count.update(found)
    return clean


def logs(folder: Path, rules: Rules, *, with_output: bool) -> Iterator[Item]:
    """Yield the last lines of the newest logs in a folder and below it."""
    files = [path for path in folder.rglob("*.log*") if path.is_file() and not path.is_symlink()] if folder.is_dir() else []
    for path in sorted(sorted(files, key=_changed)[-LOGS:]):
        with contextlib.suppress(OSError):
            yield item(f"logs/{'_'.join(path.relative_to(folder).parts)}", tail(path), rules, log=not with_output)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def tail(path: Path, most: int = TAIL_BYTES) -> str:
    """Return the last whole lines of a file, at most `most` bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most))
        found = file.read(most)
    if size > most:
        found = found.partition(b"\n")[2]
    return found.decode("utf-8", "replace")


def jobs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return jobs without what they worked on: parameters shortened, errors by their code alone."""
    kept = ("job_id", "workload", "state", "units", "seconds", "submitted_at", "exit_code")
    return [
        {key: row.get(key) for key in kept} | {"params": shortened(row.get("params") or {}), "error": (row.get("error") or {}).get("code")}
        for row in rows
    ]


def contents(items: Sequence[Item]) -> str:
    """Return the list of contents, one line each."""
    return "".join(f"{one}\n" for one in items)


def write_bundle(path: Path, items: Sequence[Item], at: float) -> None:
    """Write the archive in one step, mode 0600.

    Parameters
    ----------
    at
        The time that its files carry, seconds since 1970.

    Raises
    ------
    OSError
        If it cannot be written. Nothing is left then.
    """
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for one in items:
                    _add(archive, one, at)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _add(archive: tarfile.TarFile, one: Item, at: float) -> None:
    body = one.text.encode()
    told = tarfile.TarInfo(f"{_FOLDER}/{one.name}")
    told.size, told.mtime, told.mode = len(body), int(at), 0o600
    archive.addfile(told, io.BytesIO(body))
