"""Docstring-to-function questions over the source of a package, in the manner of CodeSearchNet, with the whole package as the
pool.

Every docstring is blanked, so that no line moves and no answer holds its question. A question is the first paragraph of a
function's docstring; its answer is the function's lines, decorators included. As in CodeSearchNet's `parse_python_data.py` and
`dedup_split.py`, dunder and test functions, abstract methods, bodies of at most two lines and docstrings of at most two words
are left out, and of functions that nearly repeat one another (Jaccard index of their tokens at least 0.8) all but the first are
blanked. What two functions say in the same words is no question either. Every count is told.
"""

from __future__ import annotations

import ast
import io
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
#: Of the standard library: its tests, what is installed beside it, and examples that are one program each.
NOT_LIBRARY = ("test", "tests", "site-packages", "idle_test", "idlelib", "turtledemo", "lib2to3", "ensurepip", "__pycache__", "_vendor")
JACCARD, LEAST_TOKENS = 0.8, 10
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Question:
    """`text` asks for the lines `start` to `end` (1-based, inclusive) of `path`."""

    text: str
    path: str
    start: int
    end: int
    name: str


@dataclass
class Corpus:
    """The files of a package without docstrings, and the questions about them."""

    name: str
    files: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    #: Where functions begin, with or without docstring, by their own name: path and line of the ``def``.
    defined: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    path: str
    node: Function
    qualified: str
    paragraph: str
    tokens: frozenset[str]

    @property
    def start(self) -> int:
        return _start(self.node)


def _start(node: Function) -> int:
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def package_folder(name: str) -> Path:
    """Return where the sources of a package lie; ``stdlib`` is the interpreter's library."""
    if name == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is no installed package")
    return Path(next(iter(spec.submodule_search_locations)))


