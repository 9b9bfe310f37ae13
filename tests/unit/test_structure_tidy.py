"""No leftovers, no prints, no machine of ours in the files, and documentation that names what there is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dgpunet_dask import errors
from tests.helpers import ROOT
from tests.unit.structure import report, sources, tracked_files

#: Written in pieces, so that this file does not find itself.
LEFTOVERS = re.compile(r"\b(?:TO{}DO|FIX{}ME|X{}XX|HA{}CK)\b|<{}<<<<<<|>{}>>>>>>".replace("{}", ""))
MACHINE_PATHS = re.compile(r"(?<![\w.$}\]/-])/(?:" "work|root|opt" r")/[\w.]|(?<!\w)/ho" r"me/\w")
#: Hosts that files may name: documentation that readers are sent to, PyTorch's own index, and names reserved for examples.
HOSTS = re.compile(
    r"https?://(?![{<$]|localhost|127\.|0\.0\.0\.0|\[::1\]|[\w.-]*\bexample(?:\.(?:com|org|net))?\b|distributed\.dask\.org|docs\.dask\.org"
    r"|docs\.rapids\.ai|download\.pytorch\.org/whl/cpu|pytorch\.org|huggingface\.co|github\.com|keepachangelog\.com|semver\.org|www\.apache\.org|arxiv\.org"
    r"|docs\.python\.org|json-schema\.org|git-scm\.com|sbert\.net|www\.sbert\.net|click\.palletsprojects\.com|aclanthology\.org)([\w.-]+)"
)  # fmt: skip
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".lock", ".json", ".cfg", ".c", ".sh", ""}


def text_lines() -> list[tuple[str, str]]:
    """Return each line of the tracked text files with its place."""
    files = [path for path in tracked_files() if path.suffix in TEXT and path.name != "LICENSE"]
    return [
        (f"{path}:{number}", line)
        for path in files
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
    ]


def test_nothing_is_left_for_later():
    report([f"{where} {line.strip()}" for where, line in text_lines() if LEFTOVERS.search(line)], "finish it or drop it")


def test_no_file_names_a_machine_of_ours():
    faults = [f"{where} {line.strip()}" for where, line in text_lines() if MACHINE_PATHS.search(line) or HOSTS.search(line)]
    report(faults, "no paths or hosts of a particular machine; public documentation is listed in HOSTS")


def test_only_the_command_line_prints():
    faults = [
        f"{source.path}:{node.lineno}"
        for source in sources("dgpunet_dask", "workloads")
        if source.path.parts[1] != "cli"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    report(faults, "print only in cli: elsewhere a log, an event or a return value")


def test_every_suppression_of_a_type_error_has_a_code_and_a_reason():
    bare = re.compile(r"#\s*type:\s*ignore(?!\[[\w-]+(?:, ?[\w-]+)*\]\s+#\s*\S)")
    faults = [f"{s.path}:{n}" for s in sources("dgpunet_dask", "scripts") for n, line in enumerate(s.text.splitlines(), 1) if bare.search(line)]
    report(faults, "write `# type: ignore[code]  # reason`")


def test_every_ignored_lint_rule_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    codes = [line.strip() for line in text.splitlines() if re.match(r'\s+"[A-Z]{1,4}\d{0,4}",', line)]
    assert codes
    report([line for line in codes if not re.search(r",\s*#\s*\w", line)], "a reason beside each ignored rule")


def commands(command: click.Command, name: str = "") -> list[str]:
    """Return the full names of a command and of all below it, groups left out."""
    if not isinstance(command, click.Group):
        return [name]
    context = click.Context(command)
    below = [(child, command.get_command(context, child)) for child in command.list_commands(context)]
    return [full for child, found in below if found is not None for full in commands(found, f"{name} {child}".strip())]


def documentation() -> str:
    return "\n".join((ROOT / path).read_text(encoding="utf-8") for path in tracked_files() if _is_prose(path))


def _is_prose(path: Path) -> bool:
    return path.suffix == ".md" and (path.parts[0] == "docs" or path.name == "README.md") and "reference" not in path.parts


def test_every_command_is_explained_outside_the_reference():
    from dgpunet_dask.cli.main import cli

    text = documentation()
    report([name for name in commands(cli) if f"dgpunet-dask {name}" not in text], "a page of docs/ shows each command as one types it")


def test_documentation_shows_only_commands_that_exist():
    from dgpunet_dask.cli.main import cli

    known = set(commands(cli))
    shown = re.findall(r"^\$ dgpunet-dask ([a-z]+(?: [a-z]+)?)", documentation(), re.MULTILINE)
    assert shown
    report([name for name in shown if name not in known and name.split()[0] not in known], "pages show commands that exist")


def exit_codes(kind: type[errors.DgpunetError] = errors.DgpunetError) -> set[int]:
    return {kind.exit_code}.union(*(exit_codes(child) for child in kind.__subclasses__()))


def test_every_exit_code_is_explained():
    text = (ROOT / "docs/reference/exit-codes.md").read_text()
    assert {code for code in exit_codes() if not re.search(rf"^\| {code} \|", text, re.MULTILINE)} == set()


@pytest.mark.parametrize("path", [p for p in tracked_files() if p.suffix == ".md"], ids=str)
def test_links_between_pages_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / path).read_text(encoding="utf-8"))
    inner = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    report([target for target in inner if not (ROOT / path.parent / target).exists()], f"{path}: links lead to files")


def test_the_reference_is_what_the_code_says():
    done = subprocess.run([sys.executable, "scripts/make_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
