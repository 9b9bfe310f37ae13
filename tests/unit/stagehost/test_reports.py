"""A failure crosses the process border whatever is wrong with telling it."""

from __future__ import annotations

import traceback

from dgpunet_dask.errors import StageFailed
from dgpunet_dask.stagehost.reports import failure_of


def test_a_traceback_that_cannot_be_formatted_costs_only_itself(monkeypatch):
    def fails(error: BaseException) -> list[str]:
        raise SystemError("AST constructor recursion depth mismatch (before=1, after=2)")

    monkeypatch.setattr(traceback, "format_exception", fails)
    found = failure_of(ValueError("nine"), "embed")
    assert isinstance(found, StageFailed)
    assert (found.fields["kind"], found.fields["why"]) == ("ValueError", "nine")
    assert "ValueError: nine" in found.fields["traceback"]
    assert "depth mismatch" in found.fields["traceback"]
