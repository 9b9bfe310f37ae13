"""The shipped workload's stages in this process, and the commands that read what they made."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from dgpunet_dask.cli import main
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadName, MissingPath, ModelUnavailable, NotAllowed
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.stage import Stage, StageContext, merge_counts
from dgpunet_dask.stagehost.calls import token_batches
from tests.helpers import ROOT

GUIDE = "# Guide\n\nTokens are refreshed once an hour by a timer.\n"
CODE = '''"""Session handling."""


def refresh(session):
    """Ask the server for a new access token before the old one ends."""
    return session.post("/token", data={"grant_type": "refresh_token"})


def close(session):
    """Say goodbye to the server and forget the cookies."""
    session.cookies.clear()
'''


@pytest.fixture(scope="module")
def stages() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("embed_codebase_stages", ROOT / "workloads/embed_codebase/stages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Runner:
    """Runs the workload as a runner would, with units of `unit` files and small token batches."""

    def __init__(self, stages: ModuleType, home: Home) -> None:
        self.stages, self.home, self.loaded, self.runs = stages, home, {}, 0
        self.whose: dict[str, Any] = {}

    def __call__(self, unit: int = 2, **params: Any) -> dict[str, Any]:
        self.runs += 1
        folder = self.home.jobs / str(self.runs) / "scratch"
        folder.mkdir(parents=True)
        context = StageContext(threads=2, folder=folder, home=self.home.root, **self.whose)
        discover = self.make("Discover", context, params, "path", "index", "model", "truncate_dim")
        files = list(discover())
        units = [item for start in range(0, len(files), unit) for item in self.unit(files[start : start + unit], params)]
        publish = self.make("Publish", context, params)
        assert list(publish(iter(units))) == []
        metrics: dict[str, Any] = {}
        for stage in (discover, publish):
            merge_counts(metrics, stage.take_counts())
        return metrics

    def unit(self, files: list[Any], params: dict[str, Any]) -> list[Any]:
        context = StageContext(threads=2)
        for name in ("Chunk", "Embed"):
            if name not in self.loaded:
                self.loaded[name] = self.make(
                    name, context, params, *(("model",) if name == "Chunk" else ("model", "truncate_dim"))
                )
        chunks = self.make("Reuse", StageContext(home=self.home.root), params)(self.loaded["Chunk"](files))
        results: list[Any] = [None] * len(chunks)
        for batch in token_batches([c.tokens for c in chunks], 128):
            for index, result in zip(batch, self.loaded["Embed"]([chunks[i] for i in batch]), strict=True):
                results[index] = result
        return self.make("Write", context, params)(results)

    def make(self, name: str, context: StageContext, params: dict[str, Any], *wanted: str) -> Stage:
        stage = getattr(self.stages, name)()
        stage.context = context
        stage.load(**{k: params[k] for k in wanted if k in params})
        return stage


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def runner(stages, home) -> Runner:
    return Runner(stages, home)


@pytest.fixture
def project(tmp_path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src/session.py").write_text(CODE)
    (root / "guide.md").write_text(GUIDE)
    (root / "image.png").write_bytes(b"\x89PNG\0\0")
    return root


@pytest.fixture
def command(home, monkeypatch):
    monkeypatch.setenv("DGPUNET_HOME", str(home.root))

    def run(*words: str) -> tuple[int, str, str]:
        """Run a command in this process, and return its exit code, stdout and stderr."""
        runner = CliRunner()
        with runner.isolation() as (out, err, _):
            code = main.run(list(words))
            sys.stdout.flush()
            return code, out.getvalue().decode(), err.getvalue().decode()

    return run


def test_from_a_folder_to_hits(runner, project, command):
    metrics = runner(path=[str(project)])
    assert {k: metrics[k] for k in ("files", "skipped", "embedded", "reused", "index")} == {
        "files": 2, "skipped": {"binary": 1}, "embedded": metrics["chunks"], "reused": 0, "index": "project",
    }  # fmt: skip
    assert metrics["tokens"] > 50
    code, out, _ = command("search", "project", "get a fresh access token", "-k", "2", "--json", "--lang", "python")
    answer = json.loads(out)
    assert (code, answer["index"], answer["hits"][0]["path"], answer["hits"][0]["symbol"]) == (
        0,
        "project",
        "src/session.py",
        "refresh",
    )
    hit = answer["hits"][0]
    assert hit["text"] == "\n".join(CODE.split("\n")[hit["start_line"] - 1 : hit["end_line"]])
    assert set(hit) == {"path", "start_line", "end_line", "score", "text", "symbol", "language", "kind", "scope"}
    assert (hit["kind"], hit["scope"]) == ("function", None)
    again = runner(path=[str(project)])
    assert (again["embedded"], again["reused"], again["expected_items"]) == (0, metrics["chunks"], 0)


def test_of_an_edited_file_and_of_another_clone_only_new_texts_are_embedded(runner, project, tmp_path, command):
    whole = runner(path=[str(project)])
    (project / "src/session.py").write_text(CODE.replace("forget the cookies", "keep the cookies"))
    edited = runner(path=[str(project)])
    assert edited["chunks"] == whole["chunks"]
    assert (edited["embedded"], edited["reused"]) == (1, whole["chunks"] - 1)
    clone = tmp_path / "clone"
    shutil.copytree(project, clone)
    (clone / "guide.md").write_text(f"{GUIDE}\n# Licence\n\nFree.\n")
    cloned = runner(path=[str(clone)])
    assert 1 <= cloned["embedded"] <= 2 <= cloned["reused"]
    for name in ("project", "clone"):
        assert command("index", "verify", name)[0] == 0


def test_only_hits_of_a_kind_are_found_and_an_unknown_one_is_told_in_a_line(runner, project, command):
    (project / "shop.py").write_text("class Shop:\n    def refresh(self):\n        return self.tokens.pop()\n")
    runner(path=[str(project)])

    def kinds(*words: str) -> set[tuple[str, str]]:
        code, out, _ = command("search", "project", "refresh the access token", "-k", "50", "--json", *words)
        assert code == 0
        return {(hit["path"], hit["kind"]) for hit in json.loads(out)["hits"]}

    assert kinds("--kind", "function") == {("src/session.py", "function")}
    both = kinds("--kind", "Heading", "--kind", "function")
    assert both == {("src/session.py", "function"), ("guide.md", "heading")}
    assert kinds("--kind", "function", "--path", "*.md") == set()
    assert kinds("--kind", "heading", "--lang", "markdown") == {("guide.md", "heading")}
    code, out, _ = command("ask", "project", "refresh", "--context-only", "--kind", "heading", "--json")
    assert (code, {row["path"] for row in json.loads(out)["citations"]}) == (0, {"guide.md"})
    for words in (("search", "project", "x"), ("ask", "project", "x", "--context-only")):
        code, out, err = command(*words, "--kind", "routine")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "kind 'routine' is not valid: kinds are class, constant, enum, function, " in err


@pytest.mark.long
def test_a_cross_encoder_in_a_folder_or_pinned_in_the_settings_orders_the_hits_anew(runner, project, command, home, tmp_path):
    from tests.unit.retrieval.test_rerank import tiny

    runner(path=[str(project)])
    folder = tiny(tmp_path / "encoder")
    code, out, _ = command("model", "digest", str(folder))
    assert (code, len(out)) == (0, 65)
    home.config.write_text(f"version: 1\nrerankers:\n  tiny: {{folder: {folder}, digest: {out}  }}\n")
    search = ("search", "project", "refresh a token", "-k", "2", "--json")
    plain, by_name, by_folder = (json.loads(command(*search, *words)[1]) for words in ((), ("--rerank", "tiny"), ("--rerank", str(folder))))
    assert by_name["hits"] == by_folder["hits"]
    assert by_name["rerank"] == {"model": "tiny", "read": by_name["rerank"]["of"], "of": by_name["rerank"]["of"]}
    assert by_name["rerank"]["of"] > 2
    assert [hit["score"] for hit in by_name["hits"]] != [hit["score"] for hit in plain["hits"]]
    code, out, err = command("ask", "project", "refresh", "--context-only", "--rerank", "tinny")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "did you mean 'tiny'" in err
    (folder / "config.json").write_text("{}")
    code, _, err = command(*search[:-1], "--rerank", "tiny")
    assert (code, "as pinned" in err) == (2, True)


def test_queries_from_a_file_answer_as_single_ones_do(runner, project, command, tmp_path):
    runner(path=[str(project)], index="named")
    asked = ["how long do tokens live", "goodbye", "größer"]
    file = tmp_path / "queries.jsonl"
    file.write_text("\n".join(json.dumps({"id": n, "query": q}) for n, q in enumerate(asked)) + "\n\n")
    code, out, _ = command("search", "named", "--queries", str(file), "-k", "3", "--json")
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["id"] for a in answers] == [0, 1, 2]
    for query, answer in zip(asked, answers, strict=True):
        assert json.loads(command("search", "named", query, "-k", "3", "--json")[1])["hits"] == answer["hits"]


def test_what_people_see(runner, project, command):
    runner(path=[str(project)], index="named")
    code, out, _ = command("search", "named", "goodbye to the server", "-k", "1")
    assert code == 0
    assert out.startswith("src/session.py:")
    assert "close" in out.splitlines()[0]
    assert command("search", "named", "x", "--path", "nothing/**")[1:] == ("", "No hits.\n")


def test_several_roots_and_one_emptied(runner, project, tmp_path, command):
    other = tmp_path / "other" / "project"
    other.mkdir(parents=True)
    (other / "a.md").write_text(GUIDE)
    metrics = runner(path=[str(project), str(other)], index="both")
    assert (metrics["files"], metrics["reused"] > 0) == (3, True)
    hits = json.loads(command("search", "both", "timer", "--json")[1])["hits"]
    assert {h["path"] for h in hits} == {"project/guide.md", "project/src/session.py", "project-2/a.md"}


def test_each_path_that_is_left_out_is_listed_with_its_code(runner, project, command):
    runner(path=[str(project)])
    code, out, _ = command("index", "show", "project", "--skipped")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, [{"code": "binary", "path": "image.png", "why": None}])


def test_listing_showing_and_removing(runner, project, command, home):
    assert json.loads(command("index", "list", "--json")[1]) == []
    runner(path=[str(project)])
    [listed] = json.loads(command("index", "list", "--json")[1])
    shown = json.loads(command("index", "show", "project", "--json")[1])
    assert {**listed, "resident": []} == {**shown, "error": None}
    assert (shown["files"], shown["model"], shown["skipped"], shown["roots"]) == (2, "minilm", {"binary": 1}, [str(project)])
    assert command("index", "list")[1].startswith("project ")
    assert "minilm" in command("index", "show", "project")[1]
    assert json.loads(command("index", "remove", "project", "--json")[1]) == {"index": "project", "removed": True, "error": None}
    assert list(home.indexes.iterdir()) == []


@pytest.mark.parametrize("words", [("search", "none", "x"), ("index", "show", "none"), ("index", "remove", "none")])
def test_an_unknown_index_is_code_102(command, words):
    code, out, err = command(*words, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (102, "no_index")
    assert "'none'" in err


@pytest.mark.parametrize(
    "words",
    [
        ("search", "x"),
        ("search", "x", "q", "--queries", "f"),
        ("search", "x", "--queries", "f"),
        ("search", "x", "q", "-k", "0"),
        ("search", "x", "--queries", "/no/such", "--json"),
    ],
)
def test_wrong_usage_is_code_2(command, words):
    assert command(*words)[0] == 2


def test_every_mistake_of_a_queries_file_is_told(runner, project, command, tmp_path):
    file = tmp_path / "queries.jsonl"
    file.write_text('{"id": 1, "query": "fine"}\n{"id": 2}\nnot json\n["x"]\n')
    code, out, err = command("search", "x", "--queries", str(file), "--json")
    assert code == 2
    assert [(r["line"]) for r in json.loads(out)["error"]["reasons"]] == [2, 3, 4]
    assert err.count("queries.jsonl:") == 3


def test_bad_parameters_fail_before_anything_is_read(runner, project, tmp_path):
    with pytest.raises(MissingPath):
        runner(path=[str(tmp_path / "nowhere")])
    with pytest.raises(ModelUnavailable):
        runner(path=[str(project)], model="/no/model")
    (tmp_path / "with space").mkdir()
    with pytest.raises(BadName, match="--set index=NAME"):
        runner(path=[str(tmp_path / "with space")])


def test_an_index_is_its_first_publishers(runner, project, command):
    runner.whose = {"user": User("ann"), "shared": True}
    runner(path=[str(project)])
    runner.whose = {"user": User("bob")}
    with pytest.raises(NotAllowed, match="--set index=NAME"):
        runner(path=[str(project)], model="/no/model")  # it is told before the model is looked for
    runner(path=[str(project)], index="bobs")
    runner.whose = {"user": User("root", operates=True)}
    runner(path=[str(project)])
    found = json.loads(command("index", "list", "--json")[1])
    assert [(row["index"], row["owner"], row["shared"]) for row in found] == [("bobs", "bob", False), ("project", "ann", True)]
    assert command("index", "list")[1].splitlines()[1].rpartition("Z  ")[2].startswith("ann, shared  compared")


def test_a_tree_without_text_publishes_nothing(runner, tmp_path, command):
    (tmp_path / "empty").mkdir()
    metrics = runner(path=[str(tmp_path / "empty")])
    assert (metrics["chunks"], metrics["index"]) == (0, None)
    assert command("search", "empty", "x")[0] == 102
