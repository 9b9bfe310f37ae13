"""Definitions by line patterns, for languages without a grammar and texts that one cannot read. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from dgpunet_dask.retrieval.syntax import Definition

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
_YAML_KEY: Final = re.compile(r"^(\"[^\"]+\"|'[^']+'|[^\s#\-\[{:][^:#]{0,100}?)\s*:(?:\s|$)")
_TERRAFORM: Final = re.compile(r"^([a-z_]+(?:\s+\"[^\"]+\")*)\s*\{")

_PATTERNS: Final = {
    "yaml": (_YAML_KEY,),
    "terraform": (_TERRAFORM,),
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
_KINDS: Final = {
    "class": "class", "object": "class", "record": "class", "struct": "struct", "union": "struct", "interface": "interface",
    "protocol": "interface", "trait": "trait", "impl": "impl", "extension": "impl", "enum": "enum", "module": "module",
    "namespace": "module", "defmodule": "module", "type": "type", "macro": "macro", "macro_rules": "macro",
}  # fmt: skip
_KIND: Final = re.compile(rf"\b(?:{'|'.join(_KINDS)})\b")
#: What a line right above a definition begins with if it belongs to it.
_ABOVE: Final = ("#", "//", "/*", "*", "--", ";;", "@", "[<", "[[")
#: Longer lines hold data, and a pattern might take long over one.
_LONGEST_LINE: Final = 400


def of_lines(lines: Sequence[str], language: str) -> list[Definition]:
    """Return definitions by pattern; each lasts to the line before the next one that is indented no deeper."""
    patterns = _PATTERNS.get(language, ())
    starts: list[tuple[int, int, re.Match[str]]] = []
    for number, line in enumerate(lines, 1) if patterns else ():
        if not line or len(line) > _LONGEST_LINE:
            continue
        found = next((m for p in patterns if (m := p.match(line))), None)
        if found is not None:
            starts.append((number, len(line) - len(line.lstrip()), found))
    kinds = {"yaml": "section", "terraform": "section"}
    return [
        Definition(start, _end(starts, n, len(lines)), _name(found[1]), kinds.get(language) or _kind(found))
        for n, (start, _, found) in enumerate(starts)
    ]


def comments_above(lines: Sequence[str]) -> dict[int, int]:
    """Return from the last row of comments, decorators and attributes their first row (0-based)."""
    found: dict[int, int] = {}
    for row, line in enumerate(lines):
        if line.lstrip().startswith(_ABOVE):
            found[row] = found.pop(row - 1, row)
    return found


def _name(raw: str) -> str:
    """Return a name; ``resource "a" "b"`` is called ``resource.a.b``."""
    return ".".join(re.findall(r"[^\s\"']+", raw)) if '"' in raw or "'" in raw else raw


def _kind(found: re.Match[str]) -> str:
    word = _KIND.search(found.string, 0, found.start(1))
    return _KINDS[word[0]] if word else "function"


def _end(starts: Sequence[tuple[int, int, re.Match[str]]], index: int, last: int) -> int:
    indent = starts[index][1]
    # 200 definitions on: an end that far away decides nothing, and a long file stays linear
    return next((later[0] - 1 for later in starts[index + 1 : index + 200] if later[1] <= indent), last)
