"""A YAML file as a checked value: every mistake at once, as ``file:line:col: what, and what would be right``.

Use::

    class Host(YamlModel):
        ram: Annotated[Mib, parsed(Mib)] | None = None
        cpus: int | None = None

    document = load(text, "fleet.yaml")
    check_version(document, 1)
    host = validate(document, Host, [my_check])       # my_check(document) yields further Problems

`load` gives plain data with places (see `yamltree`), `validate` checks it with a pydantic model whose unknown keys are mistakes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from dgpunet_dask.config.yamltree import MAX_CHARACTERS, Document, Path, load, quote_it
from dgpunet_dask.errors import BadValue, MalformedFile, MissingPath, NewerFormat, Problem, UnreadablePath, did_you_mean

__all__ = ["Document", "Path", "YamlModel", "check_version", "load", "parsed", "read", "read_text", "validate"]

M = TypeVar("M", bound=BaseModel)
Check = Callable[[Document], Iterable[Problem]]


class YamlModel(BaseModel):
    """Base of the models of files: unknown keys are mistakes, and nothing is cast silently (``cpus: "8"`` is no number)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def read(path: FilePath) -> Document:
    """Return the data of a file; see `load`.

    Raises
    ------
    MissingPath, UnreadablePath, MalformedFile
    """
    return load(read_text(path), str(path))


def read_text(path: FilePath, most: int = 4 * MAX_CHARACTERS) -> str:
    """Return the text of a file.

    Parameters
    ----------
    most
        How many bytes are read before the file is refused, since a device has no end; -1 for any number.

    Raises
    ------
    MissingPath, UnreadablePath
    MalformedFile
        Where it is not UTF-8, or too long.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1) if most >= 0 else file.read()
    except FileNotFoundError:
        raise MissingPath(path=path) from None
    except OSError as error:
        raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
    if 0 <= most < len(raw):
        raise MalformedFile([Problem(str(path), 1, 1, f"the file is longer than {most >> 20} MiB; split it")])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, col = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise MalformedFile([Problem(str(path), line, col, "not valid UTF-8; save the file as UTF-8")]) from None


def check_version(document: Document, known: int) -> None:
    """Raise NewerFormat where the file's `version` is newer than `known`: its other keys may mean something else by then."""
    found = document.data.get("version") if isinstance(document.data, Mapping) else None
    if isinstance(found, int) and not isinstance(found, bool) and found > known:
        raise NewerFormat(path=":".join(map(str, (document.file, *document.position(("version",))))), found=found, known=known)


def validate(document: Document, model: type[M], checks: Iterable[Check] = ()) -> M:
    """Return `document` as an instance of `model`.

    Parameters
    ----------
    checks
        Further checks of the plain data, which may have any shape: they run even where the model finds mistakes.

    Raises
    ------
    MalformedFile
        With every mistake that reading, model and checks found.
    """
    problems = [*document.problems, *(p for check in checks for p in check(document))]
    try:
        value = model.model_validate(document.data)
    except ValidationError as error:
        problems += (_problem(document, model, found) for found in error.errors(include_url=False))
        raise MalformedFile(problems) from None
    if problems:
        raise MalformedFile(problems)
    return value


def parsed(function: Callable[[str], Any]) -> Any:
    """Return a validator for ``Annotated[T, parsed(function)]``: text is parsed, and a BadValue becomes a mistake at its place.

    A bare number is told to take quotes where its text would be right (``8.9`` as a version), else what would be right.
    """

    def check(value: Any) -> Any:
        text = isinstance(value, str)
        if not text and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise PydanticCustomError("string_type", "text is needed")
        try:
            result = function(str(value))
        except BadValue as error:
            raise PydanticCustomError("bad_value", "{why}", {"why": error.fields["why"]}) from None
        if not text:
            raise PydanticCustomError("string_type", "text is needed")
        return result

    return PlainValidator(check)


def _problem(document: Document, model: type[BaseModel], error: ErrorDetails) -> Problem:
    """Return pydantic's `error` at its place in the file."""
    path = _in_file(document, error["loc"])
    if error["type"] == "extra_forbidden":
        return document.key_problem(path, _unknown_key(model, path))
    if error["type"] == "missing":
        return document.problem(path, f"the key {error['loc'][-1]!r} is missing here")
    if error["loc"][-1:] == ("[key]",):
        return document.key_problem(path, f"the name {path[-1]!r} will not do: {_told(error)}")
    return document.problem(path, f"{_named(path)}{_wanted(document, path, error)}")


def _in_file(document: Document, loc: Path) -> Path:
    """Return `loc` without what is not in the file: the names of union members, the mark of a key, a key that is missing."""
    path: Path = ()
    for part in loc:
        path = (*path, part) if (*path, part) in document.values else path
    return path


def _unknown_key(model: type[BaseModel], path: Path) -> str:
    known = _keys_at(model, path[:-1])
    hint = did_you_mean(str(path[-1]), known) or (f"; known keys: {', '.join(known)}" if known else "; remove it")
    return f"unknown key {path[-1]!r}{hint}"


def _named(path: Path) -> str:
    """Return the key that a value stands under, as the start of a message."""
    keys = [part for part in path if isinstance(part, str)]
    return f"{keys[-1]}: " if keys else ""


def _wanted(document: Document, path: Path, error: ErrorDetails) -> str:
    """Return what would be right."""
    source = document.sources.get(path)
    if error["type"] == "string_type" and source:
        return quote_it(source)
    context = error.get("ctx", {})
    if error["type"] in _WANTED:
        return f"write {_WANTED[error['type']].format(**context)}, not {_shown(error['input'], source)}"
    return f"{_shown(error['input'], source)} is not valid: {_told(error)}"


def _told(error: ErrorDetails) -> str:
    """Return a validator's own words, else pydantic's."""
    context = error.get("ctx", {})
    return str(context["error"]) if "error" in context else error["msg"].replace("Input should", "it should")


_WANTED: Final[Mapping[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping such as {{key: value}}",
    "model_type": "a mapping such as {{key: value}}",
    "model_attributes_type": "a mapping such as {{key: value}}",
    "list_type": "a list such as [a, b]",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} item(s)",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than_equal": "a number of at most {le}",
}


def _shown(value: Any, source: str | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"a{'n empty' if not value else ''} {'mapping' if isinstance(value, dict) else 'list'}"
    return repr(value) if source is None else source


def _keys_at(model: type[BaseModel], loc: Path) -> list[str]:
    """Return the keys that are known at `loc`, found by walking the model's annotations."""
    reached: list[Any] = [model]
    for part in loc:
        reached = [inner for kind in reached for inner in _step(kind, part)]
    return [f.alias or name for kind in reached for name, f in _models(kind)]


def _step(kind: Any, part: str | int) -> Iterator[Any]:
    """Yield what `part` leads to from `kind`."""
    for plain in _members(kind):
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            yield from (f.annotation for name, f in plain.model_fields.items() if part in {name, f.alias})
        elif get_origin(plain) in {dict, list, tuple}:
            yield get_args(plain)[1 if get_origin(plain) is dict else 0]


def _models(kind: Any) -> Iterator[tuple[str, Any]]:
    for plain in _members(kind):
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            yield from plain.model_fields.items()


def _members(kind: Any) -> Iterator[Any]:
    """Yield `kind` without `Annotated`, or the members of a union one by one."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in {Union, types.UnionType}:
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind
