"""What comes from files and stages of others cannot steer the terminal, and what the system refuses has a name."""

from __future__ import annotations

import errno
import json

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.cli.context import emit_json, printable
from dgpunet_dask.cli.following import show_result
from dgpunet_dask.model.job import JobStatus


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï 漢字\t.", "plain ünï 漢字\t."),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("a\nb\rc\x9bd\x7f", r"a\nb\rc\x9bd\x7f"),
        ("\u202egnp.py\u2028", r"\u202egnp.py\u2028"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_controls_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_is_ascii_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"path": "caf\udce9 \x9b 漢"})
    told = capsys.readouterr().out
    assert told.isascii()
    assert json.loads(told) == {"path": "caf\udce9 \x9b 漢"}


@pytest.mark.parametrize(
    ("number", "code", "exit_code"),
    [
        (errno.EACCES, "unreadable_path", 2),
        (errno.ENAMETOOLONG, "unreadable_path", 2),
        (errno.ENOTDIR, "unreadable_path", 2),
        (errno.ENOSPC, "disk_full", 100),
        (errno.EIO, "unexpected", 1),
    ],
)
def test_what_the_system_refuses_has_a_name(number: int, code: str, exit_code: int) -> None:
    error = cli_main.named(OSError(number, "so it is", "/some/file"))
    assert (error.code, error.exit_code) == (code, exit_code)
    assert "/some/file" in str(error)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_job_is_told_in_one_line_on_stderr(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    error = {"code": "stage_failed", "message": "it said\n\x1b[2Jnothing", "reasons": [{"file": "f"}]}
    show_result(JobStatus(job_id="j", workload="w", state="failed", params={}, submitted_at=0.0, error=error, exit_code=100), as_json=as_json)
    told = capsys.readouterr()
    assert told.err == "job j failed: it said\\n\\x1b[2Jnothing\n"
    assert bool(told.out) == as_json
    assert not as_json or json.loads(told.out)["error"] == error
