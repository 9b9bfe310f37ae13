"""Blocking calls in threads: as many as are wanted, and never left behind by a cancellation."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from dgpunet_dask.jobs.threads import cancelled, in_thread


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


@pytest.mark.parametrize("bounded", ["wait_for", "timeout"])
def test_a_cancellation_that_comes_with_the_answer_is_kept_by_timeout_and_swallowed_by_wait_for(bounded: str) -> None:
    async def main() -> bool:
        answer = asyncio.get_running_loop().create_future()

        async def asks() -> None:
            if bounded == "wait_for":
                await asyncio.wait_for(answer, 30)
            else:
                async with asyncio.timeout(30):
                    await answer
            await asyncio.sleep(0)  # where the cancellation would arrive, had it been kept

        task = asyncio.create_task(asks())
        await asyncio.sleep(0)
        answer.set_result(None)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    swallowed = bounded == "wait_for" and sys.version_info < (3, 12)
    assert asyncio.run(main()) is not swallowed


def test_a_cancellation_that_was_swallowed_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpunet_dask.jobs.threads.AGAIN_S", 0.01)
    seen = []

    async def deaf() -> None:
        while len(seen) < 3:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append(1)
        await asyncio.sleep(30)

    async def main() -> None:
        tasks = [asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(0))]
        await asyncio.sleep(0.01)
        await cancelled(*tasks)
        assert all(task.done() for task in tasks)

    asyncio.run(main())
    assert len(seen) == 3