def sources(folder: Path, limit: int | None) -> Iterator[tuple[str, str]]:
    """Yield the paths and texts of a folder's Python files, without tests, at most `limit` spread over all of them."""
    paths = [p for p in sorted(folder.rglob("*.py")) if not set(p.relative_to(folder).parts) & set(NOT_LIBRARY)]
    step = max(1, len(paths) // limit) if limit else 1
    for path in paths[::step]:
        yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")


def spans_of(text: str) -> dict[str, tuple[int, int]]:
    """Return the lines of each function by its qualified name, the last of equal ones."""
    tree = _parsed(text)
    return {} if tree is None else {name: (_start(node), node.end_lineno or _start(node)) for node, name in _named(tree, "")}


def corpus_of(name: str, texts: Iterator[tuple[str, str]], *, renamed: bool = False, keep_repeats: bool = False) -> Corpus:
    """Make the questions of a tree; with `renamed`, functions and their variables have names that say nothing."""
    corpus = Corpus(name)
    found: list[_Found] = []
    for path, text in texts:
        tree = _parsed(text)
        if tree is None:
            corpus.left_out["files that do not parse"] += 1
            continue
        candidates = list(_functions(path, tree, text, corpus.left_out))
        for node, _ in _named(tree, ""):
            corpus.defined.setdefault(node.name, []).append((path, node.lineno))
        corpus.files[path] = _blanked(_rename(text, [f.node for f in candidates]) if renamed else text, tree)
        found += candidates
    kept = found if keep_repeats else _without_repeats(found, corpus)
    asked = Counter(f.paragraph for f in kept)
    for f in kept:
        if asked[f.paragraph] > 1:
            corpus.left_out["same question as another"] += 1
        else:
            corpus.questions.append(Question(f.paragraph, f.path, f.start, f.node.end_lineno or f.start, f.qualified))
    return corpus


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # a form feed ends no line of ours
            return ast.parse(text.replace("\f", " ").replace("\r", " "))
        except (SyntaxError, ValueError, RecursionError):
            return None


def _functions(path: str, tree: ast.Module, text: str, left_out: Counter[str]) -> Iterator[_Found]:
    lines = text.split("\n")
    for node, qualified in _named(tree, ""):
        docstring = ast.get_docstring(node)
        paragraph = " ".join((docstring or "").split("\n\n")[0].split())
        reason = _unfit(node, paragraph)
        if reason:
            left_out[reason] += docstring is not None  # a function without docstring is no candidate at all
            continue
        code = "\n".join(_code_lines(node, lines))
        yield _Found(path, node, qualified, paragraph, frozenset(IDENTIFIER.findall(code)))


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[Function, str]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, Function | ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if isinstance(child, Function):
            yield child, prefix + child.name
        yield from _named(child, inner)


def _unfit(node: Function, paragraph: str) -> str | None:
    if re.fullmatch(r"__.*__", node.name) or "test" in node.name.lower():
        return "dunder or test"
    if any("abstractmethod" in ast.unparse(d) for d in node.decorator_list):
        return "abstract"
    body = node.body[1:]
    if not body or (node.end_lineno or 0) - body[0].lineno + 1 <= 2:
        return "at most two lines"
    return "docstring of at most two words" if len(paragraph.split()) <= 2 else None


def _code_lines(node: Function, lines: Sequence[str]) -> list[str]:
    return [lines[node.lineno - 1], *lines[node.body[1].lineno - 1 : node.end_lineno]]


def _without_repeats(found: list[_Found], corpus: Corpus) -> list[_Found]:
    """Keep the first of functions that nearly repeat one another; the others' lines are blanked."""
    by_token: dict[str, list[int]] = {}
    kept: list[_Found] = []
    often = Counter(token for f in found for token in f.tokens)
    for f in found:
        rare = sorted(f.tokens, key=lambda t: (often[t], t))
        # two sets of Jaccard index j share one of the rarest (1 - j) n + 1 of either
        prefix = rare[: int((1 - JACCARD) * len(rare)) + 1]
        others = {n for token in prefix for n in by_token.get(token, ())}
        if len(rare) >= LEAST_TOKENS and any(_jaccard(f.tokens, kept[n].tokens) >= JACCARD for n in others):
            corpus.left_out["near-duplicate, blanked"] += 1
            corpus.files[f.path] = _removed(corpus.files[f.path], f)
            continue
        for token in prefix:
            by_token.setdefault(token, []).append(len(kept))
        kept.append(f)
    return [f for f in kept if corpus.files[f.path].split("\n")[f.start - 1].strip()]


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _removed(text: str, found: _Found) -> str:
    lines = text.split("\n")
    indent = re.match(r"\s*", lines[found.node.lineno - 1])
    assert indent is not None  # it matches the empty string
    last = (found.node.end_lineno or found.start) - 1
    lines[found.start - 1 : last + 1] = [f"{indent[0]}pass", *[""] * (last - found.start + 1)]
    return "\n".join(lines)


def _blanked(text: str, tree: ast.Module) -> str:
    """Empty the lines of every docstring; where it is all there is, ``...`` stands for it."""
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | Function) or not node.body:
            continue
        first = node.body[0]
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)):
            continue
        before, after = _around(lines, first)
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        kept = f"{before}{'...' if alone or after else ''}{after}".rstrip()
        lines[first.lineno - 1 : first.end_lineno] = [kept, *[""] * ((first.end_lineno or 0) - first.lineno)]
    return "\n".join(lines)


def _around(lines: Sequence[str], node: ast.Expr) -> tuple[str, str]:
    """What stands before a statement on its first line and after it on its last; the syntax tree counts bytes."""
    first, last = lines[node.lineno - 1].encode(), lines[(node.end_lineno or 1) - 1].encode()
    after = last[node.end_col_offset or 0 :].decode(errors="replace").strip()
    return first[: node.col_offset].decode(errors="replace"), "" if after.startswith("#") else after


def _rename(text: str, functions: Sequence[Function]) -> str:
    """Give functions and the names they bind others that say nothing, in their own lines, as CodeXGLUE's AdvTest does."""
    spans = [(f.lineno, f.end_lineno or f.lineno, _own_names(f)) for f in functions]
    lines = text.split("\n")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, IndentationError):
        return text
    edits: list[tuple[int, int, int, str]] = []
    for before, token in pairwise(tokens):
        if token.type != tokenize.NAME or before.string == ".":
            continue
        names = next((n for first, last, n in reversed(spans) if first <= token.start[0] <= last and token.string in n), None)
        if names is not None:
            edits.append((token.start[0] - 1, token.start[1], token.end[1], names[token.string]))
    for line, start, end, new in sorted(edits, reverse=True):
        lines[line] = lines[line][:start] + new + lines[line][end:]
    return "\n".join(lines)


def _own_names(function: Function) -> dict[str, str]:
    arguments = [a.arg for a in ast.walk(function) if isinstance(a, ast.arg) and a.arg not in {"self", "cls"}]
    bound = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names = {name: f"var{n}" for n, name in enumerate(dict.fromkeys([*arguments, *bound]))}
    return names | {function.name: "func"}
