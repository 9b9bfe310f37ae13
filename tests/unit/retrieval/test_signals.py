from __future__ import annotations

import pytest

from dgpunet_dask.retrieval import signals
from dgpunet_dask.retrieval.signals import Candidate, read_query, stems


def candidate(text="", symbol=None, path="a.py", scope=None):
    return Candidate("k", 0, path, 1, 2, symbol, None, scope, "python", text, None, None)


class TestQuery:
    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("parse_args", {"parseargs"}),
            ("HTTPServer", {"httpserver"}),
            ("tokenizer", {"tokenizer"}),
            ("_private", {"private"}),
            ("asyncio.wait_for", {"waitfor"}),
            ("Vec::push_back", {"pushback"}),
            ("fetch(", {"fetch"}),
            ("`retry` limits", {"retry", "limits"}),
            ("retry limits", {"retry", "limits"}),
        ],
    )
    def test_a_name_is_recognised(self, query, names):
        asked = read_query(query)
        assert asked.symbolic
        assert names <= asked.names

    @pytest.mark.parametrize("query", ["where are retries limited", "the server", "Return the number of lines.", "", "?"])
    def test_prose_names_nothing(self, query):
        asked = read_query(query)
        assert (asked.symbolic, asked.names, asked.definition) == (False, frozenset(), None)

    def test_a_sentence_about_a_name_is_prose_that_knows_the_name(self):
        asked = read_query("how does parse_args() treat unknown options")
        assert not asked.symbolic
        assert asked.names == {"parseargs"}

    def test_function_words_are_not_asked_for(self):
        assert read_query("where is the retry limit").stems == stems("retry limit")

    def test_what_asks_for_tests_is_told(self):
        assert read_query("tests of the parser").side == {"tests"}


class TestDefines:
    @pytest.mark.parametrize(
        ("text", "symbol"),
        [
            ("def parse_args(x):\n    pass", "parse_args"),
            ("@decorated\n# why\nasync def parse_args(x):\n    pass", "A.parse_args"),
            ("static int\nparse_args(int argc)\n{", "parse_args"),
            ("/* What it does.\n * More.\n */\nint parse_args(void) {", "parse_args"),
            ("const parseArgs = (x) => {", "parseArgs"),
        ],
    )
    def test_the_definition_counts_in_any_language(self, text, symbol):
        assert signals.defines(read_query("parse_args"), candidate(text, symbol)) == 1

    @pytest.mark.parametrize("text", ["x = 1\n\ndef parse_args(x):", "func (s *Server) parse_args() {", "class parse_args:"])
    def test_a_definition_further_down_counts_less(self, text):
        assert 0 < signals.defines(read_query("parse_args"), candidate(text, "other")) < 1

    @pytest.mark.parametrize(
        ("text", "symbol"),
        [("parse_args(1)", None), ("    rest = 1\n    return rest", "parse_args"), ("def parse_args_too(): ...", "parse_args_too"), ("", None)],
    )
    def test_a_mention_or_the_middle_does_not(self, text, symbol):
        assert signals.defines(read_query("parse_args"), candidate(text, symbol)) == 0

    def test_a_query_with_signs_is_no_pattern(self):
        assert signals.defines(read_query("a.*b("), candidate("def aXXb(): ...", "aXXb")) == 0


def test_the_words_of_a_name_are_counted():
    asked = read_query("parse the header of a request")
    assert signals.query_in_name(asked, candidate(symbol="Request.parse_header")) == pytest.approx(2 / 3)
    assert signals.query_in_name(asked, candidate(symbol="run")) == 0
    assert signals.query_in_name(read_query("?"), candidate(symbol="run")) == 0


@pytest.mark.parametrize(("symbol", "scope"), [("Request.parse", None), ("parse", "Request"), ("Request.parse", "Request")])
def test_the_scope_is_found_in_either_place(symbol, scope):
    assert signals.scope_named(read_query("parse a request"), candidate(symbol=symbol, scope=scope)) == 1


@pytest.mark.parametrize(("path", "share"), [("net/request_line.py", 0.5), ("request/__init__.py", 0), ("x/requests.rs", 1), ("run.py", 0)])
def test_the_stem_of_the_file_counts(path, share):
    assert signals.stem_named(read_query("parse a request"), candidate(path=path)) == share


def test_a_stub_is_worse_the_shorter_it_is():
    values = [signals.stub(read_query("x"), candidate("x" * n)) for n in (0, 20, 79, 80, 500)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (1, 0)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("src/server.py", set()),
        ("tests/unit/test_server.py", {"tests"}),
        ("src/server_test.go", {"tests"}),
        ("web/app.spec.ts", {"tests"}),
        ("src/main/ServerTest.java", {"tests"}),
        ("src/latest.py", set()),
        ("src/contest/test.py", set()),
        ("examples/run.py", {"examples"}),
        ("lib/_vendor/six.py", {"vendored"}),
        ("node_modules/x/index.js", {"vendored"}),
        ("api/service_pb2.py", {"generated"}),
        ("src/generate.py", set()),
        ("vendor/x/tests/a.c", {"vendored", "tests"}),
    ],
)
def test_side_paths_are_known_by_their_names(path, kinds):
    assert signals.side_kinds(path) == kinds


def test_who_asks_for_tests_is_given_them():
    found = candidate(path="tests/test_parser.py")
    assert signals.side_path(read_query("parser"), found) == 1
    assert signals.side_path(read_query("tests of the parser"), found) == 0
