#!/usr/bin/env python3
"""Write docs/reference from the code: the command line from click, the exit codes from the error tree. `--check` only compares."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dgpunet_dask import errors  # noqa: E402  # of this checkout, installed or not
from dgpunet_dask.cli import forms  # noqa: E402
from dgpunet_dask.cli.main import PROGRAM, cli, common_options  # noqa: E402
from dgpunet_dask.config import settings_file  # noqa: E402
from dgpunet_dask.daemons.api.routes import application  # noqa: E402

HEADING = "<!-- Written by scripts/make_docs.py from the code: change that, then run the script. -->\n"
CLI_INTRO = f"""# Command line

Results go to stdout, with `--json` as JSON; everything else goes to stderr. The exit codes are listed in [exit-codes](exit-codes.md).
State lies under `$DGPUNET_HOME`. The cluster is the one that `--cluster` or `$DGPUNET_CLUSTER` names, else the head running under
`$DGPUNET_HOME`, else one that lives as long as the command.

Shell completion: `eval "$(_DGPUNET_DASK_COMPLETE=bash_source {PROGRAM})"`, or `zsh_source`, `fish_source`.
"""
CODES_INTRO = """# Exit codes

A command ends with one of these. With `--json` the result's `"error"` is `null`, or has the `code` below, a `message` and `reasons`.

| exit code | error code | message |
|---|---|---|
| 0 | | done |
"""
SETTINGS_INTRO = """# Settings

The keys of `$DGPUNET_HOME/config.yaml`; see [settings](../howto/settings.md) for what they are for. [config.schema.json](config.schema.json) tells the
same to editors.

| key | default | what |
|---|---|---|
| `version` | none: it must be there, and be 1 | of the file's format |
"""


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and all below it, in order of their names."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, (*path, name))


def help_text(path: tuple[str, ...], command: click.Command) -> str:
    """Return what ``--help`` prints, at a fixed width; below the top the common options are left out."""
    common = {name for option in common_options() for name in option.opts}
    if len(path) > 1:
        command.params = [option for option in command.params if not common.intersection(option.opts)]
    parent = None
    for name in path[:-1]:
        parent = click.Context(click.Command(name), info_name=name, parent=parent, **cli.context_settings)
    context = click.Context(command, info_name=path[-1], parent=parent, terminal_width=110, **cli.context_settings)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def cli_page() -> str:
    """Return docs/reference/cli.md."""
    sections = [f"## {' '.join(path)}\n\n```text\n{help_text(path, command)}\n```\n" for path, command in commands(cli, (PROGRAM,))]
    return HEADING + "\n".join([CLI_INTRO, *sections])


def error_classes(kind: type[errors.DgpunetError] = errors.DgpunetError) -> Iterator[type[errors.DgpunetError]]:
    """Yield the classes of the error tree, parents first."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield from error_classes(child)


def codes_page() -> str:
    """Return docs/reference/exit-codes.md. A class whose message is all field stands for its children and has no row of its own."""
    rows = {(kind.exit_code, kind.code, " ".join((kind.__doc__ or "").split("\n\n")[0].split())) for kind in error_classes()}
    lines = [f"| {code} | `{name}` | {_cell(message)} |" for code, name, message in sorted(rows)]
    return HEADING + CODES_INTRO + "\n".join(lines) + "\n"


def _cell(message: str) -> str:
    if message in {"{detail}", "{text}"}:
        return "what is wrong, and what would be right"
    return re.sub(r"\{(\w+)[^}]*\}", lambda field: field[1].upper(), message.replace("{hint}", "")).replace("|", "\\|")


def settings_rows(rule: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield a row for each key below a part of the settings' schema that has a value of its own."""
    inner = settings_file.schema()["$defs"].get(rule.get("$ref", "").rpartition("/")[2], rule)
    for name, below in inner.get("properties", {}).items():
        key = f"{path}{name}"
        if "$ref" in below:
            yield from settings_rows(below, f"{key}.")
        elif key != "version":
            default = below.get("default", {"array": "none", "object": "none"}.get(below["type"]))
            yield f"| `{key}` | {'none' if default == '' else default} | {_cell(below['description'])} |"


def settings_page() -> str:
    """Return docs/reference/settings.md."""
    return HEADING + SETTINGS_INTRO + "\n".join(settings_rows(settings_file.schema())) + "\n"


def settings_schema() -> str:
    """Return docs/reference/config.schema.json."""
    return json.dumps(settings_file.schema(), indent=1) + "\n"


def form_schema(name: str) -> str:
    """Return docs/reference/schemas/NAME.json: what a command of `submit` or `jobs` prints with ``--json``."""
    return json.dumps(forms.schema_of(name), indent=2) + "\n"


def api_document() -> str:
    """Return docs/reference/openapi.json: what ``GET /openapi.json`` answers."""
    return json.dumps(application().openapi(), indent=1) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": cli_page,
    "docs/reference/exit-codes.md": codes_page,
    "docs/reference/settings.md": settings_page,
    "docs/reference/config.schema.json": settings_schema,
    "docs/reference/openapi.json": api_document,
    **{f"docs/reference/schemas/{name}.json": functools.partial(form_schema, name) for name in forms.FORMS},
}


def stale() -> list[str]:
    """Return the pages that differ from the code."""
    return [name for name, page in PAGES.items() if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != page()]


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` tell which are old."""
    old = stale()
    if "--check" in arguments:
        print("\n".join(f"{name} is not what the code says: run scripts/make_docs.py" for name in old), end="\n" if old else "")
        return int(bool(old))
    for name in old:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
