"""`dgpunet-dask report`: a bundle for a bug report, redacted, whose contents are shown before it is written."""

from __future__ import annotations

import contextlib
import getpass
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgpunet_dask.cli.context import CliContext, emit_json, pass_context, printable
from dgpunet_dask.errors import BadValue, DgpunetError, UnreadablePath

if TYPE_CHECKING:
    from dgpunet_dask.observe.bundle import Item
    from dgpunet_dask.observe.redact import Rules


@click.command()
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.tar.gz", help="Write there. Default: here, named by the time.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--anonymous", is_flag=True, help="Put digests in the place of hosts' names and addresses.")
@click.option("--with-policies", is_flag=True, help="Include what policy files say, not their names alone.")
@click.option("--with-stage-logs", is_flag=True, help="Include what stages printed, which may quote your texts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; writes only with --yes.")
@pass_context
def report(
    context: CliContext, out: Path | None, yes: bool, anonymous: bool, with_policies: bool, with_stage_logs: bool, as_json: bool
) -> None:  # fmt: skip
    """Write a bundle for a bug report: versions, facts, findings, states and the last lines of logs.

    Keys, tokens, passwords and users' names are taken out; your texts, embeddings and prompts are never in it. It shows its contents
    first and asks; without a terminal it writes only with --yes.
    """
    from dgpunet_dask.observe.bundle import write_bundle

    at = time.time()
    path = (out or Path(time.strftime("dgpunet-report-%Y%m%d-%H%M%S.tar.gz", time.localtime(at)))).absolute()
    if path.exists():
        raise BadValue(what="--out", value=str(path), why="the file exists; remove it or name another")
    items = _items(context, anonymous=anonymous, with_policies=with_policies, with_stage_logs=with_stage_logs)
    if not as_json:
        _list(items)
    written = yes or (not as_json and _agreed(path))
    if written:
        try:
            write_bundle(path, items, at)
        except OSError as error:
            raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
    if as_json:
        emit_json({"path": str(path) if written else None, "contents": [one.to_json() for one in items], "error": None})
    elif written:
        click.echo(printable(str(path)))


def _list(items: list[Item]) -> None:
    click.echo("The report holds:", err=True)
    for one in items:
        click.echo(printable(f"  {one}"), err=True)


def _agreed(path: Path) -> bool:
    """Ask on a terminal; without one nothing is written."""
    if not sys.stdin.isatty():
        click.echo("Nothing was written. Add --yes to write it.", err=True)
        return False
    return click.confirm(f"Write it to {path}?", err=True)


def _items(context: CliContext, *, anonymous: bool, with_policies: bool, with_stage_logs: bool) -> list[Item]:
    """Return the files of the bundle, redacted; the first lists what it holds."""
    from dgpunet_dask.observe import bundle
    from dgpunet_dask.observe.cluster import check_cluster
    from dgpunet_dask.observe.finding import in_order, summary

    document, told = _asked(context)
    rules = _rules(context, document, told, anonymous=anonymous)
    findings = in_order(check_cluster(document))
    values = {
        "versions.json": {name: entry.get("software") for name, entry in _facts(document)},
        "cluster.json": document,
        "findings.json": {"findings": [finding.to_json() for finding in findings], "summary": summary(findings)},
        "jobs.json": bundle.jobs(told.pop("jobs", [])),
        **{f"{name}.json": value for name, value in told.items()},
    }
    items = [bundle.json_item(name, value, rules) for name, value in values.items()]
    items += _policies(context, rules, whole=with_policies)
    items += bundle.logs(context.home.run / "logs", rules, with_output=with_stage_logs)
    items += _decisions(context, rules)
    return [bundle.Item("CONTENTS.txt", bundle.contents(items)), *items]


def _facts(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each host's name and facts."""
    hosts = document.get("hosts")
    for name, entry in (hosts if isinstance(hosts, dict) else {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("facts"), dict):
            yield str(name), entry["facts"]


def _asked(context: CliContext) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the document that `doctor` judges, and what a head tells beside it. What cannot be had is left out, with the reason."""
    from dgpunet_dask.cli.doctor import alone, local_facts, with_this_machine

    told: dict[str, Any] = {}
    try:
        api = context.reach() if context.head_runs() else None
    except DgpunetError as error:
        api, told["unanswered"] = None, {"head": str(error)}
    if api is None:
        return alone(local_facts(context)), told
    questions: dict[str, Callable[[], Any]] = {"doctor": api.doctor, "nodes": api.nodes, "status": api.status, "fleet": api.fleet, "jobs": api.jobs}
    for name, question in questions.items():
        try:
            told[name] = question()
        except DgpunetError as error:
            told.setdefault("unanswered", {})[name] = str(error)
    told["jobs"] = [{**vars(job), "units": job.units.to_json()} for job in told.pop("jobs", [])]
    known = told.pop("doctor", None)
    return alone(local_facts(context)) if known is None else with_this_machine(context, known, canary=None), told


def _rules(context: CliContext, document: dict[str, Any], told: dict[str, Any], *, anonymous: bool) -> Rules:
    from dgpunet_dask.observe.redact import Rules

    user, home = _user()
    users = {*user, *(str(job["owner"]) for job in told.get("jobs", ()) if job.get("owner"))} - {"root"}
    hosts = {str(name) for name in document.get("hosts", {})} | {str(w.get("host")) for w in told.get("status", {}).get("workers", ())}
    return Rules(
        secrets=_keys(context), homes=home, users=users, hosts=hosts if anonymous else (), salt=secrets.token_hex(8),
    )  # fmt: skip


def _user() -> tuple[list[str], list[str]]:
    """Return the calling user's name and home folder; a user that the system does not know (as in a container) has neither."""
    try:
        return [getpass.getuser()], [str(Path.home())]
    except (KeyError, OSError, RuntimeError):
        return [], []


def _keys(context: CliContext) -> list[str]:
    """Return the keys that this home knows, and the secret path of Dask's pages, which Dask logs."""
    import os

    found = [os.environ.get("DGPUNET_API_KEY", "")]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found.append(str(json.loads(context.home.head_file.read_text(encoding="utf-8"))["key"]))
    with contextlib.suppress(OSError, ValueError):
        found.append((context.home.run / "dashboard.secret").read_text(encoding="ascii").strip())
    return [key for key in found if len(key) > 7]


def _policies(context: CliContext, rules: Rules, *, whole: bool) -> Iterator[Item]:
    """Yield the policy files' names, and what they say where that is asked for."""
    from dgpunet_dask.observe import bundle

    folder = context.home.policy
    files = sorted(folder.glob("*/*.yaml"))
    yield bundle.item("policies.txt", "".join(f"{path.relative_to(folder)}\n" for path in files), rules)
    for path in files if whole else ():
        yield bundle.item(f"policies/{'_'.join(path.relative_to(folder).parts)}", bundle.tail(path), rules)


def _decisions(context: CliContext, rules: Rules) -> Iterator[Item]:
    """Yield the end of the decision log."""
    from dgpunet_dask.cluster.decisions import log_files
    from dgpunet_dask.observe import bundle

    for path in log_files(context.home.decisions)[-1:]:
        yield bundle.item(path.name, bundle.tail(path), rules)
