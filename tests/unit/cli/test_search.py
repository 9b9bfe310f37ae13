"""Where `search` and `ask` get their answers from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dgpunet_dask.cli import hits as module
from dgpunet_dask.errors import NoHead, NoSuchIndex
from dgpunet_dask.retrieval.search import Query

ASKED = [Query(f"query {n}", n) for n in range(300)]


@dataclass
class FakeApi:
    """Answers so many requests, then fails."""

    name: str
    good: int = 100
    error: Exception = field(default_factory=lambda: NoHead(where="here"))

    def search(self, index: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        if self.good == 0:
            raise self.error
        self.good -= 1
        return [{"id": query["id"], "by": self.name} for query in request["queries"]]


@dataclass
class FakeContext:
    """A context with a cluster that is named, a head beside the files, or neither."""

    named: FakeApi | None = None
    head: FakeApi | None = None

    def elsewhere(self) -> FakeApi | None:
        return self.named

    def beside(self) -> FakeApi | None:
        return self.head


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(_: Any, __: str, asked: list[Query], *___: Any) -> Iterator[dict[str, Any]]:
        yield from ({"id": query.id, "by": "files"} for query in asked)

    monkeypatch.setattr(module, "_answers_from_files", answers)


def sources(context: FakeContext) -> list[str]:
    found = list(module.answers(context, "x", ASKED, module.Wanted(10)))  # type: ignore[arg-type]
    assert [answer["id"] for answer in found] == [query.id for query in ASKED]
    return [answer["by"] for answer in found]


def test_the_files_answer_where_nothing_runs() -> None:
    assert set(sources(FakeContext())) == {"files"}


def test_a_head_beside_the_files_answers_for_them() -> None:
    assert set(sources(FakeContext(head=FakeApi("head")))) == {"head"}


@pytest.mark.parametrize("good", [0, 1])
def test_what_a_head_does_not_answer_the_files_do_and_nothing_is_told_twice(good: int) -> None:
    found = sources(FakeContext(head=FakeApi("head", good)))
    assert found == ["head"] * found.count("head") + ["files"] * found.count("files")
    assert (found.count("head") > 0) == bool(good)
    assert "files" in found


def test_a_cluster_that_is_named_answers_alone_or_not_at_all() -> None:
    assert set(sources(FakeContext(named=FakeApi("named"), head=FakeApi("head")))) == {"named"}
    with pytest.raises(NoSuchIndex):
        sources(FakeContext(named=FakeApi("named", 0, NoSuchIndex(name="x", hint=".")), head=FakeApi("head")))
