from __future__ import annotations

import argparse
import logging
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dgpunet_dask.retrieval.chunk import chunks_of
from dgpunet_dask.retrieval.grammars import GRAMMARS
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.outline import outline
from dgpunet_dask.retrieval.regions import ENOUGH, LOOSE
from dgpunet_dask.retrieval.tokens import TextTokens, load_tokens
from tests.unit.retrieval.samples import SAMPLES


def small(tokens: TextTokens, limit: int) -> TextTokens:
    files = ModelFiles("small", Path(), "", limit + tokens.special)
    return TextTokens(files, tokens.tokenizer)


@pytest.fixture(scope="module")
def wordpiece() -> TextTokens:
    return load_tokens("minilm")


@pytest.fixture(scope="module")
def bpe() -> TextTokens:
    """A byte-level tokenizer: spaces and line ends are part of tokens, so a part may have more of them than the whole has there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n" * 9], trainer)
    return TextTokens(ModelFiles("bpe", Path(), "", 64), tokenizer)


lines = st.sampled_from(
    [
        "",
        "",
        "   ",
        "def f(x):",
        "    return x + 1",
        "class A:",
        "# note",
        "x = " + "1, " * 30,
        "é漢字🎉",
        "\t",
        "a\rb",
        "\f",
        "\x1c",
        "#" * 90,
        "}",
        "@wraps",
        "    def g(self):",
        "```",
        "# Heading",
        "Title",
        "=====",
        "{",
        "/* note",
        "*/",
        '"""',
        "supercalifragilistic" * 4,
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=30)
texts = st.lists(lines, max_size=40).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(
    text=texts | st.sampled_from([text for text, _ in SAMPLES.values()]),
    language=st.sampled_from(["python", "python", "text", "markdown", "restructuredtext", "groovy", "unknown", *GRAMMARS]),
    limit=st.integers(4, 60) | st.just(600),
    which=st.booleans(),
)
def test_no_text_is_lost_and_no_chunk_is_too_long(wordpiece, bpe, text, language, limit, which):
    tokens = small(wordpiece if which else bpe, limit)
    chunks = list(chunks_of([("key", text, language)], tokens))
    split = text.split("\n")
    covered: dict[int, str] = {}
    for chunk in chunks:
        assert 1 <= chunk.start_line <= chunk.end_line <= len(split)
        assert chunk.tokens == tokens.count([chunk.text])[0]
        assert chunk.tokens <= limit or len(chunk.text) == 1
        assert chunk.text.strip()
        if chunk.start_line == chunk.end_line:
            covered[chunk.start_line] = covered.get(chunk.start_line, "") + chunk.text
        else:
            assert chunk.text == "\n".join(split[chunk.start_line - 1 : chunk.end_line])
            covered |= dict.fromkeys(range(chunk.start_line, chunk.end_line + 1), "")
    for number, line in enumerate(split, 1):
        assert not line.strip() or number in covered
        if covered.get(number):  # a line alone in its chunks: nothing but blanks may be missing of it
            assert "".join(covered[number].split()) == "".join(line.split())
    starts = [c.start_line for c in chunks]
    assert starts == sorted(starts)
    assert all(before.end_line <= after.start_line for before, after in pairwise(chunks))
    assert list(chunks_of([("key", text, language)], tokens)) == chunks


def test_a_definition_stays_whole_and_names_its_chunk(wordpiece):
    text = textwrap.dedent(
        '''
        import os


        def first(a, b):
            """Add two numbers that somebody gave us, and tell whether the sum is any good."""
            total = a + b
            if total > 10:
                print("large", total, os.getpid())
            return total


        # what follows is small
        @cached
        def second():
            return 2


        class Third:
            """A class that has two methods, both of them short enough to stay with it in one chunk."""

            def one(self):
                return 1

            def two(self):
                return 2
        '''
    )
    [*chunks] = chunks_of([("k", text, "python")], small(wordpiece, 90))
    assert [(c.start_line, c.end_line, c.symbol) for c in chunks] == [(2, 10, "first"), (13, 16, "second"), (19, 26, "Third")]


