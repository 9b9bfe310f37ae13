"""Python 3.11 turns code into syntax trees one at a time: what else does so meanwhile makes it fail (docs/python-notes.md)."""

from __future__ import annotations

import ast
import builtins
import gc
import threading
from typing import Any

#: The interpreter's own, which fails if it is entered again before it has ended.
compile_alone = builtins.compile
_turn = threading.RLock()


def compile_in_turn(source: Any, filename: Any, mode: str, flags: int = 0, *rest: Any, **options: Any) -> Any:
    """Compile; a syntax tree is made while no other thread makes one and no finaliser runs, which may format a traceback."""
    if not flags & ast.PyCF_ONLY_AST:
        return compile_alone(source, filename, mode, flags, *rest, **options)
    with _turn:
        collected = gc.isenabled()
        gc.disable()
        try:
            return compile_alone(source, filename, mode, flags, *rest, **options)
        finally:
            if collected:
                gc.enable()
