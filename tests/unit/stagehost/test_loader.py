"""Workloads with equal module names live side by side, and what they pickle is found in other processes."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dgpunet_dask.errors import BadWorkload
from dgpunet_dask.stagehost import loader
from dgpunet_dask.stagehost.loader import SiblingImports, load_stage, package_of

STAGES = """
from __future__ import annotations
import json
import helpers
import helpers as h
import inner.deep
from helpers import Item, value
from dgpunet_dask import Stage

class Make(Stage):
    def __call__(self, batch):
        import helpers as late
        return [Item(value, h.value, helpers.value, late.value, inner.deep.doubled, json.dumps(1))]
"""
HELPERS = """
value = {value}
class Item:
    def __init__(self, *parts): self.parts = parts
    def __eq__(self, other): return self.parts == other.parts
"""
DEEP = "import helpers\nfrom . import beside\ndoubled = helpers.value * 2 + beside.zero\n"


@pytest.fixture
def workloads(tmp_path):
    for digest, value in ((DIGEST_A, 1), (DIGEST_B, 2)):
        folder = tmp_path / digest
        (folder / "inner").mkdir(parents=True)
        (folder / "stages.py").write_text(STAGES)
        (folder / "helpers.py").write_text(HELPERS.format(value=value))
        (folder / "inner" / "deep.py").write_text(DEEP)
        (folder / "inner" / "beside.py").write_text("zero = 0\n")
    loader.install(tmp_path)
    yield tmp_path
    finder = next(f for f in sys.meta_path if isinstance(f, loader.WorkloadFinder))
    finder.roots.remove(tmp_path)
    for name in [n for n in sys.modules if n.startswith(loader.PREFIX)]:
        del sys.modules[name]
    loader.is_sibling.cache_clear()


DIGEST_A, DIGEST_B = "a1" * 32, "b2" * 32


def test_two_workloads_with_equal_module_names_do_not_meet(workloads):
    first, second = load_stage(DIGEST_A, "stages:Make"), load_stage(DIGEST_B, "stages:Make")
    assert first is not second
    assert first()([])[0].parts == (1, 1, 1, 1, 2, "1")
    assert second()([])[0].parts == (2, 2, 2, 2, 4, "1")
    assert first.__module__ == f"{package_of(DIGEST_A)}.stages"
    assert "helpers" not in sys.modules


def test_instances_are_unpickled_in_another_process(workloads):
    item = load_stage(DIGEST_B, "stages:Make")()([])[0]
    script = (
        "import pickle, sys; from dgpunet_dask.stagehost import loader; loader.install(sys.argv[1]);"
        "print(pickle.loads(sys.stdin.buffer.read()).parts)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(workloads)], input=pickle.dumps(item), capture_output=True, check=False, cwd=root, timeout=60
    )
    assert done.stdout.decode().strip() == "(2, 2, 2, 2, 4, '1')", done.stderr.decode()


def test_the_workloads_folder_stays_as_it_was(workloads):
    before = sorted(workloads.rglob("*"))
    load_stage(DIGEST_A, "stages:Make")
    assert sorted(workloads.rglob("*")) == before


def test_tracebacks_name_the_users_file_and_line(workloads):
    (workloads / DIGEST_A / "broken.py").write_text("import json, helpers\n\nhelpers.missing\n")
    with pytest.raises(BadWorkload) as caught:
        load_stage(DIGEST_A, "broken:Make")
    assert f'{workloads / DIGEST_A / "broken.py"}", line 3' in caught.value.fields["traceback"]
    assert "AttributeError" in caught.value.message


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("stages:Mkae", "did you mean 'Make'"),
        ("stages:json", "no subclass"),
        ("nothing:Make", "ModuleNotFoundError"),
        ("syntax:Make", "SyntaxError"),
        ("exits:Make", "SystemExit"),
    ],
)
def test_what_is_wrong_is_said(workloads, run, says):
    (workloads / DIGEST_A / "syntax.py").write_text("def (:\n")
    (workloads / DIGEST_A / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(BadWorkload, match=says):
        load_stage(DIGEST_A, run)


def test_a_workload_that_is_not_here_is_said(workloads):
    with pytest.raises(BadWorkload, match="ModuleNotFoundError"):
        load_stage("cc" * 32, "stages:Make")


def test_a_folder_of_data_does_not_hide_a_module(workloads):
    (workloads / DIGEST_A / "json").mkdir()
    (workloads / DIGEST_A / "numpy").mkdir()
    assert not loader.is_sibling(workloads / DIGEST_A, "json")
    assert not loader.is_sibling(workloads / DIGEST_A, "numpy")
    assert loader.is_sibling(workloads / DIGEST_A, "inner")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import helpers", "import P.helpers as helpers"),
        ("import helpers as h", "import P.helpers as h"),
        ("import inner.deep as d", "import P.inner.deep as d"),
        ("import inner.deep", "import P.inner.deep as _dgpunet_sibling\nimport P.inner as inner"),
        ("import os, helpers", "import os\nimport P.helpers as helpers"),
        ("from inner.deep import doubled as d", "from P.inner.deep import doubled as d"),
        ("from . import helpers", "from . import helpers"),
        ("import os.path", "import os.path"),
    ],
)
def test_sibling_imports_are_rewritten(workloads, before, after):
    import ast

    tree = SiblingImports("P", workloads / DIGEST_A).visit(ast.parse(before))
    assert ast.unparse(ast.fix_missing_locations(tree)) == after


def test_a_workload_that_is_wrong_is_called_by_its_name(workloads):
    with pytest.raises(BadWorkload, match=f"Workload {DIGEST_A[:12]} "):
        load_stage(DIGEST_A, "stages:None_")
    (workloads / DIGEST_A / "job.yaml").write_text("version: 1\nname: words\n")
    with pytest.raises(BadWorkload, match="Workload words cannot be used: stages has no class"):
        load_stage(DIGEST_A, "stages:None_")
