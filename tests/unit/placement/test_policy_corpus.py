"""Malformed policy files: each mistake at its line and column, none lost, none invented, and never a traceback.

The files of `policy_corpus` say in comments what is to be found: ``# want: LINE:COL a part of the message``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dgpunet_dask.cli.main import run
from dgpunet_dask.errors import MalformedFile
from dgpunet_dask.placement.policy_file import parse_policies, parse_policy

CORPUS = sorted((Path(__file__).parent / "policy_corpus").glob("*.yaml"))
WANT = re.compile(r"^# want: (\d+):(\d+) (.+)$", re.MULTILINE)

# What no text editor would keep, or what a comment would change.
ODD = {
    "empty": ("", [(1, 1, "mapping such as")]),
    "control character": ("version: 1\nrules: \x00[]\n", [(2, 8, "#x0000 is not allowed")]),
    "byte order mark, then a mistake": ("\ufeffversion: 2.5\nrules: []\n", [(1, 10, "write 1")]),
    "another document without a mark before the first": ("version: 1\n...\n---\nversion: 1\n", [(3, 1, "keep one document")]),
    "too deep": ("version: 1\nrules: " + "[" * 200 + "]" * 200, [(2, 57, "nested deeper than 50 levels")]),
    "carriage returns": ("version: 1\r\nrules:\r\n- name: 7\r\n  priority: idle\r\n", [(3, 9, 'in quotes: "7"')]),
    "a billion values": (
        "version: 1\na: &a [1]\n" + "\n".join(f"{b}: &{b} [{f'*{a}, ' * 40}]" for a, b in zip("abcdef", "bcdefg", strict=True)),
        None,
    ),
}


def found_in(text: str, name: str) -> list[tuple[int, int, str]]:
    with pytest.raises(MalformedFile) as caught:
        parse_policy(text, name)
    assert {p.file for p in caught.value.problems} == {name}
    return [(p.line, p.col, p.what) for p in caught.value.problems]


def compare(found: list[tuple[int, int, str]], want: list[tuple[int, int, str]]) -> None:
    assert sorted((line, col) for line, col, _ in found) == sorted((line, col) for line, col, _ in want)
    for line, col, part in want:
        assert any((line, col) == (at, place) and part in what for at, place, what in found), (line, col, part, found)


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 80
    assert all(WANT.search(path.read_text(encoding="utf-8")) for path in CORPUS)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_every_mistake_is_at_its_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    compare(found_in(text, path.name), [(int(line), int(col), part) for line, col, part in WANT.findall(text)])


@pytest.mark.parametrize(("text", "want"), ODD.values(), ids=ODD)
def test_what_a_comment_would_change(text: str, want: list[tuple[int, int, str]] | None) -> None:
    found = found_in(text, "odd.yaml")
    if want is not None:
        compare(found, want)


def test_the_mistakes_of_all_files_come_together() -> None:
    texts = [(path.read_text(encoding="utf-8"), path.name, "human") for path in CORPUS]
    with pytest.raises(MalformedFile) as caught:
        parse_policies(texts)
    assert {p.file for p in caught.value.problems} == {path.name for path in CORPUS}
    assert len(caught.value.problems) >= sum(len(WANT.findall(text)) for text, _, _ in texts)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_the_command_tells_each_on_a_line(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", str(path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for line, col, part in WANT.findall(path.read_text(encoding="utf-8")):
        assert any(f"{path}:{line}:{col}: " in told and part in told for told in err.splitlines()), (line, col, part)


def test_the_command_tells_machines_too(capfd: pytest.CaptureFixture[str]) -> None:
    path = next(p for p in CORPUS if p.stem == "many-at-once")
    assert run(["policy", "lint", str(path), "--json"]) == 2
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["code"] == "malformed_file"
    assert {(r["line"], r["col"]) for r in error["reasons"]} == {
        (int(line), int(col)) for line, col, _ in WANT.findall(path.read_text("utf-8"))
    }


def test_a_file_that_is_not_utf8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_bytes(b"version: 1\nrules: [\xff]\n")
    (tmp_path / "b.yaml").write_text("version: one\n", encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path)]) == 2
    err = capfd.readouterr().err
    assert f"{tmp_path / 'a.yaml'}:2:9: not valid UTF-8" in err
    assert f"{tmp_path / 'b.yaml'}:1:10: version: write 1" in err
