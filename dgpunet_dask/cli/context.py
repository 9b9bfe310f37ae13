"""What every command is given: the options before its name, and the ways to a cluster."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import NeedsHead, NoHead

if TYPE_CHECKING:
    from dgpunet_dask.client import Client
    from dgpunet_dask.cluster.api_client import ApiClient


@dataclass(frozen=True)
class CliContext:
    """The options before the command's name.

    Parameters
    ----------
    home
        ``$DGPUNET_HOME``.
    named
        ``--cluster``, else ``$DGPUNET_CLUSTER``.
    verbose, quiet
        How much goes to stderr.
    """

    home: Home
    named: str | None = None
    verbose: bool = False
    quiet: bool = False

    @property
    def cluster(self) -> str | None:
        """The cluster that was named, else the one that this machine has joined; ``None``: the head under this home, if any."""
        from dgpunet_dask.cluster.config import joined_cluster

        return self.named or joined_cluster(self.home)

    def head_runs(self) -> bool:
        """Whether a head that outlives this command answers: a named cluster, or one that `up` or `head` started."""
        from dgpunet_dask.daemons.embedded import running_head
        from dgpunet_dask.daemons.register import supervisor_of

        return self.cluster is not None or running_head(self.home) is not None or supervisor_of(self.home) is not None

    def require_head(self, what: str) -> None:
        """Raise NeedsHead unless a head runs that outlives this command."""
        if not self.head_runs():
            raise NeedsHead(what=what)

    def reach(self) -> ApiClient:
        """Return a connection to the cluster that runs, embedded or not; NoHead without one."""
        from dgpunet_dask.daemons.embedded import awaited_head, client_of, named_cluster

        if self.cluster is not None:
            return named_cluster(self.home, self.cluster, os.environ)
        head = awaited_head(self.home)
        if head is None:
            raise NoHead(where=self.home.root)
        return client_of(head)

    def elsewhere(self) -> ApiClient | None:
        """Return a connection to the cluster that was named or joined; ``None`` where the files under this home are meant."""
        return None if self.cluster is None else self.reach()

    def beside(self) -> ApiClient | None:
        """Return a connection to the head that runs under this home, which keeps open what a command would have to open; ``None`` without one."""
        from dgpunet_dask.daemons.embedded import client_of, running_head

        head = running_head(self.home)
        return None if head is None else client_of(head)

    def head_client(self) -> Client:
        """Return a client of the running head; without one it is NoHead, never an embedded cluster of its own."""
        from dgpunet_dask.daemons.embedded import no_head

        if not self.head_runs():
            raise no_head(self.home)
        return self.client(start=False)

    def client(self, *, start: bool = True) -> Client:
        """Return a client of the cluster, which with `start` may be an embedded one of its own; it says when it waits for a head that is gone."""
        from dgpunet_dask.client import Client

        return Client(self.cluster, home=self.home, say=lambda text: click.echo(text, err=True), start=start)


pass_context = click.make_pass_decorator(CliContext)


class Seconds(click.FloatRange):
    """A number of seconds from `min` on: no ``nan``, which is more and less than nothing, and no ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail as click does."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return found


def emit_json(value: Any, *, indent: int | None = 2) -> None:
    """Print `value` as JSON on stdout, in ASCII: it reaches any terminal and any reader whole."""
    click.echo(json.dumps(value, indent=indent))


def moment(seconds: float | None) -> str:
    """Return a time in seconds since 1970 as this machine's date and time; ``-`` where there is none."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a line of headings; without rows, nothing."""
    lines = [head, *rows] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo(printable("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()))


def said_or_given(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Return an argument's value, the first line of standard input for ``-``: what others may not read is not for a command line."""
    return sys.stdin.readline().strip() if value == "-" else value


def printable(text: object, keep: str = "\t") -> str:
    r"""Return `text` with control characters, and those that turn the direction of writing, as escapes such as ``\x1b``.

    What is indexed or run may be anyone's: shown as it is, a file's name could move the cursor, set the terminal's title or forge lines.
    """
    return "".join(c if c in keep or unicodedata.category(c) not in _UNPRINTABLE else _escaped(c) for c in str(text))


#: Controls, formats (the direction of writing among them), lone surrogates, and the separators of lines and paragraphs.
_UNPRINTABLE: Final = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
