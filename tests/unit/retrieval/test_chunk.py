from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dgpunet_dask.retrieval.chunk import chunks_of
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.outline import outline
from dgpunet_dask.retrieval.tokens import TextTokens, load_tokens


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
        "supercalifragilistic" * 4,
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=30)
texts = st.lists(lines, max_size=40).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(text=texts, language=st.sampled_from(["python", "go", "text", "markdown"]), limit=st.integers(4, 60), which=st.booleans())
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


def test_a_method_of_a_large_class_is_qualified(wordpiece):
    body = "\n".join(f"    def method_{n}(self):\n        return {', '.join(map(str, range(20)))}\n" for n in range(8))
    chunks = list(chunks_of([("k", f"class Big:\n{body}", "python")], small(wordpiece, 100)))
    assert [c.symbol for c in chunks][1:3] == ["Big.method_1", "Big.method_2"]


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


@pytest.mark.parametrize(
    ("language", "text", "names"),
    [
        ("python", "def f():\n  class A:\n    async def g(self): pass\n", ["f", "f.A", "f.A.g"]),
        ("python", "print 'two'\ndef f():\n    pass\n", ["f"]),
        (
            "go",
            "package a\n\nfunc (s *Server) Run(x int) error {\n}\n\nfunc main() {\n}\n\ntype T struct {\n}\n",
            ["Run", "main", "T"],
        ),
        (
            "rust",
            "pub(crate) async fn run<T>(x: T) {\n}\nimpl<T> Display for Thing<T> {\n}\npub struct Thing;\n",
            ["run", "Thing", "Thing"],
        ),
        (
            "javascript",
            "export default function go() {\n}\nconst f = async (x) => {\n}\nclass A {\n  run(x) {\n  }\n}\n",
            ["go", "f", "A", "run"],
        ),
        ("java", "public class A {\n    private static List<String> all(int x) {\n        return null;\n    }\n}\n", ["A", "all"]),
        (
            "c",
            "static int\nadd(int a, int b)\n{\n}\nint main(void) {\n  if (x) {\n  }\n}\nstruct point {\n};\nint later(void);\n",
            ["main", "point"],
        ),
        ("cpp", "void Server::run(int x) {\n}\ntemplate <class T>\nclass Pool {\n};\n", ["run", "Pool"]),
        ("markdown", "# One\ntext\n## Two ##\n", ["One", "Two"]),
        ("shell", "build() {\n}\nfunction clean () {\n}\n", ["build", "clean"]),
        ("ruby", "class A\n  def self.make(x)\n  end\nend\n", ["A", "make"]),
        ("text", "def f():\n", []),
    ],
)
def test_outlines(language, text, names):
    assert [d.name for d in outline(text, language)] == names


@settings(deadline=None)
@given(texts, st.sampled_from(["python", "go", "rust", "javascript", "java", "c", "cpp", "markdown", "shell", "csharp"]))
def test_definitions_lie_within_the_text(text, language):
    for definition in outline(text, language):
        assert 1 <= definition.start <= definition.end <= text.count("\n") + 1
