"""What surprised us about Python itself, pinned: docs/python-notes.md."""

from __future__ import annotations

import ast
import builtins
import gc
import sys
from collections.abc import Iterator

import pytest

from tests.parsing import compile_alone, compile_in_turn

CODE = "\n".join(f"x{n} = [1, (2, {n})]" for n in range(300))


@pytest.fixture
def parsed_by_the_collector() -> Iterator[list[ast.AST]]:
    """Parse something in every garbage collection, as a finaliser does that formats a traceback."""
    found: list[ast.AST] = []

    def parse(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(parse)  # it may be called while it parses
        found.append(builtins.compile("1", "<collected>", "exec", ast.PyCF_ONLY_AST))
        gc.callbacks.append(parse)

    before = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(parse)
    gc.set_threshold(1)
    yield found
    gc.set_threshold(*before)
    gc.callbacks.remove(parse)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the interpreter keeps a depth for each call since 3.12")
def test_parsing_fails_if_something_else_parses_meanwhile(parsed_by_the_collector, monkeypatch):
    monkeypatch.setattr(builtins, "compile", compile_alone)
    with pytest.raises(SystemError, match="recursion depth mismatch"):
        ast.parse(CODE)
    assert parsed_by_the_collector


def test_in_these_tests_only_one_parses_at_a_time(parsed_by_the_collector):
    assert builtins.compile is compile_in_turn
    assert len(ast.parse(CODE).body) == 300
    assert gc.isenabled()
