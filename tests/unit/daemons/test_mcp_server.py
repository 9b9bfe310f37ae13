"""The server's own part: the source is opened once, and again where that failed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dgpunet_dask.daemons.mcp.server import Tools
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
