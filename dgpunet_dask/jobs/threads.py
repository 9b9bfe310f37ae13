"""Blocking calls away from the head's event loop, a thread each; and tasks that are cancelled and waited for.

Not `asyncio.to_thread`: its pool has a handful of threads, and a source or a gather stage may keep one for hours, so that a few jobs
would leave none for the commits of the others, nor for cancelling anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: A cancellation that a library has swallowed is sent again after this long. Not sooner: it would interrupt clearing up.
AGAIN_S: Final = 60.0


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return once all have ended, each in its own time."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    while late := [task for task in tasks if not task.done()]:
        await asyncio.wait(late, timeout=AGAIN_S)
        for task in late:
            task.cancel()  # one that has ended does not mind


async def in_thread(function: Callable[..., T], *args: Any, stop: Callable[[], None] = lambda: None) -> T:
    """Run a blocking call in a thread of its own.

    If cancelled meanwhile, however often, call `stop` once and wait for the call's end first, so that no two calls ever meet on one
    object.

    Parameters
    ----------
    stop
        Makes the call return soon, if anything does. Called on the event loop.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result
        else:
            done.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:  # the caller decides, whatever it is
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name=getattr(function, "__name__", "call"), daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop()
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])
        done.exception()  # seen: a failure after the end of its purpose is no news
        raise
