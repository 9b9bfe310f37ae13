"""Errors become one line and a documented exit code, in one place."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import click
import pytest

from dgpunet_dask import __version__
from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.cli.context import pass_context
from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.errors import JobLost, Unplaceable


@pytest.fixture
def command(monkeypatch):
    """Put one command `x` in the place of all others; it does what `does` says and keeps the context that it saw."""
    seen = {}

    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    @pass_context
    def x(context, as_json):
        seen["context"] = context
        raise seen["does"]

    monkeypatch.setattr(cli_main, "COMMANDS", {"x": cli_main.Lazy(f"{__name__}:x", "An x.")})
    monkeypatch.setattr(cli_main.importlib, "import_module", lambda name: type("M", (), {"x": x}))
    return seen


@pytest.mark.parametrize(
    ("does", "code", "text"),
    [
        (JobLost(job_id="j"), 104, "gone"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (RuntimeError("wires crossed"), 1, "RuntimeError: wires crossed"),
        (click.UsageError("no such thing"), 2, "no such thing"),
        (click.Abort(), 130, "Interrupted"),
        (SystemExit(101), 101, ""),
        (SystemExit(None), 0, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_exit_codes(command, capfd, does, code, text):
    command["does"] = does
    assert cli_main.run(["x"]) == code
    out, err = capfd.readouterr()
    assert text in err
    assert "Traceback" not in err
    assert out == ""


def test_json_errors_go_to_stdout(command, capfd):
    command["does"] = Unplaceable(what="x", summary="s", verdicts=[{"device": "a", "code": "vram_total"}])
    assert cli_main.run(["x", "--json"]) == 105
    out, err = capfd.readouterr()
    assert json.loads(out) == {"error": command["does"].to_json()}
    assert "device=a" in err
    assert cli_main.run(["x", "--json", "--nonsense"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "usage"


def test_tracebacks_only_when_asked_for(command, capfd):
    command["does"] = RuntimeError("wires crossed")
    cli_main.run(["-v", "x"])
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--cluster", "c", "-q", "x"], ["x", "--cluster", "c", "-q"]])
def test_common_options_before_and_after_the_name(command, words):
    command["does"] = SystemExit(0)
    cli_main.run(words)
    assert (command["context"].cluster, command["context"].quiet, command["context"].verbose) == ("c", True, False)


def test_cluster_from_the_environment(command, monkeypatch):
    command["does"] = SystemExit(0)
    monkeypatch.setenv("DGPUNET_CLUSTER", "e")
    cli_main.run(["x"])
    assert command["context"].cluster == "e"
    cli_main.run(["x", "--cluster", "c"])
    assert command["context"].cluster == "c"


def test_unknown_commands_are_usage_errors(capfd):
    assert cli_main.run(["nonsense"]) == 2
    assert "nonsense" in capfd.readouterr().err
    assert cli_main.run(["--help"]) == 0
    assert cli_main.run(["--version"]) == 0
    assert __version__ in capfd.readouterr().out


def test_every_command_in_the_table_loads():
    with click.Context(cli_main.cli) as ctx:
        for name in cli_main.COMMANDS:
            loaded = cli_main.cli.get_command(ctx, name)
            assert loaded.name == name
            assert loaded.help


def test_shell_completion_knows_the_commands():
    env = child_env({cli_main.COMPLETION: "bash_complete", "COMP_WORDS": "dgpunet-dask s", "COMP_CWORD": "1"})
    argv = [sys.executable, "-c", "from dgpunet_dask.cli.main import main; main()"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert {line.partition(",")[2] for line in done.stdout.split()} == {"search", "status", "submit"}


def test_help_loads_nothing_heavy():
    script = "import sys; from dgpunet_dask.cli.main import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], env=child_env({}), capture_output=True, text=True, timeout=60, check=True)
    heavy = {"distributed", "dask", "torch", "numpy", "tornado", "psutil", "yaml", "pydantic"}
    assert not heavy & set(json.loads(done.stderr.replace("'", '"')))


@pytest.mark.parametrize(("words", "code", "lines"), [(("--help",), 0, 0), (("jobs", "show", "j", "--json"), 102, 1)])
def test_a_reader_that_leaves_is_no_error(home, words, code, lines):
    argv = [sys.executable, "-m", "dgpunet_dask.cli.main", *words]
    process = subprocess.Popen(argv, env=child_env({"DGPUNET_HOME": str(home.root)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == code
    assert len(err.splitlines()) == lines, err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code", "first"),
    [
        (("--help",), 1, ""),
        (("index", "list", "--json"), 1, ""),
        (("jobs", "show", "j", "--json"), 102, "No head answers"),  # the error's own object, as JSON
    ],
)
def test_a_stdout_that_cannot_be_written_is_one_line_and_no_traceback(home, words, code, first, unbuffered):
    """The disk that is full is that of the output, and not the home's."""
    env = child_env({"DGPUNET_HOME": str(home.root), "PYTHONUNBUFFERED": unbuffered})
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "dgpunet_dask.cli.main", *words]
        done = subprocess.run(argv, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (code, 2 if first else 1), done.stderr
    assert first in lines[0]
    assert lines[-1].startswith("dgpunet-dask: Standard output could not be written: No space left on device. ")


@pytest.mark.parametrize("size", [100, 100_000])
def test_output_that_a_buffer_holds_until_the_end_or_does_not_hold_is_missed(size):
    script = f"from dgpunet_dask.cli import main as m; m.cli.main = lambda **_: print('x' * {size}); m.main([])"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], env=child_env({}), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "Standard output could not be written" in done.stderr