def test_a_large_class_is_its_header_and_its_methods(wordpiece):
    body = "\n".join(f"    def method_{n}(self):\n        return {', '.join(map(str, range(20)))}\n" for n in range(8))
    chunks = list(chunks_of([("k", f'class Big:\n    """What it is."""\n\n    field = 1\n\n{body}', "python")], small(wordpiece, 100)))
    assert [(c.symbol, c.kind, c.scope, c.start_line, c.end_line) for c in chunks[:3]] == [
        ("Big", "class", None, 1, 4), ("Big.method_0", "method", "Big", 6, 7), ("Big.method_1", "method", "Big", 9, 10),
    ]  # fmt: skip
    assert len(chunks) == 9


@st.composite
def modules(draw) -> str:
    """Functions of many lengths, alone and in classes, with comments, blank lines and statements between them."""
    parts = []
    for number in range(draw(st.integers(1, 8))):
        indent = "    " if (within := draw(st.booleans())) else ""
        head = [f"class C{number}:"] if within else []
        for inner in range(draw(st.integers(1, 3)) if within else 1):
            body = [f"{indent}    value_{n} = other(value_{n}, {n})" for n in range(draw(st.integers(1, 20)))]
            parts += [*head, *draw(st.sampled_from([[], [f"{indent}# note"], [f"{indent}@cached"], [""]]))]
            parts += [f"{indent}def f{number}_{inner}(self):", *body, *draw(st.sampled_from([[], [""], ["", ""]]))]
            head = []
        parts += draw(st.sampled_from([[], ["X = 1"], [f"Y = {list(range(40))}"], ["# end"]]))
    return "\n".join(parts)


def not_alone(chunks, text, tokens) -> list[str]:
    """The functions of a text that fit and have enough text, but share their chunk with another, or with much else."""
    lines, found = text.split("\n"), outline(text, "python")
    functions = [d for d in found if d.kind != "class"]
    faults = []
    for one in functions:
        size = tokens.count(["\n".join(lines[one.start - 1 : one.end])])[0]
        inner = any(f.start <= one.start and one.end <= f.end for f in functions if f is not one)
        if inner or not ENOUGH <= size <= tokens.budget - ENOUGH:
            continue
        around = [c for c in chunks if c.start_line <= one.start and one.end <= c.end_line]
        own = [c for c in around if c.symbol == one.name and c.tokens < size + 4 * ENOUGH]
        small_class = [c for c in around if c.kind == "class" and c.tokens <= tokens.budget]
        faults += [] if own or small_class else [one.name]
    return faults


@settings(max_examples=60, deadline=None)
@given(modules())
def test_one_function_is_one_chunk(wordpiece, text):
    assert not_alone(list(chunks_of([("k", text, "python")], wordpiece)), text, wordpiece) == []


def test_one_function_is_one_chunk_in_real_code(wordpiece):
    text = Path(argparse.__file__).read_text("utf-8")
    chunks = list(chunks_of([("k", text, "python")], wordpiece))
    assert not_alone(chunks, text, wordpiece) == []
    assert len(chunks) > 150


def test_two_sizeable_methods_are_not_one_chunk_though_their_class_would_fit(wordpiece):
    body = "".join(f"    def m{n}(self):\n" + f"        value = other(value, {n})\n" * 10 + "\n" for n in range(2))
    chunks = list(chunks_of([("k", f"class A:\n{body}", "python")], small(wordpiece, 250)))
    assert [(c.symbol, c.start_line, c.end_line) for c in chunks] == [("A", 1, 1), ("A.m0", 2, 12), ("A.m1", 14, 24)]


def test_a_roomy_model_does_not_make_one_vector_of_many_functions(wordpiece):
    text = "\n\n".join(f"def f{n}(x):\n" + "    x = other(x)\n" * 12 for n in range(20))
    chunks = list(chunks_of([("k", text, "python")], small(wordpiece, 8000)))
    assert [c.symbol for c in chunks] == [f"f{n}" for n in range(20)]


def test_a_roomy_model_does_not_make_one_vector_of_a_text_without_headings(wordpiece):
    text = "\n\n".join(f"Paragraph {n} tells something of its own, which has little to do with the others." for n in range(200))
    chunks = list(chunks_of([("k", text, "text")], small(wordpiece, 8000)))
    assert max(c.tokens for c in chunks) <= LOOSE
    assert min(c.tokens for c in chunks) > LOOSE // 2


