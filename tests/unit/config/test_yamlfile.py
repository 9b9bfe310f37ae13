"""YAML with places: every mistake at once, exactly where it stands, with what would be right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, Field

from dgpunet_dask.config.yamlfile import Document, YamlModel, check_version, load, parsed, read, validate
from dgpunet_dask.config.yamltree import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES
from dgpunet_dask.errors import MalformedFile, MissingPath, NewerFormat, Problem, UnreadablePath
from dgpunet_dask.units import Mib, parse_version


def _short(text: str) -> str:
    if len(text) > 8:
        raise ValueError("use at most 8 letters")
    return text


class Card(YamlModel):
    vram: Annotated[Mib, parsed(Mib)] | None = None
    capability: Annotated[tuple[int, ...], parsed(parse_version)] | None = None
    model: str | None = None
    speed: Annotated[float, Field(gt=0)] = 1.0
    cordoned: bool = False
    power: Literal["mains", "battery"] | None = None
    features: list[str] = Field(default_factory=list)


class Rack(YamlModel):
    version: Literal[1]
    cards: dict[Annotated[str, AfterValidator(_short)], Card]
    spare: Card | None = None
    more: list[Card] = Field(default_factory=list)
    any_of: Card | int | None = None


def mistakes(text: str, model: type[YamlModel] = Rack) -> list[str]:
    with pytest.raises(MalformedFile) as caught:
        validate(load(text, "f.yaml"), model)
    return str(caught.value).splitlines()


def test_a_right_file_gives_the_model() -> None:
    rack = validate(load('version: 1\ncards: {"3090": {vram: 24GiB, capability: "8.6"}}\n', "f.yaml"), Rack)
    assert rack.cards["3090"].vram == 24576
    assert rack.cards["3090"].capability == (8, 6)


def test_every_mistake_is_told_at_once_and_where_it_stands() -> None:
    text = """\
version: 2
cards:
  a: {vram: 64, capability: 8.10, model: 3090, speeed: 2, speed: 1_0, cordoned: on, power: main}
  3090:
    vram: lots
    vram: 3GiB
    capability: abc
    features: x
    zzzzz: 1
  much-too-long: {}
  c:
  d: [1]
