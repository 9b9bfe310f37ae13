from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.words import FUNCTION_WORDS, LONGEST, asked, stem, whole, words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("HTTPServer", "httpserver http server"),
        ("httpServer", "httpserver http server"),
        ("http_server", "httpserver http server"),
        ("http-server", "httpserver http server"),
        ("HTTP_SERVER", "httpserver http server"),
        ("__init__", "init"),
        ("server", "server"),
        ("utf8", "utf8 utf 8"),
        ("parse2JSON", "parse2json pars 2 json"),
        ("XMLHttpRequest", "xmlhttprequest xml http request"),
        ("ABC", "abc"),
        ("a - b, a-b, x-1", "a b a b x 1"),
        ("self.foo(bar)", "self foo bar"),
        ("straße STRASSE", "stras stras"),
        ("ÜberGröße", "übergrösse über grös"),
        ("ﬁle", "fil"),
        ("東京都", "東京京都 東京 京都"),
        ("parse東京", "parse東京 pars 東京"),
        ("  \n\t ", ""),
    ],
)
def test_a_text_gives_its_terms(text, terms):
    assert words(text) == terms.split()


def test_the_order_and_the_repetitions_of_a_text_are_kept():
    assert words("b a b") == ["b", "a", "b"]


@given(st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=2, max_size=4))
def test_every_spelling_of_a_name_gives_the_same_terms(parts):
    camel = "".join(p.capitalize() for p in parts)
    spellings = ["_".join(parts), "-".join(parts), camel, camel[0].lower() + camel[1:], "_".join(parts).upper()]
    assert {tuple(words(s)) for s in spellings} == {("".join(parts), *map(stem, parts))}
    assert {whole(s) for s in spellings} == {"".join(parts)}


@pytest.mark.parametrize(
    "forms",
    ["parse parsed parses parsing", "retry retries retried", "string strings", "match matches matching", "stop stopped stopping", "copy copies"],
)
def test_forms_of_a_word_are_one_term(forms):
    assert len({words(form)[0] for form in forms.split()}) == 1


@pytest.mark.parametrize(("one", "other"), [("parse", "parser"), ("number", "numb"), ("class", "classify"), ("red", "ring"), ("as", "a"), ("is", "i")])
def test_different_words_stay_apart(one, other):
    assert words(one) != words(other)


@given(st.text())
@example("İ")
@example("ŉ")
@example("a\u0301B")
def test_terms_are_short_never_empty_and_without_spaces(text):
    for term in words(text):
        assert 0 < len(term) <= LONGEST
        assert not any(c.isspace() for c in term)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_the_order_of_letters_alone_decides(text):
    assert words(text) == words(f" {text}\n")


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x24F)), st.text(alphabet="abcXYZ_9", max_size=5))
def test_ascii_and_other_letters_are_split_alike(other, text):
    # a letter outside ASCII anywhere in a text changes nothing about the identifiers before it
    assert words(f"{text} é{other}")[: len(words(text))] == words(text)


def test_a_query_is_asked_without_function_words():
    assert asked("where is the retry limit") == words("retry limit")


def test_a_query_of_nothing_else_is_asked_as_it_is():
    assert asked("is it") == ["is", "it"]


def test_no_function_word_is_asked_for_beside_others():
    assert all(asked(f"{word} retry") == words("retry") for word in FUNCTION_WORDS)