def test_a_long_function_is_cut_between_its_statements(wordpiece):
    body = "".join(f"    if x > {n}:\n" + f"        x = other(x, {n})\n" * 5 for n in range(30))
    chunks = list(chunks_of([("k", f"def long(x):\n{body}    return x\n", "python")], small(wordpiece, 150)))
    assert {(c.symbol, c.kind) for c in chunks} == {("long", "function")}
    assert all(c.text.startswith(("    if", "def long")) for c in chunks)
    assert max(c.tokens for c in chunks) < 2 * min(c.tokens for c in chunks)


def test_small_functions_go_together_and_with_no_large_one(wordpiece):
    tiny = "".join(f"def t{n}():\n    return {n}\n\n" for n in range(3))
    large = "def large(x):\n" + "    x = other(x)\n" * 12
    chunks = list(chunks_of([("k", f"{tiny}\n{large}\n{tiny}", "python")], wordpiece))
    assert [(c.symbol, c.end_line - c.start_line + 1) for c in chunks] == [("t0", 8), ("large", 13), ("t0", 8)]


def test_a_closing_bracket_stays_with_what_it_closes(wordpiece):
    body = "".join(f"  m{n}(x) {{\n" + "    x = other(x);\n" * 10 + "  }\n" for n in range(3))
    chunks = list(chunks_of([("k", f"class A {{\n{body}}}\n", "javascript")], small(wordpiece, 100)))
    assert [(c.symbol, c.start_line, c.end_line) for c in chunks] == [("A", 1, 1), ("A.m0", 2, 13), ("A.m1", 14, 25), ("A.m2", 26, 38)]


def test_text_is_cut_at_headings_and_paragraphs_and_not_in_code(wordpiece):
    prose = "Some words that tell what this part is about, and why it is there at all. " * 3
    code = "```python\n# no heading\n\n" + "x = other(x)\n" * 8 + "\ny = 1\n```"
    text = f"# One\n\n{prose}\n\n{prose}\n\n## Two\n\n{code}\n\n{prose}\n\n## Three\n\nShort.\n"
    chunks = list(chunks_of([("k", text, "markdown")], small(wordpiece, 110)))
    assert [(c.symbol, c.kind, c.start_line) for c in chunks] == [
        ("One", "heading", 1), ("One.Two", "heading", 7), ("One.Two", "heading", 24), ("One.Three", "heading", 26),
    ]  # fmt: skip
    assert code in chunks[1].text


def test_a_text_that_its_grammar_cannot_read_is_told(wordpiece, caplog):
    told = []
    with caplog.at_level(logging.WARNING):
        chunks = list(chunks_of([("k", "def f():\n    pass\n" + "[" * 2000, "python")], wordpiece, told.append))
    assert told == ["unparsed"]
    assert "cut by line patterns" in caplog.text
    assert chunks[0].symbol == "f"


@pytest.mark.long
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("json", '{"a": [' + "1, " * 700_000 + "2]}"),
        ("javascript", "var a = 1; /* x */ " * 110_000),
        ("python", "x = 1\n" * 350_000),
        ("markdown", "- a\n\n" * 410_000),
    ],
    ids=["json", "javascript", "python", "markdown"],
)
def test_the_longest_files_are_cut_whole(wordpiece, language, text):
    assert len(text) > 2_000_000
    chunks = list(chunks_of([("k", text, language)], wordpiece))
    assert max(c.tokens for c in chunks) <= wordpiece.budget
    assert sum(len("".join(c.text.split())) for c in chunks) == len("".join(text.split()))


def test_a_line_longer_than_the_budget_is_split_inside_it(wordpiece):
    text = "short = 1\n" + "value, " * 100 + "\nend = 2"
    chunks = list(chunks_of([("k", text, "text")], small(wordpiece, 50)))
    assert [(c.start_line, c.end_line) for c in chunks] == [(1, 1), *[(2, 2)] * 4, (3, 3)]
    assert "".join(c.text for c in chunks[1:-1]) == "value, " * 100


def test_files_keep_apart(wordpiece):
    found = list(chunks_of([("a", "x = 1", "python"), ("b", "", "text"), ("c", " \n", "text"), ("d", "y", "go")], wordpiece))
    assert [(c.key, c.text, c.language) for c in found] == [("a", "x = 1", "python"), ("d", "y", "go")]


def test_the_budget_leaves_room_for_the_prompt(wordpiece):
    prompted = TextTokens(ModelFiles("p", Path(), "", 64, document_prompt="passage: "), wordpiece.tokenizer)
    assert prompted.budget == 64 - 2 - wordpiece.count(["passage: "])[0]
