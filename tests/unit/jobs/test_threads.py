"""Blocking calls in threads: as many as are wanted, and never left behind by a cancellation."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dgpunet_dask.jobs.threads import in_thread


def test_the_result_and_the_error_come_back() -> None:
    assert asyncio.run(in_thread(int, "7")) == 7
    with pytest.raises(ValueError, match="seven"):
        asyncio.run(in_thread(int, "seven"))


def test_calls_that_block_leave_room_for_others() -> None:
    async def main() -> None:
        free = threading.Event()
        blocked = [asyncio.ensure_future(in_thread(free.wait, 30)) for _ in range(100)]
        assert await in_thread(int, "7") == 7
        free.set()
        assert await asyncio.gather(*blocked) == [True] * 100

    asyncio.run(main())


def test_a_cancelled_call_is_stopped_once_and_waited_for_however_often_it_is_cancelled() -> None:
    async def main() -> None:
        begun, free, stopped, over = threading.Event(), threading.Event(), [], []

        def work() -> None:
            begun.set()
            assert free.wait(30)
            over.append(True)

        task = asyncio.ensure_future(in_thread(work, stop=lambda: stopped.append(True)))
        await in_thread(begun.wait, 30)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (stopped, over) == ([True], [True])

    asyncio.run(main())