spare: {speed: [1], modell: q}
more: [{vran: 1}, 3]
m: !!python/object x
"""
    assert mistakes(text) == [
        "f.yaml:1:10: version: write 1, not 2",
        "f.yaml:3:13: vram: 64 is not valid: write a number with its unit, such as 512MiB or 2GiB",
        'f.yaml:3:29: capability: YAML reads 8.10 as a number; here write it in quotes: "8.10"',
        'f.yaml:3:42: model: YAML reads 3090 as a number; here write it in quotes: "3090"',
        "f.yaml:3:48: unknown key 'speeed'; did you mean 'speed'?",
        "f.yaml:3:66: speed: write a number, not '1_0'",
        "f.yaml:3:81: cordoned: write true or false, not 'on'",
        "f.yaml:3:92: power: write 'mains' or 'battery', not 'main'",
        'f.yaml:4:3: YAML reads 3090 as a number; as a key write it in quotes: "3090"',
        "f.yaml:5:11: vram: 'lots' is not valid: write a number with its unit, such as 512MiB or 2GiB",
        "f.yaml:6:5: 'vram' is given twice, first in line 5; keep one of them",
        "f.yaml:7:17: capability: 'abc' is not valid: write it quoted, as \"8.9\"",
        "f.yaml:8:15: features: write a list such as [a, b], not 'x'",
        "f.yaml:9:5: unknown key 'zzzzz'; known keys: vram, capability, model, speed, cordoned, power, features",
        "f.yaml:10:3: the name 'much-too-long' will not do: use at most 8 letters",
        "f.yaml:11:5: c: write a mapping such as {key: value}, not nothing",
        "f.yaml:12:3: d: write a mapping such as {key: value}, not a list",
        "f.yaml:13:9: speed: write a number, not a list",
        "f.yaml:13:21: unknown key 'modell'; did you mean 'model'?",
        "f.yaml:14:9: unknown key 'vran'; did you mean 'vram'?",
        "f.yaml:14:19: more: write a mapping such as {key: value}, not 3",
        "f.yaml:15:1: unknown key 'm'; known keys: version, cards, spare, more, any_of",
        "f.yaml:15:4: the tag !!python/object is not used here; remove it",
    ]


def test_a_missing_key_is_told_where_it_should_stand() -> None:
    assert mistakes("# a comment\ncards: {}\n") == ["f.yaml:1:1: the key 'version' is missing here"]
    assert mistakes("") == ["f.yaml:1:1: write a mapping such as {key: value}, not nothing"]
    assert mistakes("- 1\n") == ["f.yaml:1:1: write a mapping such as {key: value}, not a list"]


def test_mistakes_inside_a_union_stand_at_the_value() -> None:
    told = mistakes("version: 1\ncards: {}\nany_of: {spede: 1}\n")
    assert "f.yaml:3:10: unknown key 'spede'; did you mean 'speed'?" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1,\nb: }", "f:2:4: not valid YAML: while parsing a flow node, expected the node content, but found '}'"),
        (
            "\ta: 1",
            "f:1:1: not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token; indent with spaces, not with tabs",
        ),
        ("a: 'x", "f:1:6: not valid YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("ok: 1\na: \x07b", "f:2:4: the character #x0007 is not allowed in YAML; remove it"),
        (
            "a: 1\n---\nb: 2",
            "f:2:1: not valid YAML: expected a single document in the stream, but found another document; keep one document in a file, without a second ---",
        ),
        ("a: *b", "f:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: &x [*x]", "f:1:4: this contains itself by way of an alias; write it out"),
        ("a: &x {b: {c: *x}}", "f:1:4: this contains itself by way of an alias; write it out"),
        ("[" * 5000, f"f:1:{MAX_DEPTH + 1}: not valid YAML: nested deeper than {MAX_DEPTH} levels"),
        ("a: 1e999", "f:1:4: 1e999 is no number that can be kept; write it shorter, or in quotes if it is text"),
        ("a: !!int x", "f:1:4: x is no number that can be kept; write it shorter, or in quotes if it is text"),
        ("? [1]\n: 2", "f:1:3: a key must be text, not a list or mapping"),
        ("{~: 1}", 'f:1:2: YAML reads ~ as null; as a key write it in quotes: "~"'),
        ("? \n: 1", "f:1:2: a name must stand before the colon"),
        ("true: 1", 'f:1:1: YAML reads true as true or false; as a key write it in quotes: "true"'),
        ("a: !secret x", "f:1:4: the tag !secret is not used here; remove it"),
        ("!!set {a, b}", "f:1:1: the tag !!set is not used here; remove it"),
    ],
)
def test_text_that_is_no_plain_data(text: str, told: str) -> None:
    with pytest.raises(MalformedFile) as caught:
        load(text, "f").check()
    assert str(caught.value) == told


def test_a_key_beyond_any_number_is_shortened_in_the_message() -> None:
    with pytest.raises(MalformedFile, match=r"^f:1:4: 9{37}\.\.\. is no number"):
        load("a: " + "9" * 5000, "f").check()


def test_a_few_lines_cannot_become_billions_of_values() -> None:
    lines = ["a0: &a0 [" + ",".join("x" * 10) + "]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    started = time.perf_counter()
    with pytest.raises(MalformedFile, match=f"more than {MAX_VALUES} values"):
        load("\n".join(lines), "f")
    assert time.perf_counter() - started < 10


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(MalformedFile, match="f:1:1: the file is longer than 4 MiB"):
        load("#" * (MAX_CHARACTERS + 1), "f")


def test_an_alias_is_the_value_it_names() -> None:
    document = load("a: &x {speed: 1}\nb: *x\n", "f").check()
    assert document.data == {"a": {"speed": 1}, "b": {"speed": 1}}
    assert document.position(("b", "speed")) == (1, 15)


def test_only_core_forms_are_other_than_text() -> None:
    text = "{a: on, b: 22:00, c: 1.5, d: -3, e: ~, f: 0x1f, g: 1_0, h: .inf, i: true, j: 4090l, k: !!str 3, l: 2024-01-01, m: 010}"
    data = load(text, "f").check().data
    assert data == {
        "a": "on", "b": "22:00", "c": 1.5, "d": -3, "e": None, "f": "0x1f", "g": "1_0", "h": ".inf", "i": True, "j": "4090l",
        "k": "3", "l": "2024-01-01", "m": 10,
    }  # fmt: skip


def test_places_of_values_keys_and_what_is_not_there() -> None:
    document = load("hosts:\n  m18r2:\n    gpus:\n      - {name: 4090l}\n      -\n        name: x\n", "f")
    assert document.position(("hosts", "m18r2", "gpus", 0, "name")) == (4, 16)
    assert document.key_position(("hosts", "m18r2", "gpus", 0, "name")) == (4, 10)
    assert document.position(("hosts", "m18r2", "gpus", 1, "name")) == (6, 15)
    assert document.position(("hosts", "m18r2")) == (2, 3)  # a mapping stands where its key does
    assert document.position(("hosts", "m18r2", "gpus", 0)) == (4, 9)
    assert document.position(("hosts", "m18r2", "ram")) == (2, 3)  # not there: its nearest parent
    assert document.position(()) == (1, 1)
    assert document.problem(("hosts",), "wrong") == Problem("f", 1, 1, "wrong")


def test_further_checks_are_told_with_the_models_mistakes() -> None:
    def no_twins(document: Document) -> Iterator[Problem]:
        yield document.key_problem(("cards", "b"), "b is a twin of a; remove one")

    with pytest.raises(MalformedFile) as caught:
        validate(load("version: 1\ncards:\n  a: {spede: 1}\n  b: {}\n", "f"), Rack, [no_twins])
    assert [(p.line, p.col) for p in caught.value.problems] == [(3, 7), (4, 3)]
    with pytest.raises(MalformedFile, match=r"^f:2:9: b is a twin"):
        validate(load("version: 1\ncards: {b: {}}\n", "f"), Rack, [no_twins])


def test_a_newer_file_is_refused_for_its_version_alone() -> None:
    with pytest.raises(NewerFormat, match="version 3, and this release reads up to 1"):
        check_version(load("version: 3\nwhatever: 1\n", "f"), 1)
    for older in ("version: 1", "version: x", "version: true", "[1]", ""):
        check_version(load(older, "f"), 1)


def test_files_are_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes("\ufeffa: ünï\r\nb: 1\r\n".encode())
    assert read(path).check().data == {"a": "ünï", "b": 1}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(MalformedFile, match=r"f\.yaml:2:4: not valid UTF-8"):
        read(path)
    with pytest.raises(MissingPath):
        read(tmp_path / "none.yaml")
    with pytest.raises(UnreadablePath):
        read(tmp_path)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_data_reads_back(data: Any) -> None:
    """JSON is YAML: what is written as one reads as the other, with a place for each value."""
    text = yaml.safe_dump(data, default_style='"', allow_unicode=True)
    document = load(text, "f").check()
    assert document.data == data
    assert document.position(())[0] >= 1


@given(st.text(alphabet="ab:[]{}-*&!'\"#\n ,?|>%@~<1.\t", max_size=40))
def test_any_text_is_read_or_refused_with_places(text: str) -> None:
    problems: list[Problem] = []
    try:
        problems += load(text, "f").problems
    except MalformedFile as error:
        problems += error.problems or [Problem("f", 0, 0, "")]
    lines = text.count("\n") + 1
    assert all(1 <= p.line <= lines + 1 and p.col >= 1 and p.what for p in problems)
