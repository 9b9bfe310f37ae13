"""Parameters of a job: ``--set KEY=VALUE`` cast to the types that job.yaml states."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import BadName, BadValue, MissingParameter, MissingPath, UnknownParameter, UnreadablePath, did_you_mean
from dgpunet_dask.model.pipeline import Param, Workload

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file system takes 255 bytes, and more is put around a name
#: Casts a text: the parameter's type and name, the text, and where relative paths are taken from.
Cast = Callable[[str, str, str, Path | None], Any]
_BOOLS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def split_settings(settings: Iterable[str]) -> list[tuple[str, str]]:
    """Split each ``KEY=VALUE`` at its first ``=``.

    Raises
    ------
    BadValue
        If there is no ``=``, or no key before it.
    """
    pairs = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise BadValue(what="--set", value=setting, why="write it as KEY=VALUE")
        pairs.append((key, value))
    return pairs


def cast_params(workload: Workload, pairs: Iterable[tuple[str, str]], *, cwd: Path | None, cast: Cast | None = None) -> dict[str, Any]:
    """Return every parameter's value: what `pairs` set, cast, else the default. Relative paths are taken from `cwd`; without one none is taken.

    Parameters
    ----------
    cast
        Instead of `cast_value`: one that remembers what it has looked at.

    Raises
    ------
    UnknownParameter, MissingParameter, BadValue, BadName, MissingPath, UnreadablePath
        Each names the parameter.
    """
    given: dict[str, list[Any]] = {}
    for key, text in pairs:
        if key not in workload.params:
            known = sorted(workload.params)
            raise UnknownParameter(workload=workload.name, name=key, hint=did_you_mean(key, known) or ".", known=", ".join(known) or "none")
        given.setdefault(key, []).append((cast or cast_value)(workload.params[key].type, key, text, cwd))
    return {name: _value(workload.name, param, given.get(name, [])) for name, param in workload.params.items()}


def complete_params(workload: Workload, values: Mapping[str, Any], *, cwd: Path | None, cast: Cast | None = None) -> dict[str, Any]:
    """Return `values` (plain Python values, lists for list parameters) checked and completed as `cast_params` does."""
    pairs = [(key, _plain(key, item)) for key, value in values.items() for item in _items(value)]
    return cast_params(workload, pairs, cwd=cwd, cast=cast)


def cast_value(kind: str, name: str, text: str, cwd: Path | None) -> Any:
    """Return one value of the parameter `name` of a type that job.yaml knows.

    Raises
    ------
    BadValue, BadName, MissingPath, UnreadablePath
    """
    return _CAST[kind](name, text, cwd)


def _plain(name: str, item: Any) -> str:
    if isinstance(item, dict | list | tuple):
        raise BadValue(what=name, value=item, why="give a text, a number, true or false, or a list of these")
    return str(item)


def _items(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _value(workload: str, param: Param, given: list[Any]) -> Any:
    if not given:
        if param.required:
            raise MissingParameter(workload=workload, name=param.name)
        return _items(param.default) if param.list else param.default
    if param.list:
        return given
    if len(given) > 1:
        raise BadValue(what=param.name, value=given[1], why="it was set twice, and it takes one value")
    return given[0]


def _path(name: str, text: str, cwd: Path | None) -> str:
    try:
        given = Path(text).expanduser()
    except RuntimeError as error:  # the home of a user who is not there
        raise BadValue(what=name, value=text, why="there is no such user's home") from error
    if not text or (cwd is None and not given.is_absolute()):
        raise BadValue(what=name, value=text, why="write the whole path" if text else "it names no path")
    path = Path(os.path.normpath(given if cwd is None else cwd / given))
    try:
        there, readable = path.exists(), os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
    except (OSError, ValueError) as error:  # too long, in a folder that is closed, or with signs that no name may have
        raise UnreadablePath(path=path, why=getattr(error, "strerror", None) or str(error)) from error
    if not there:
        raise MissingPath(path=path)
    if not readable:
        raise UnreadablePath(path=path, why="permission denied")
    return str(path)


def _is_folder(path: Path) -> bool:
    """Whether there is such a folder; what the system takes for no path is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _name(name: str, text: str, _: Path | None) -> str:
    if not _NAME.fullmatch(text):
        raise BadName(name=text, what=name)
    return text


def _model(name: str, text: str, cwd: Path | None) -> str:
    """A hub name stays as it is; a folder, which holds or starts with a separator or a dot, is the caller's."""
    if text.startswith((".", "~", os.sep)) or (cwd is not None and os.sep in text and _is_folder(cwd / text)):
        return _path(name, text, cwd)
    return text


def _number(kind: Callable[[str], Any], word: str) -> Callable[[str, str, Path | None], Any]:
    def cast(name: str, text: str, _: Path | None) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise BadValue(what=name, value=text, why=f"write {word}") from None

    return cast


def _whole(text: str) -> int:
    """Return a whole number that fits 64 bits: what databases and other languages hold, and more than any parameter means."""
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    """Return a number that JSON has too: what parameters are kept and sent as."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _bool(name: str, text: str, _: Path | None) -> bool:
    if text.lower() not in _BOOLS:
        raise BadValue(what=name, value=text, why="write true or false")
    return _BOOLS[text.lower()]


_CAST: Final[Mapping[str, Callable[[str, str, Path | None], Any]]] = {
    "path": _path,
    "name": _name,
    "model": _model,
    "string": lambda _name, text, _cwd: text,
    "int": _number(_whole, "a whole number"),
    "float": _number(_finite, "a number that is not infinite, such as 0.5"),
    "bool": _bool,
}
