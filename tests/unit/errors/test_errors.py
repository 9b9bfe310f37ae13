"""The error tree: messages, exit codes, crossing process borders."""

from __future__ import annotations

import pickle
import re
import string
from collections.abc import Iterator
from typing import Any

import pytest

from dgpunet_dask import errors
from dgpunet_dask.errors import BadValue, DgpunetError, MalformedFile, Problem, Unplaceable, did_you_mean

DOCUMENTED_EXIT_CODES = {1, 2, 3, 100, 101, 102, 103, 104, 105, 130}

#: Words that tell what to do; a message that ends in {why} or {detail} leaves that to the place that raises it.
CURES = re.compile(
    r"\b(last words|its parameters|add|check|choose|free|give|keep|lower|name|raise|remove|repeat|report|run|see|shows|start|submit|upgrade|use|wait|waits|write)\b|`",
    re.IGNORECASE,
)
TOLD_BY_THE_CALLER = re.compile(r"\{(why|detail|text)[^}]*\}\.?$")

#: These end something on request, name what a list above tells, or are only parents of what is raised.
NOTHING_TO_CURE = {"Interrupted", "CheckFailed", "NotFound", "DgpunetError"}


def tree(root: type[DgpunetError] = DgpunetError) -> Iterator[type[DgpunetError]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


#: Only what the module names: other tests may make classes of their own.
CLASSES = sorted({kind for kind in tree() if vars(errors).get(kind.__name__) is kind}, key=lambda kind: kind.__name__)


def sentence(kind: type[DgpunetError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def example(kind: type[DgpunetError]) -> DgpunetError:
    if kind is MalformedFile:
        return MalformedFile([Problem("f.yaml", 1, 2, "what is wrong")])
    fields: dict[str, Any] = {}
    for _, name, spec, _ in string.Formatter().parse(sentence(kind)):
        if name:
            fields[name] = 7 if spec else f"<{name}>"
    return kind(**fields)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_crosses_a_process_border_whole(kind: type[DgpunetError]) -> None:
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.to_json(), again.exit_code) == (str(error), error.to_json(), error.exit_code)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_error_fills_its_message_and_has_a_documented_exit_code(kind: type[DgpunetError]) -> None:
    error = example(kind)
    assert str(error)
    assert "{" not in str(error)
    assert error.exit_code in DOCUMENTED_EXIT_CODES
    assert set(error.to_json()) == {"code", "message", "reasons"}
    assert re.fullmatch(r"[a-z_]+", error.code)


@pytest.mark.parametrize("kind", [k for k in CLASSES if k.__name__ not in NOTHING_TO_CURE], ids=lambda kind: kind.__name__)
def test_each_message_names_a_cure(kind: type[DgpunetError]) -> None:
    assert CURES.search(sentence(kind)) or TOLD_BY_THE_CALLER.search(sentence(kind))


def test_codes_are_told_apart() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


def test_the_tree_in_the_module_text_names_every_class() -> None:
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b", errors.__doc__ or ""))
    assert {kind.__name__ for kind in CLASSES} <= drawn


def test_malformed_file_lists_each_mistake_once_in_the_order_of_the_file() -> None:
    problems = [
        Problem("f.yaml", 9, 1, "b"),
        Problem("f.yaml", 2, 5, "a"),
        Problem("f.yaml", 9, 1, "b"),
        Problem("f.yaml", 2, 10, "c"),
    ]
    error = MalformedFile(problems)
    assert str(error).splitlines() == ["f.yaml:2:5: a", "f.yaml:2:10: c", "f.yaml:9:1: b"]
    assert error.reasons[0] == {"file": "f.yaml", "line": 2, "col": 5, "what": "a"}


def test_braces_in_values_are_not_filled_in_again() -> None:
    assert "'{x}'" in str(BadValue(what="size", value="{x}", why="write 2GiB"))
    assert str(MalformedFile([Problem("f", 1, 1, "a {b} c")])) == "f:1:1: a {b} c"


def test_unplaceable_gives_its_verdicts_to_machines() -> None:
    verdict = {"device": "3090", "code": "vram_total", "need": "48GiB", "have": "23GiB"}
    assert Unplaceable(what="llm", summary="1 vram_total", verdicts=[verdict]).to_json()["reasons"] == [verdict]


@pytest.mark.parametrize(("word", "hint"), [("vramm", "; did you mean 'vram'?"), ("zzz", ""), ("", "")])
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["vram", "ram", "cpus"]) == hint