def test_without_a_stdout_nothing_is_printed():
    script = "import os, sys; os.close(1); sys.stdout = None; from dgpunet_dask.cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", script], env=child_env({}), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "named", "what"),
    [
        (("submit", "./words", "--array", "path=@~nosuchuser/x"), None, "--array"),
        (("submit", "~nosuchuser/x"), None, "workload"),
        (("jobs", "list"), "~nosuchuser/x", "$DGPUNET_HOME"),
    ],
)
def test_the_folder_of_a_user_that_is_none_is_a_bad_value(capfd, home, tmp_path, monkeypatch, words, named, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "job.yaml").write_text('version: 1\nname: w\nparams: {path: {type: path}}\nstages: {read: {run: "s:R"}}\n')
    (tmp_path / "words" / "s.py").touch()
    monkeypatch.setenv("DGPUNET_HOME", named or str(home.root))
    assert cli_main.run(list(words)) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"{what} '~nosuchuser/x' is not valid: there is no user of that name" in err


@pytest.mark.parametrize("named", ["file", "x" * 300])
@pytest.mark.parametrize("words", [("jobs", "list"), ("up",), ("status",), ("index", "list"), ("nodes",)])
def test_a_home_that_can_be_none_is_named_itself(capfd, tmp_path, monkeypatch, words, named):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / named))
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    assert cli_main.run(list(words)) == 2
    err = capfd.readouterr().err
    assert f"{tmp_path / named}: cannot be read (" in err
    assert "cluster.json" not in err
    assert "Remove" not in err


@pytest.mark.parametrize("words", [("jobs", "wait", "j"), ("submit", "embed-codebase"), ("ask", "i", "q")])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "x"])
def test_what_is_no_time_is_refused(capfd, home, words, seconds):
    assert cli_main.run([*words, f"--timeout={seconds}"]) == 2
    assert "--timeout" in capfd.readouterr().err


def test_a_full_disk_is_told_by_the_path_of_the_home(command, capfd, home):
    assert run_x(command, OSError(errno.ENOSPC, "No space left on device")) == 100
    assert f"the disk of {home.root}." in capfd.readouterr().err


def run_x(command, error):
    command["does"] = error
    return cli_main.run(["x"])
