"""``--array KEY=VALUES``: the parameters in which the jobs of an array differ."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dgpunet_dask.config.home import expanded
from dgpunet_dask.errors import BadValue, MissingPath, UnreadablePath

#: The most jobs of one array; the head takes no more.
MOST: Final = 1000
_RANGE: Final = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")


def combinations(texts: Iterable[str], *, cwd: Path) -> list[list[tuple[str, str]]]:
    """Return the settings of each job: every combination of the keys' values, the last key's changing first. No `texts`, no jobs.

    ``KEY=V1,V2`` lists values, of which ``A..B`` are the whole numbers from A to B; ``KEY=@FILE`` takes each line of a file that is not empty.

    Raises
    ------
    BadValue
        If a key is set twice or has no value, or there are more than `MOST` combinations.
    MissingPath, UnreadablePath
        From a file of values.
    """
    keys: dict[str, Sequence[str]] = {}
    for key, equals, text in (text.partition("=") for text in texts):
        if not equals or not key:
            raise BadValue(what="--array", value=key, why="write it as KEY=V1,V2, KEY=A..B or KEY=@FILE")
        if key in keys:
            raise BadValue(what="--array", value=f"{key}={text}", why=f"{key} was given before; list all its values at once")
        keys[key] = _values(key, text, cwd)
    if not keys:
        return []
    _check_count(", ".join(keys), math.prod(len(values) for values in keys.values()))
    return [list(zip(keys, row, strict=True)) for row in itertools.product(*keys.values())]


def _values(key: str, text: str, cwd: Path) -> Sequence[str]:
    if text.startswith("@"):
        found = [line for line in _read(cwd / expanded(text[1:], "--array")).splitlines() if line.strip()]
    else:
        found = [value for part in text.split(",") for value in _counted(key, part)] if text else []
    if not found:
        raise BadValue(what="--array", value=f"{key}={text}", why="it holds no value; write KEY=V1,V2, KEY=A..B or KEY=@FILE")
    return found


def _counted(key: str, part: str) -> Sequence[str]:
    """Return the numbers of ``A..B``, else the value itself."""
    found = _RANGE.fullmatch(part)
    if found is None:
        return [part]
    first, last = int(found[1]), int(found[2])
    _check_count(key, last - first + 1)
    return [str(number) for number in range(first, last + 1)]


def _check_count(keys: str, count: int) -> None:
    if count > MOST:
        raise BadValue(what="--array", value=keys, why=f"that makes {count} jobs, and an array may have {MOST}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingPath(path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadablePath(path=path, why=getattr(error, "strerror", None) or "it is not UTF-8 text") from error
