"""Threads that print at once are told apart, and what they print still goes where it went."""

from __future__ import annotations

import sys
import threading

import pytest

from dgpunet_dask.stagehost.logs import CALL_BYTES
from dgpunet_dask.stagehost.printed import Printed, printed


def test_each_thread_hears_itself_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before, together, found = (sys.stdout, sys.stderr), threading.Barrier(3), {}

    def run(name: str) -> None:
        with printed() as mine:
            together.wait(10)
            for number in range(100):
                print(name, number)
            print(name, "aside", file=sys.stderr)
            together.wait(10)
        found[name] = mine.text

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    together.wait(10)
    print("of neither")
    together.wait(10)
    for thread in threads:
        thread.join(10)
    for name in "ab":
        assert found[name].splitlines() == [f"{name} {n}" for n in range(100)] + [f"{name} aside"]
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 201
    assert len(err.splitlines()) == 2
    assert (sys.stdout, sys.stderr) == before


def test_nothing_is_noted_any_more_once_it_was_left() -> None:
    with printed() as mine:
        print("in")
    print("out")
    assert mine.text == "in\n"


def test_of_much_the_beginning_and_the_end_are_kept() -> None:
    noted, text = Printed(), "".join(f"{n:07d}\n" for n in range(40_000))
    for start in range(0, len(text), 1000):
        noted.write(text[start : start + 1000])
    half = CALL_BYTES // 2
    assert noted.text.startswith(text[:half])
    assert noted.text.endswith(text[-half:])
    assert f"[{len(text) - CALL_BYTES} bytes left out" in noted.text
