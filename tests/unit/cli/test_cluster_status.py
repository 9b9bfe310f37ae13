"""What `status` and `index show` tell of vectors that workers hold."""

from __future__ import annotations

import pytest

from dgpunet_dask.cli.cluster import _say_resident
from dgpunet_dask.cli.context import CliContext
from dgpunet_dask.cli.index import _resident
from dgpunet_dask.errors import NoHead


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, ""),  # a head of an older release
        ({"segments": 0, "bytes": 0, "workers": {}}, ""),
        ({"segments": 1, "bytes": 3 << 20, "workers": {"a/cpu": 2 << 20, "b\x1b/cpu": 1 << 20}}, "vectors   2 MiB on a/cpu, 1 MiB on b\\x1b/cpu\n"),
    ],
)
def test_status_tells_what_each_worker_holds(told, shown, capsys):
    _say_resident(told)
    assert capsys.readouterr().out == shown


class Head:
    """A head beside the files."""

    def __init__(self, answer):
        self.answer = answer

    def index(self, name):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (None, []),
        (Head({"index": "x"}), []),  # of an older release
        (Head(NoHead(where=".")), []),
        (Head({"resident": [{"index": "x", "copies": 2}]}), [{"index": "x", "copies": 2}]),
    ],
)
def test_of_an_index_of_this_home_the_head_beside_it_knows_what_is_held(head, told, monkeypatch):
    monkeypatch.setattr(CliContext, "beside", lambda _: head)
    assert _resident(object.__new__(CliContext), "x") == told
