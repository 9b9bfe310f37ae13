"""How a running job is shown, on a terminal and elsewhere, and what is told in words."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dgpunet_dask.cli.following import metric_lines
from dgpunet_dask.cli.progress import LINE_EVERY_S, Progress
from dgpunet_dask.cli.wording import CAUSES, cause_of, event_line, failed_lines, spoken
from dgpunet_dask.jobs import causes


def progress(done: int, total: int | None = None, **more: Any) -> dict[str, Any]:
    return {"seq": done, "time": 0.0, "kind": "progress", "done": done, "total": total, "metrics": {}, **more}


def test_lines_are_few_and_the_last_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    at = [0.0]
    shown = Progress("words", now=lambda: at[0])
    for done in range(100):
        at[0] += LINE_EVERY_S / 10
        shown(progress(done, 99 if done > 90 else None))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "words: 0/? units"
    assert lines[-1] == "words: 99/99 units"
    assert len(lines) <= 12


def test_what_is_known_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("words")(progress(3, 6, rate_per_s=1.25, eta_s=2.4, failed=1, metrics={"files": 9, "skipped": {"binary": 1}}))
    assert capsys.readouterr().err == "words: 3/6 units, 1.25 units/s, about 2 s left, 1 failed, 9 files\n"


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = Progress("words", verbose=True)
    shown(progress(3, 6, rate_per_s=1.5, eta_s=130.0))
    shown({"kind": "log", "text": "hello \x1b[2J"})
    shown.close()
    told = capsys.readouterr().err
    assert "words:  50%" in told
    assert "3/6 units [" in told
    assert "1.5 units/s, about 2 min left" in told
    assert "hello \\x1b[2J\n" in told


def test_placements_attempts_and_prints_are_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        {"kind": "placement", "key": "embed-1", "device": "5090"},
        {"kind": "attempt", "unit": 3, "state": "failed", "device": "5090", "cause": "disk", "why": "no space"},
        {"kind": "log", "text": "hello"},
    ]
    for shown in (Progress("w"), Progress("w", quiet=True, verbose=True)):
        for event in events:
            shown(event)
    assert capsys.readouterr().err == ""
    for event in events:
        Progress("w", verbose=True)(event)
    assert capsys.readouterr().err.splitlines() == [
        "placed embed-1 on 5090", "attempt at unit 3 on 5090 failed: the disk was full (disk): no space", "hello",
    ]  # fmt: skip


def test_every_cause_has_words() -> None:
    assert set(CAUSES) == set(causes.CAUSES)
    assert cause_of(None) == "cause not known"
    assert cause_of("of a newer head") == "of a newer head"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (7199, "120 min"), (7500, "2 h 05 min")])
def test_spans_of_time(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_only_the_last_failures_are_told_and_how_many_there_were() -> None:
    attempts = [{"unit": n, "state": "failed" if n % 2 else "committed", "cause": "user", "evidence": None} for n in range(40)]
    lines = list(failed_lines(attempts))
    assert lines[0] == "  failed attempts: 20; the last 10"
    assert lines[1] == "    unit 21 on no device: the stage's own code failed (user)"
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"kind": "state", "state": "failed", "error": {"message": "it broke"}}, "state: failed: it broke"),
        ({"kind": "again", "tries": 1, "error": {"message": "it broke"}}, "the job is started again after try 1: it broke"),
        ({"kind": "resumed", "done": 7, "attempts": 9}, "a head that started again went on with it: 7 units were done"),
        ({"kind": "stage", "stage": "publish", "state": "running"}, "stage: stage publish, state running"),
        ({"kind": "of a newer head", "x": 1, "y": None}, "of a newer head: x 1"),
    ],
)
def test_events_in_words(event: dict[str, Any], line: str) -> None:
    assert event_line({"seq": 1, "time": 0.0, **event})[9:] == line


def test_a_group_that_counted_nothing_has_no_line() -> None:
    assert list(metric_lines({"files": 0, "skipped": {}, "kept": {"py": 1}})) == ["  files: 0", "  kept: py 1"]


def test_a_cause_of_several_lines_is_told_in_one():
    attempt = {"unit": 3, "state": "failed", "device": "a", "host": "h", "cause": "worker-lost", "evidence": {"why": "the scheduler ended\n  at once\n"}}
    assert list(failed_lines([attempt]))[1].endswith(": the scheduler ended at once")
