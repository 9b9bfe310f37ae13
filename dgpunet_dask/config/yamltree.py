"""YAML text as plain data that still knows where each value stands.

The data is what JSON can say: mappings with text keys, lists, text, numbers, true, false, null. Only YAML 1.2's core forms count as
something other than text, so ``on``, ``yes`` and ``22:00`` stay text (YAML 1.1 reads them as true, true and 1320).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from dgpunet_dask.errors import MalformedFile, Problem

#: From the root of the data: keys as text, list places as numbers.
Path = tuple[str | int, ...]

# Bounds on what a file may cost, far above any file that people write: aliases can make a few lines into billions of values.
MAX_CHARACTERS: Final = 4 << 20
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 50

_TAG: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """A file's data with the places of its values.

    Parameters
    ----------
    file
        Its name for messages.
    data
        The plain data; None for an empty file.
    problems
        Mistakes that left the data readable: a key given twice (the first counts), a number as a key (its text counts), a tag.
        `yamlfile.validate` raises them together with its own; a caller that reads `data` by itself calls `check`.
    values, keys, sources
        Places (1-based line and column) of values and of keys by path, and the source text of plain numbers, booleans and nulls.
    """

    file: str
    data: Any
    problems: tuple[Problem, ...]
    values: Mapping[Path, tuple[int, int]]
    keys: Mapping[Path, tuple[int, int]]
    sources: Mapping[Path, str]

    def position(self, path: Path) -> tuple[int, int]:
        """Return line and column of a scalar, or of the key that a mapping or list stands under.

        A path that is not in the file gives the place of its nearest parent that is.
        """
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, (1, 1))

    def key_position(self, path: Path) -> tuple[int, int]:
        """Return line and column of the last key of `path`, else as `position`."""
        return self.keys.get(path) or self.position(path)

    def problem(self, path: Path, what: str) -> Problem:
        """Return a mistake in the value at `path`."""
        return Problem(self.file, *self.position(path), what)

    def key_problem(self, path: Path, what: str) -> Problem:
        """Return a mistake in the last key of `path`."""
        return Problem(self.file, *self.key_position(path), what)

    def check(self) -> Document:
        """Return self, or raise MalformedFile with `problems` if there are any."""
        if self.problems:
            raise MalformedFile(self.problems)
        return self


def load(text: str, file: str) -> Document:
    """Return the data of `text` with its places. `file` is its name for messages; nothing is read.

    Raises
    ------
    MalformedFile
        Where the text is no YAML, so that nothing more can be said of it, or beyond the bounds above.
    """
    if len(text) > MAX_CHARACTERS:
        raise MalformedFile([Problem(file, 1, 1, f"the file is longer than {MAX_CHARACTERS >> 20} MiB; split it")])
    node = _compose(text, file)
    builder = _Builder(file)
    data = None if node is None else builder.build(node, (), (1, 1))
    return Document(file, data, tuple(builder.problems), builder.values, builder.keys, builder.sources)


class _Resolver(BaseResolver):
    """Which plain scalars are not text: YAML 1.2's core schema, without its octal and hexadecimal forms."""


for _name, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Resolver.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_form})$"), list(_first))


class _Composer(Reader, Scanner, Parser, Composer, _Resolver):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, and refuse to go deeper than the interpreter's own stack could bear."""
        if self.depth >= MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stub names no types
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return _Composer(text).get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        line, col = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = f"the character #x{error.character:04x} is not allowed in YAML; remove it"
        raise MalformedFile([Problem(file, line, col, what)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (1, 1) if mark is None else _place(mark)
        raise MalformedFile([Problem(file, *place, _told(error))]) from None


def _told(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong, and for the mistakes that people make most what would be right."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    cures = {r"'\t'": "indent with spaces, not with tabs", "another document": "keep one document in a file, without a second ---"}
    return f"not valid YAML: {what}" + "".join(f"; {cure}" for sign, cure in cures.items() if sign in what)


class _Builder:
    """Turns nodes into data and notes places. Nodes under an alias are built again, within the budget."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.values: dict[Path, tuple[int, int]] = {}
        self.keys: dict[Path, tuple[int, int]] = {}
        self.sources: dict[Path, str] = {}
        self.open: set[int] = set()

    def build(self, node: yaml.Node, path: Path, place: tuple[int, int]) -> Any:
        """Return the data of `node`. `place` is what `position` answers for it."""
        self.values[path] = place
        if len(self.values) > MAX_VALUES:
            self.give_up(node, f"this expands to more than {MAX_VALUES} values; use fewer aliases")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.open or len(path) > MAX_DEPTH:
            self.give_up(node, "this contains itself by way of an alias; write it out")
        self.open.add(id(node))
        built = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.open.remove(id(node))
        return built

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """Return a mapping; of a key given twice the first counts."""
        self.plain_tag(node, "map")
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, key_place = self.key(key_node), _place(key_node.start_mark)
            inner = (*path, key)
            if key in built:
                self.note(key_node, f"{key!r} is given twice, first in line {self.keys[inner][0]}; keep one of them")
                continue
            self.keys[inner] = key_place
            place = _place(value_node.start_mark) if isinstance(value_node, yaml.ScalarNode) else key_place
            built[key] = self.build(value_node, inner, place)
        return built

    def sequence(self, node: yaml.Node, path: Path) -> list[Any]:
        """Return a list."""
        self.plain_tag(node, "seq")
        return [self.build(item, (*path, i), _place(item.start_mark)) for i, item in enumerate(node.value)]

    def key(self, node: yaml.Node) -> str:
        """Return a key's text, and note a key that is no text."""
        if not isinstance(node, yaml.ScalarNode):
            self.note(node, "a key must be text, not a list or mapping")
            return f"<line {node.start_mark.line + 1}>"
        kind = node.tag.removeprefix(_TAG)
        if kind == "null":
            self.note(node, "a name must stand before the colon" if not node.value else quote_it(node.value, "as a key"))
        elif kind != "str":
            self.note(node, quote_it(node.value, "as a key"))
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        """Return text, a number, a boolean or None."""
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return node.value
        self.sources[path] = node.value
        read = _SCALARS.get(kind)
        try:
            if read is not None:
                return read(node.value)
        except ValueError:
            self.note(node, f"{_short(node.value)} is no number that can be kept; write it shorter, or in quotes if it is text")
            return None
        self.plain_tag(node, "str")
        return node.value

    def plain_tag(self, node: yaml.Node, kind: str) -> None:
        """Note a tag that the data cannot express; the value counts as if it had none."""
        if node.tag != _TAG + kind:
            self.note(node, f"the tag {node.tag.replace(_TAG, '!!')} is not used here; remove it")

    def note(self, node: yaml.Node, what: str) -> None:
        """Note a mistake that leaves the rest readable."""
        self.problems.append(Problem(self.file, *_place(node.start_mark), what))

    def give_up(self, node: yaml.Node, what: str) -> None:
        """Note a mistake after which nothing more is read."""
        self.note(node, what)
        raise MalformedFile(self.problems)


def quote_it(source: str, use: str = "here") -> str:
    """Return what to say where YAML reads as a number (or true, null) what was meant as text."""
    kind = {"t": "true or false", "f": "true or false", "n": "null", "~": "null"}.get(source[:1].lower(), "a number")
    return f'YAML reads {_short(source)} as {kind}; {use} write it in quotes: "{_short(source)}"'


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


_SCALARS: Final[Mapping[str, Callable[[str], Any]]] = {
    "int": int,
    "float": _finite,
    "bool": lambda text: text.lower() == "true",
    "null": lambda _: None,
}


def _place(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
