"""`dgpunet-dask`: the group of all commands, and the one place where errors become messages and exit codes.

Command modules are loaded when a command is called, so that ``--help`` and ``search`` start fast. Shell completion is click's:
``eval "$(_DGPUNET_DASK_COMPLETE=bash_source dgpunet-dask)"`` (or ``zsh_source``, ``fish_source``) in the shell's start file.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import click

from dgpunet_dask import __version__
from dgpunet_dask.cli.context import CliContext, printable
from dgpunet_dask.config.home import home_from
from dgpunet_dask.errors import DgpunetError, DiskFull, Interrupted, OutputFailed, UnreadablePath
from dgpunet_dask.errors.fullness import NO_ROOM

PROGRAM: Final = "dgpunet-dask"
COMPLETION: Final = "_DGPUNET_DASK_COMPLETE"
_REFUSED: Final = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
_STDOUT: Final = "<stdout>"


class Lazy(NamedTuple):
    """A command that is not loaded yet: ``module:attribute``, and its line in ``--help``."""

    target: str
    help: str


COMMANDS: Final[dict[str, Lazy]] = {
    "ask": Lazy("dgpunet_dask.cli.ask:ask", "Answer a question from the best hits of an index."),
    "cordon": Lazy("dgpunet_dask.cli.nodes:cordon", "Place nothing new on a machine."),
    "doctor": Lazy("dgpunet_dask.cli.doctor:doctor", "Check hardware, network, versions, system and workload."),
    "down": Lazy("dgpunet_dask.cli.cluster:down", "Stop the cluster, and end what a killed one left behind."),
    "drain": Lazy("dgpunet_dask.cli.nodes:drain", "Let a machine finish its work, then let its workers leave."),
    "fleet": Lazy("dgpunet_dask.cli.fleet:fleet", "Show and record the machines as placement sees them."),
    "head": Lazy("dgpunet_dask.cli.head:head", "Run the head of a cluster that other machines can join."),
    "index": Lazy("dgpunet_dask.cli.index:index", "List, show, share and remove search indexes."),
    "install-service": Lazy("dgpunet_dask.cli.service:install_service", "Have systemd run this machine's part of the cluster."),
    "jobs": Lazy("dgpunet_dask.cli.jobs:jobs", "List, show, follow, cancel and retry the jobs of a running head."),
    "join": Lazy("dgpunet_dask.cli.join:join", "Make this machine part of a cluster."),
    "key": Lazy("dgpunet_dask.cli.key:key", "Make, list and revoke the API keys of users."),
    "ledger": Lazy("dgpunet_dask.cli.ledger:ledger", "Check the head's ledger of jobs, put a copy back, make it anew."),
    "mcp": Lazy("dgpunet_dask.cli.mcp:mcp", "Serve the indexes to coding agents (Model Context Protocol, stdio)."),
    "model": Lazy("dgpunet_dask.cli.model:model", "List and share the models that users brought."),
    "nodes": Lazy("dgpunet_dask.cli.nodes:nodes", "List the machines of the cluster."),
    "policy": Lazy("dgpunet_dask.cli.policy:policy", "Write and check the rules that decide where work goes."),
    "remove-node": Lazy("dgpunet_dask.cli.nodes:remove_node", "Put a machine out of the cluster; its certificates are revoked."),
    "report": Lazy("dgpunet_dask.cli.report:report", "Write a bundle for a bug report, redacted."),
    "search": Lazy("dgpunet_dask.cli.search:search", "Search an index."),
    "status": Lazy("dgpunet_dask.cli.cluster:status", "Show the running cluster and its workers."),
    "submit": Lazy("dgpunet_dask.cli.submit:submit", "Run a workload."),
    "token": Lazy("dgpunet_dask.cli.token:token", "Make, list and revoke tokens that let another machine join."),
    "uncordon": Lazy("dgpunet_dask.cli.nodes:uncordon", "Place work on a machine again."),
    "up": Lazy("dgpunet_dask.cli.cluster:up", "Start a cluster on this machine and leave it running."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command, and let it take the common options as well: people write them at the end."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return with_common_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in sorted(COMMANDS)])


def common_options() -> list[click.Option]:
    """Return the options that stand before a command's name or after it."""
    return [
        click.Option(
            ["--cluster"], metavar="NAME|ADDRESS", expose_value=False, callback=_take("cluster"),
            help="Use this cluster (a head's HTTP API). Default: $DGPUNET_CLUSTER, else the head under $DGPUNET_HOME.",
        ),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_take("verbose"), help="Say more."),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_take("quiet"), help="Say only what matters."),
    ]  # fmt: skip


def _take(name: str) -> Any:
    """Return a callback that keeps an option for the context, unless it was not given here."""

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value:
            ctx.find_root().meta[f"{PROGRAM}.{name}"] = value
            if isinstance(ctx.obj, CliContext):
                ctx.obj = _context(ctx)
        return value

    return keep


