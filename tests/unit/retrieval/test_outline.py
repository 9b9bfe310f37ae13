from __future__ import annotations

import textwrap

import pytest

from dgpunet_dask.retrieval.grammars import GRAMMARS
from dgpunet_dask.retrieval.outline import outline, read_outline


def headings(text: str, language: str) -> list[tuple[int, int, str]]:
    return [(d.start, d.end, d.name) for d in outline(textwrap.dedent(text).strip("\n"), language)]


def test_sections_of_markdown_last_to_the_next_heading_of_their_level():
    text = """
        # One #
        text
        ## Two ##
        ```sh
        # a comment
        ```
        ### Deep
        # Last
    """
    assert headings(text, "markdown") == [(1, 7, "One"), (3, 7, "One.Two"), (7, 7, "One.Two.Deep"), (8, 8, "Last")]


def test_underlined_headings_of_markdown_and_what_only_looks_like_them():
    text = """
        ---
        title: no heading
        ---

        Title
        =====

        Part
        ----

        - item
        ---

        two
        lines
        ---
        #hashtag
    """
    assert headings(text, "markdown") == [(5, 17, "Title"), (8, 17, "Title.Part")]


def test_levels_of_restructuredtext_are_in_the_order_of_their_styles():
    text = """
        ======
        Manual
        ======

        Install
        -------
        text

        Sources
        ~~~~~~~

        Use
        ---

        a table:

        === ===
        1   2
        === ===
    """
    assert headings(text, "restructuredtext") == [
        (1, 19, "Manual"), (5, 11, "Manual.Install"), (9, 11, "Manual.Install.Sources"), (12, 19, "Manual.Use"),
    ]  # fmt: skip


def test_headings_of_asciidoc_and_latex():
    assert headings("= One\n\n== Two\n----\n== code\n----\n", "asciidoc") == [(1, 6, "One"), (3, 6, "One.Two")]
    text = "\\section{One}\n\\subsection*{Two}\ntext\n\\section[short]{Three}\n"
    assert headings(text, "latex") == [(1, 3, "One"), (2, 3, "One.Two"), (4, 4, "Three")]


def test_text_is_best_cut_between_paragraphs_and_worst_in_code():
    text = "one\ntwo\n\nthree\n```\nx\n\ny\n```\n"
    depths = read_outline(text, "markdown").breaks(lambda start, end: True)
    assert depths[3] < depths[7] < depths[1] < depths[6]


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("groovy", "class A {\n  def m() {\n  }\n}\n", [("class", "A", 1, 5), ("function", "m", 2, 5)]),
        ("nim", "proc f(x: int): int =\n  x\ntype T = object\n", [("function", "f", 1, 2), ("type", "T", 3, 4)]),
        ("perl", "sub f {\n  1;\n}\n", [("function", "f", 1, 4)]),
        ("yaml", "# x\na: 1\n'b c':\n  d: 2\n- e: 3\n", [("section", "a", 2, 2), ("section", "b.c", 3, 6)]),
        ("terraform", 'resource "aws_x" "main" {\n  a {\n  }\n}\nlocals {\n}\n', [
            ("section", "resource.aws_x.main", 1, 4), ("section", "locals", 5, 7),
        ]),
        ("text", "def f():\n", []),
        ("unknown", "def f():\n", []),
    ],
)
def test_a_language_without_a_grammar_is_read_by_line_patterns(language, text, found):
    read = read_outline(text, language)
    assert [(d.kind, d.name, d.start, d.end) for d in read.definitions] == found
    assert read.unparsed is None


def test_line_patterns_know_the_comments_above():
    assert read_outline("x\n\n// one\n// two\nclass A {\n}\n", "groovy").above == {3: 2}


@pytest.mark.parametrize("language", ["perl", "terraform", "yaml"])
def test_grammars_that_crash_or_never_end_are_not_used(language):
    assert language not in GRAMMARS
    assert read_outline("r#", language).unparsed is None
