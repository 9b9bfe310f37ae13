from __future__ import annotations

import ast
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval.grammars import GRAMMARS, KINDS
from dgpunet_dask.retrieval.outline import outline, read_outline
from dgpunet_dask.retrieval.syntax import Definition, _language, parsed
from tests.helpers import ROOT
from tests.unit.retrieval.samples import SAMPLES


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is fetched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _language.cache_clear()


def test_every_language_with_a_grammar_has_a_sample():
    assert set(SAMPLES) == set(GRAMMARS)
    assert len(GRAMMARS) >= 15


@pytest.mark.parametrize("language", GRAMMARS)
def test_what_a_language_defines_is_found_without_a_network(language, no_network):
    text, expected = SAMPLES[language]
    read = read_outline(text, language)
    assert read.unparsed is None
    assert [(d.kind, d.name, d.start, d.end) for d in read.definitions] == expected


def test_a_fresh_process_loads_every_grammar_from_the_wheels():
    code = (
        "import sys; sys.addaudithook(lambda e, a: sys.exit(f'{e} {a}') if e.startswith(('socket.', 'urllib.', 'http.')) else None)\n"
        "from dgpunet_dask.retrieval.syntax import _language; from dgpunet_dask.retrieval.grammars import GRAMMARS\n"
        "print(len([_language(p) for g in GRAMMARS.values() for p in g.parsers]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) >= len(GRAMMARS)


@pytest.mark.parametrize("language", GRAMMARS)
def test_definitions_say_what_they_are_and_where_they_lie(language):
    found = outline(SAMPLES[language][0], language)
    assert {d.kind for d in found} <= KINDS
    for definition in found:
        assert definition.scope is None or definition.name.startswith(f"{definition.scope}.")
        around = [d for d in found if d.start < definition.start and definition.end < d.end]
        assert not around or definition.name.startswith(f"{around[-1].name}.")


def test_a_method_that_is_written_outside_of_its_class_has_it_as_its_scope():
    assert outline("func (s *Server) Run() {\n}\n", "go") == [Definition(1, 2, "Server.Run", "method")]
    assert [d.scope for d in outline("func (s *Server) Run() {\n}\n", "go")] == ["Server"]
    assert [d.scope for d in outline("void a::Server::run() {\n}\n", "cpp")] == ["a.Server"]


def test_a_header_of_cpp_that_is_called_h_is_read_as_cpp():
    text = "namespace n {\nclass A {\n  public:\n    int f() { return 1; }\n};\n}\n"
    assert [d.name for d in outline(text, "c")] == ["n", "n.A", "n.A.f"]


def test_an_interface_of_ocaml_is_read_as_one():
    assert [(d.kind, d.name) for d in outline("val f : int -> int\nmodule M : sig\n  val q : int\nend\n", "ocaml")] == [
        ("function", "f"), ("module", "M"), ("function", "M.q"),
    ]  # fmt: skip


def test_damaged_code_keeps_what_can_be_read():
    text = "def first():\n    return 1\n\nclass Broken(:\n    x = = 2\n\ndef last():\n    return 3\n"
    assert {"first", "last"} <= {d.name for d in outline(text, "python")}


def test_rows_count_by_line_feeds_alone():
    text = "def a():\r    pass\n\x0cdef b():\n    x = '\x85\u2028'\n    return 1\n"
    assert [(d.name, d.start, d.end) for d in outline(text, "python")][-1] == ("b", 2, 4)


def test_brackets_without_end_are_read_by_line_patterns_and_told():
    read = read_outline("def f():\n    pass\n" + "[" * 5000, "python")
    assert read.unparsed == "its brackets are nested too deeply"
    assert [d.name for d in read.definitions] == ["f"]


def test_a_parser_that_loses_its_way_is_stopped_by_its_steps():
    read = read_outline("a<" * 30_000, "cpp")
    assert read.unparsed == "its parser lost its way"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "x = " + "a + " * 20_000 + "b"),
        ("ruby", "module A\n" * 900 + "end\n" * 900),
        ("json", "[" * 900 + "]" * 900),
        ("python", "".join(" " * n + "if x:\n" for n in range(300))),
    ],
)
def test_deep_nesting_is_no_recursion(language, text):
    read = parsed(text, language)
    assert read is not None
    assert read.breaks(lambda start, end: True) is not None


def python_definitions(text: str) -> set[tuple[int, int, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text.replace("\r", " ").replace("\f", " "))
    found: set[tuple[int, int, str]] = set()
    pending: list[tuple[ast.AST, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                start = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.add((start, child.end_lineno or start, prefix + child.name))
                inner = f"{prefix}{child.name}."
            pending.append((child, inner))
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_grammar_finds_what_ast_finds_in_the_standard_library():
    files = definitions = damaged = 0
    for path in sorted(Path(ast.__file__).parent.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text("utf-8")
            expected = python_definitions(text)
        except (SyntaxError, ValueError):  # tests of the parser and of encodings
            continue
        read = read_outline(text, "python")
        found = {(d.start, d.end, d.name) for d in read.definitions}
        files, definitions = files + 1, definitions + len(expected)
        if found != expected:
            damaged += 1
            assert read.faulty, f"{path}: {sorted(found ^ expected)[:6]}"
    print(f"{definitions} definitions of {files} files; not read without error: {damaged}")
    assert files > 500
    assert damaged < files * 0.005


code = st.sampled_from(
    ["def f():", "  ", "{", "}", "(", ")", "class A", "'''", '"', "`", "//", "/*", "*/", "#", "end", "do", "\\", "\r", "\0", "\f", "\x85", "é",
     "🎉", "<a>", "<<E", "E", "x", "=", ":", "- ", "fn", "func", "@", "\ufeff"]
)  # fmt: skip
codes = st.lists(code | st.just("\n") | st.text(max_size=5), max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=codes, language=st.sampled_from([*GRAMMARS, "groovy", "markdown", "restructuredtext", "text", "unknown"]))
def test_any_text_has_an_outline_within_its_lines(text, language):
    read = read_outline(text, language)
    rows = text.count("\n") + 1
    for definition in read.definitions:
        assert 1 <= definition.start <= definition.end <= rows
        assert definition.kind in KINDS
        assert definition.name
    assert all(0 <= first <= last < rows for last, first in read.above.items())
    assert all(0 < row < rows for row in read.breaks(lambda start, end: end - start > 3))
    assert read_outline(text, language).definitions == read.definitions
