"""``--array KEY=VALUES``: the parameters in which the jobs of an array differ."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import BadValue, MissingPath, UnreadablePath

#: The most jobs of one array; the head takes no more.
MOST: Final = 1000
_RANGE: Final = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")


def combinations(texts: Iterable[str], *, cwd: Path) -> list[list[tuple[str, str]]]:
    """Return the settings of each job: every combination of the keys' values, the last key's changing first. No `texts`, no jobs.

    ``KEY=V1,V2`` lists values, ``KEY=A..B`` counts whole numbers from A to B, ``KEY=@FILE`` takes each line of a file that is not empty.

    Raises
    ------
    BadValue
        If a key is set twice or has no value, or there are more than `MOST` combinations.
    MissingPath, UnreadablePath
        From a file of values.
    """
    keys: dict[str, list[str] | range] = {}
    for key, equals, text in (text.partition("=") for text in texts):
        if not equals or not key:
            raise BadValue(what="--array", value=key, why="write it as KEY=V1,V2, KEY=A..B or KEY=@FILE")
        if key in keys:
            raise BadValue(what="--array", value=f"{key}={text}", why=f"{key} was given before; list all its values at once")
        keys[key] = _values(key, text, cwd)
    if not keys:
        return []
    count = math.prod(len(values) for values in keys.values())
    if count > MOST:
        raise BadValue(what="--array", value=", ".join(keys), why=f"that makes {count} jobs, and an array may have {MOST}")
    return [[(key, str(value)) for key, value in zip(keys, row, strict=True)] for row in itertools.product(*keys.values())]


def _values(key: str, text: str, cwd: Path) -> list[str] | range:
    found: list[str] | range = text.split(",") if text else []
    if text.startswith("@"):
        found = [line for line in _read(cwd / Path(text[1:]).expanduser()).splitlines() if line.strip()]
    elif counted := _RANGE.fullmatch(text):
        found = range(int(counted[1]), int(counted[2]) + 1)
    if not found:
        raise BadValue(what="--array", value=f"{key}={text}", why="it holds no value; write KEY=V1,V2, KEY=A..B or KEY=@FILE")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingPath(path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadablePath(path=path, why=getattr(error, "strerror", None) or "it is not UTF-8 text") from error
