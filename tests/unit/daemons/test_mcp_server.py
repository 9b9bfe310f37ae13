"""The server's own part: the source is opened once, and again where that failed."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import embedded
from dgpunet_dask.daemons.mcp.server import Tools
from dgpunet_dask.daemons.mcp.sources import Files
from dgpunet_dask.errors import NoHead
from tests.unit.daemons.test_mcp_tools import Clock, Made


def test_calls_that_come_at_once_open_one_source():
    inside, opened = threading.Barrier(2), []

    def opening():
        opened.append(1)
        try:
            inside.wait(0.2)  # a second one would come in now
        except threading.BrokenBarrierError:
            pass
        return Made()

    tools = Tools(opening, Clock())
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: tools._called("list_indexes", {}), range(4)))
    assert len(answers) == 4
    assert opened == [1]


def test_a_source_that_cannot_be_opened_is_tried_again():
    tries = []

    def opening():
        tries.append(1)
        if len(tries) < 3:
            raise NoHead(where="there")
        return Made()

    tools = Tools(opening, Clock())
    for _ in range(2):
        with pytest.raises(NoHead):
            tools._called("status", {})
    assert tools._called("status", {}) == tools._called("status", {})
    assert len(tries) == 3


def test_a_head_of_this_home_is_told_of_also_one_that_does_not_answer(tmp_path, monkeypatch):
    files = Files(Home(tmp_path))
    assert files.cluster() is None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = SimpleNamespace(api=f"http://127.0.0.1:{port}", key="k", embedded=False)
    monkeypatch.setattr(embedded, "current_head", lambda _: head)
    assert files.cluster()["error"]["code"] == "no_head"