def _context(ctx: click.Context) -> CliContext:
    meta = ctx.find_root().meta
    cluster = meta.get(f"{PROGRAM}.cluster") or os.environ.get("DGPUNET_CLUSTER") or None
    return CliContext(home_from(), cluster, bool(meta.get(f"{PROGRAM}.verbose")), bool(meta.get(f"{PROGRAM}.quiet")))


def with_common_options(command: click.Command) -> click.Command:
    """Add the common options to `command` and what is below it, where a name is not taken yet."""
    taken = {name for param in command.params for name in param.opts}
    command.params += [option for option in common_options() if not taken.intersection(option.opts)]
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_common_options(inner)
    return command


@click.group(
    cls=LazyGroup,
    params=list(common_options()),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f'Shell completion: eval "$({COMPLETION}=bash_source {PROGRAM})", or zsh_source, fish_source.',
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A handful of unequal GPU machines as one cluster: embed and search code, run your own stages.

    State lies under $DGPUNET_HOME. Results go to stdout, everything else to stderr.
    """
    ctx.obj = _context(ctx)
    level = logging.DEBUG if ctx.obj.verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _named_stdout(sys.stdout)
    code = run(words)
    try:
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
    except BrokenPipeError:
        code = _stdout_is_gone()
    except OSError as error:
        code = code or report(named(error), words)
    sys.exit(code)


class _Stdout(io.TextIOWrapper):
    """Standard output whose errors name it: one without a name may be of any file.

    Named here and not below the buffer, which would write once more what an interrupt of a write in Python had written already.
    """

    def write(self, text: str, /) -> int:
        """Write, as every text file does."""
        with _naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        """Flush, as every text file does."""
        with _naming_stdout():
            super().flush()


@contextlib.contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, _STDOUT) from None


def _named_stdout(stdout: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return what writes to the same file. A hit may hold what the terminal's encoding does not: that is written as an escape."""
    buffer = io.BufferedWriter(io.FileIO(stdout.fileno(), "w", closefd=False))
    return _Stdout(buffer, stdout.encoding, "backslashreplace", line_buffering=stdout.line_buffering, write_through=stdout.write_through)


def run(words: list[str]) -> int:
    """Run one command and return its exit code, with one line on stderr for whatever went wrong."""
    stdout = sys.stdout
    try:
        result = cli.main(args=words, prog_name=PROGRAM, standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        return report(Interrupted(), words)
    except click.ClickException as error:
        error.show()
        _print_json_error({"code": "usage", "message": error.format_message(), "reasons": []}, words)
        return error.exit_code
    except SystemExit as end:
        if sys.stdout is not stdout:
            return _stdout_is_gone()  # click puts another in its place when the reader has left
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        return _stdout_is_gone()
    except DgpunetError as error:
        return report(error, words)
    except Exception as error:
        if _asked_for(words, "-v", "--verbose"):
            traceback.print_exc()
        return report(named(error), words)
    return result if isinstance(result, int) else 0


def named(error: Exception) -> DgpunetError:
    """Return the error to tell for one that nobody caught: a file that the system refuses is the caller's to mend, wherever it was met."""
    if isinstance(error, OSError) and error.filename == _STDOUT:
        return OutputFailed(why=error.strerror)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskFull(path=error.filename or home_from().root)
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        return UnreadablePath(path=os.fsdecode(error.filename), why=error.strerror)
    return DgpunetError(detail=f"{type(error).__name__}: {error}")


def report(error: DgpunetError, words: Sequence[str]) -> int:
    """Say what went wrong, once for people and once for machines where they asked; return the exit code."""
    if isinstance(error, OutputFailed):
        _stdout_is_gone()
    keep = "\n" if error.code == "malformed_file" else ""  # one line for each mistake
    click.echo(printable(f"{PROGRAM}: {error}", keep), err=True)
    for reason in error.reasons if error.code == "unplaceable" else ():
        click.echo(printable("  " + "  ".join(f"{k}={v}" for k, v in reason.items() if v is not None)), err=True)
    _print_json_error(error.to_json(), words)
    return error.exit_code


def _print_json_error(error: dict[str, Any], words: Sequence[str]) -> None:
    if not _asked_for(words, "--json"):
        return
    try:
        click.echo(json.dumps({"error": error}))
    except BrokenPipeError:
        _stdout_is_gone()
    except OSError as failed:  # the command leaves with the exit code of what went wrong first
        report(named(failed), ())


def _asked_for(words: Sequence[str], *options: str) -> bool:
    """Whether an option stands among the words, before a ``--`` that ends them."""
    options_end = words.index("--") if "--" in words else len(words)
    return any(word in options for word in words[:options_end])


def _stdout_is_gone() -> int:
    """The reader has left (as ``head`` does): nothing more can be said, at the interpreter's end neither, and nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    main()
