"""What every error has: a message from its docstring, an exit code, and a form that crosses process borders."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar


class DgpunetError(Exception):
    """Something went wrong that has no name yet: {detail}. Please report it with `-v` output."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "unexpected"

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The docstring's first paragraph with its braces filled in."""
        text = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())
        return text.format(**self.fields)

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """Details for machines: one mapping per cause, empty where the message says all."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the `error` object of the JSON results: code, message, reasons."""
        return {"code": self.code, "message": self.message, "reasons": self.reasons}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[DgpunetError], fields: dict[str, Any]) -> DgpunetError:
    return kind(**fields)


@dataclass(frozen=True)
class ReportedError:
    """An error as it crosses a process border: what `to_json` gave, and the exit code it had."""

    exit_code: int
    code: str
    message: str
    reasons: list[dict[str, Any]]


class _Told:
    """Makes an error say what another process said, word for word, while it stays an instance of its class."""

    exit_code: ClassVar[int]
    code: ClassVar[str]
    fields: dict[str, Any]

    def __init__(self, told: ReportedError) -> None:
        self.fields = {"told": told}
        Exception.__init__(self, told.message)  # type: ignore[arg-type]  # always mixed into an exception

    @property
    def message(self) -> str:
        """What was said."""
        return str(self.fields["told"].message)

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """The reasons that were given."""
        return list(self.fields["told"].reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (self.fields["told"],)


def rebuild_error(told: ReportedError) -> DgpunetError:
    """Return an error of the class that has the code of `told`, with its message, reasons and exit code."""
    kind = next((k for k in _classes(DgpunetError) if k.code == told.code), DgpunetError)
    named = {"exit_code": told.exit_code, "code": told.code, "__doc__": kind.__doc__, "__module__": kind.__module__}
    error = type(kind.__name__, (_Told, kind), named)(told)
    assert isinstance(error, DgpunetError)
    return error


def _classes(root: type[DgpunetError]) -> Iterable[type[DgpunetError]]:
    """Yield `root` and everything below it, except what `rebuild_error` made."""
    if not issubclass(root, _Told):
        yield root
        for kind in root.__subclasses__():
            yield from _classes(kind)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
