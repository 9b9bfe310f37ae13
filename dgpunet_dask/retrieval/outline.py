"""Where definitions begin and end in a text, and their names: `ast` for Python, line patterns for other languages. Pure."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, order=True)
class Definition:
    """A definition's lines (1-based, inclusive, decorators included) and its name, qualified where the language is Python."""

    start: int
    end: int
    name: str


_WORD = r"([A-Za-z_$][\w$]*)"
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|unsafe|pub(?:\([^)]*\))?|const|open|"
    r"override|sealed|virtual|inline|extern(?:\s*\"C\")?|partial|data|local)\s+)*"
)
_KEYWORD: Final = re.compile(
    rf"^\s*{_MODIFIERS}(?:function\*?|func|fn|fun|def|class|struct|interface|trait|enum|union|module|namespace|object|protocol|"
    rf"extension|record|macro|macro_rules!|sub|proc|defmodule|defp?|type)\s+(?:self\.)?{_WORD}"
)
_IMPL: Final = re.compile(r"^\s*(?:unsafe\s+)?impl\b(?:<[^>]*>)?\s+(?:[\w:<>, ]+\s+for\s+)?([A-Za-z_]\w*)")
_GO_METHOD: Final = re.compile(rf"^func\s*\([^)]*\)\s*{_WORD}")
_ARROW: Final = re.compile(
    rf"^(?:export\s+)?(?:const|let|var)\s+{_WORD}\s*(?::[^=]*)?=\s*(?:async\s*)?(?:function\b|\([^)]*\)[^=]*=>|\w+\s*=>)"
)
#: A C-like function at the left margin: words, the name, an opening bracket, and no semicolon or assignment.
_C_FUNCTION: Final = re.compile(
    r"^(?!(?:if|for|while|switch|return|else|do|case|typedef|using)\b)[A-Za-z_][\w\s*&:<>,~\[\]]*?[\s*&:]~?"
    r"([A-Za-z_]\w*)\s*\([^;=]*$"
)
#: A method inside a class body, of languages that write the type before the name.
_METHOD: Final = re.compile(
    rf"^\s+{_MODIFIERS}(?!(?:return|new|throw|else|await|if|for|while|switch|catch)\b)[\w<>\[\],.?]+\s+"
    rf"{_WORD}\s*\([^;]*\)[^;]*\{{\s*$"
)
_JS_METHOD: Final = re.compile(
    rf"^\s+(?:(?:static|async|get|set|\*)\s*)*(?!(?:if|for|while|switch|catch|function|return)\b){_WORD}\s*\([^;]*\)\s*\{{\s*$"
)
_SHELL_FUNCTION: Final = re.compile(r"^(?:function\s+)?([A-Za-z_][\w-]*)\s*\(\)\s*\{?")
_HEADING: Final = re.compile(r"^#{1,6}\s+(.+?)\s*#*$")

_PATTERNS: Final = {
    "markdown": (_HEADING,),
    "shell": (_SHELL_FUNCTION,),
    "go": (_GO_METHOD, _KEYWORD),
    "rust": (_IMPL, _KEYWORD),
    "javascript": (_KEYWORD, _ARROW, _JS_METHOD),
    "typescript": (_KEYWORD, _ARROW, _JS_METHOD),
    "java": (_KEYWORD, _METHOD),
    "csharp": (_KEYWORD, _METHOD),
    **dict.fromkeys(("c", "cpp", "cuda", "objective-c", "metal", "glsl", "hlsl"), (_C_FUNCTION, _KEYWORD)),
    **dict.fromkeys(
        ("kotlin", "scala", "swift", "ruby", "php", "perl", "lua", "julia", "zig", "nim", "d", "dart", "elixir", "fsharp", "groovy",
         "solidity", "protobuf", "powershell", "tcl", "python"),
        (_KEYWORD,),
    ),
}  # fmt: skip
#: Longer lines hold data, and a pattern might take long over one.
_LONGEST_LINE: Final = 400


def outline(text: str, language: str) -> list[Definition]:
    """Return the definitions of `text` in the order of their lines; empty where the language has none that are known."""
    if language == "python":
        try:
            return sorted(_of_python(text))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass  # Python 2, a template, or damaged: patterns still find most of it
    patterns = _PATTERNS.get(language, ())
    return _of_lines(text.split("\n"), patterns) if patterns else []


def _of_python(text: str) -> list[Definition]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in someone else's code are not ours to report
        # Python ends a line at a lone carriage return or form feed too; ours end at a line feed only
        tree = ast.parse(text.replace("\r", " ").replace("\f", " "))
    found: list[Definition] = []
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                start = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.append(Definition(start, child.end_lineno or start, prefix + child.name))
                inner = f"{prefix}{child.name}."
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                pending.append((child, inner))
    return found


def _of_lines(lines: Sequence[str], patterns: Sequence[re.Pattern[str]]) -> list[Definition]:
    """Definitions by pattern; each lasts to the line before the next one that is indented no deeper."""
    starts: list[tuple[int, int, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or len(line) > _LONGEST_LINE:
            continue
        found = next((m for p in patterns if (m := p.match(line))), None)
        if found is not None:
            starts.append((number, len(line) - len(line.lstrip()), found[1]))
    return [Definition(start, _end(starts, n, len(lines)), name) for n, (start, _, name) in enumerate(starts)]


def _end(starts: Sequence[tuple[int, int, str]], index: int, last: int) -> int:
    indent = starts[index][1]
    # 200 definitions on: an end that far away decides nothing, and a long file stays linear
    return next((later[0] - 1 for later in starts[index + 1 : index + 200] if later[1] <= indent), last)
