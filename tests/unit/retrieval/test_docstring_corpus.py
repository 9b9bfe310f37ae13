"""The questions of bench/retrieval.py: what they are measured against must be right."""

from __future__ import annotations

import ast
import json
import textwrap

import pytest

from bench.docstring_corpus import corpus_of, spans_of

TREE = {
    "a.py": '''
        """The module says something."""
        import os


        class Reader:
            """Reads one thing after another."""

            @property
            def size(self):
                """Return how much there is.

                In bytes.
                """
                total = 0
                for part in self.parts:
                    total += len(part)
                return total

            def empty(self):
                """Only a docstring, and nothing else."""

        def short(x): """On its own line it stands."""; return x
    ''',
    "b.py": '''
        def copied(first, second, third, fourth):
            """Put all of them together somehow."""
            alpha = [first, second]
            beta = [third, fourth]
            gamma = sorted(alpha + beta)
            return gamma, len(gamma), max(gamma)

        def again(first, second, third, fourth):
            """Put them together once more."""
            alpha = [first, second]
            beta = [third, fourth]
            gamma = sorted(alpha + beta)
            return gamma, len(gamma), max(gamma)
    ''',
    "broken.py": "def f(:",
}


def tree():
    return {path: textwrap.dedent(text).strip() + "\n" for path, text in TREE.items()}


@pytest.fixture(params=[False, True], ids=["as it is", "renamed"])
def corpus(request):
    return corpus_of("tree", iter(tree().items()), renamed=request.param)


def test_no_line_moves_and_every_file_still_parses(corpus):
    assert set(corpus.files) == {"a.py", "b.py"}
    for path, text in corpus.files.items():
        ast.parse(text)
        assert text.count("\n") == tree()[path].count("\n")
    assert corpus.left_out["files that do not parse"] == 1


def test_no_docstring_is_left(corpus):
    nodes = [n for text in corpus.files.values() for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Module)]
    assert [ast.get_docstring(n) for n in nodes if ast.get_docstring(n)] == []


def test_a_question_is_the_first_paragraph_and_its_answer_the_functions_lines(corpus):
    found = {q.name: (q.text, q.path, q.start, q.end) for q in corpus.questions}
    assert found["Reader.size"] == ("Return how much there is.", "a.py", 8, 17)
    assert set(found) == {"Reader.size", "copied"}


def test_of_near_duplicates_one_stays(corpus):
    assert corpus.left_out["near-duplicate, blanked"] == 1
    assert corpus.files["b.py"].count("sorted") == 1


def test_renaming_leaves_no_name_of_its_own():
    text = corpus_of("tree", iter(tree().items()), renamed=True).files["b.py"]
    assert not {"copied", "alpha", "first"} & set(text.replace("(", " ").replace(",", " ").split())


def test_the_same_question_twice_is_none():
    files = {f"{n}.py": f'def f{n}(a):\n    """Say the same words."""\n    b = a * {n}\n    c = b + a\n    return c\n' for n in range(2)}
    corpus = corpus_of("tree", iter(files.items()))
    assert corpus.questions == []
    assert corpus.left_out["same question as another"] == 2


def test_spans_include_decorators():
    assert json.dumps(spans_of(tree()["a.py"])) == json.dumps({"Reader.size": (8, 17), "Reader.empty": (19, 20), "short": (22, 22)})
