"""The log of a process is read back by places that stay true when the file is emptied, and never grows beyond its bounds."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.stagehost import logs
from dgpunet_dask.stagehost.logs import LogFile, prune_logs


class Printing:
    """A process that appends to its log, as stage hosts do."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.log"
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def says(self, text: str) -> None:
        os.write(self._fd, text.encode())


@pytest.fixture
def process(tmp_path: Path) -> Printing:
    return Printing(tmp_path)


def test_each_call_gets_what_was_printed_in_it(process: Printing) -> None:
    log = LogFile(process.path)
    places = [log.place()]
    for text in ("of the first\n", "", "of the third é\n"):
        process.says(text)
        places.append(log.place())
    assert [log.text(a, b) for a, b in pairwise(places)] == ["of the first\n", "", "of the third é\n"]
    assert log.tail(places[1]) == "of the third é\n"


def test_of_a_long_output_beginning_and_end_are_told_in_whole_lines(process: Printing) -> None:
    log = LogFile(process.path)
    process.says("before\n")
    start = log.place()
    lines = [f"line {n}\n" for n in range(1000)]
    process.says("".join(lines))
    told = log.text(start, log.place(), most=200).splitlines(keepends=True)
    note = next(line for line in told if "left out" in line)
    head, tail = told[: told.index(note)], told[told.index(note) + 1 :]
    assert head == lines[: len(head)]
    assert tail == lines[-len(tail) :]
    assert f"[{len(''.join(lines)) - len(''.join(head + tail))} bytes" in note
    assert sum(map(len, head + tail)) <= 200
    assert set(log.tail(start, most=50).splitlines(keepends=True)) <= set(lines)


def test_a_single_line_beyond_the_bound_is_cut(process: Printing) -> None:
    log = LogFile(process.path)
    process.says("x" * 1000)
    told = log.text(0, log.place(), most=100)
    assert told.startswith("x" * 50 + "\n[900 bytes")
    assert log.tail(most=10) == "x" * 10


def test_a_log_that_is_too_long_is_emptied_and_its_end_set_aside(process: Printing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 200)
    log = LogFile(process.path)
    assert not log.shorten()
    process.says("a" * 150)
    start = log.place()
    process.says("b" * 50)
    assert log.shorten()
    process.says("after\n")
    assert (start, log.place()) == (150, 206)
    assert log.text(start, log.place()) == logs.left_out(50) + "after\n"
    assert log.text(200, log.place()) == "after\n"
    assert process.path.with_name("a.log.1").read_text() == "a" * 50 + "b" * 50
    assert process.path.stat().st_size == 6


def test_a_log_that_somebody_else_emptied_is_read_on(process: Printing) -> None:
    log = LogFile(process.path)
    process.says("old " * 10)
    start = log.place()
    os.truncate(process.path, 0)
    process.says("new\n")
    assert "new\n" in log.text(start, log.place())


def test_a_log_that_is_gone_tells_nothing(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "none.log")
    assert (log.place(), log.text(0, 10), log.tail(), log.shorten()) == (0, "", "", False)


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(2, 400))
def test_no_text_is_longer_than_it_may_be_but_for_the_note(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], most: int) -> None:
    path = tmp_path_factory.mktemp("logs") / "a.log"
    path.write_bytes(b"".join(pieces))
    log = LogFile(path)
    text = log.text(0, log.place(), most)
    assert len(text) <= most + 1 + len(logs.left_out(10**6))


def test_pruning_takes_what_was_set_aside_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOGS_KEPT", 1)
    for age, name in enumerate(("live", "new", "old")):
        for path in (tmp_path / f"{name}.log", tmp_path / f"{name}.log.1"):
            path.touch()
            os.utime(path, (1000 - age, 1000 - age))
    prune_logs(tmp_path, [tmp_path / "live.log"])
    assert {p.name for p in tmp_path.iterdir()} == {"live.log", "live.log.1", "new.log", "new.log.1"}
