"""The protocol's side: the official SDK's server over standard input and output, which nothing else in the process reaches meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Final

from dgpunet_dask import __version__
from dgpunet_dask.clock import Clock
from dgpunet_dask.errors import DgpunetError

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, Tool

    from dgpunet_dask.daemons.mcp.sources import Source

log = logging.getLogger(__name__)

#: Calls that are worked on at once; others wait.
CALLS_MAX: Final = 8
_INTERRUPTED: Final = 130


@contextlib.contextmanager
def wire() -> Iterator[tuple[IO[str], IO[str]]]:
    """Give standard input and output as the protocol's, and meanwhile put nothing and standard error in their places.

    So whatever is printed, by imports, libraries and their native code too, cannot come between the messages. It holds from before the
    SDK is imported until the end of the process: what a library keeps in a buffer until then goes to standard error as well.
    """
    sys.stdout.flush()
    read, written = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    with os.fdopen(read, encoding="utf-8", errors="replace") as stdin, os.fdopen(written, "w", encoding="utf-8") as stdout:
        yield stdin, stdout


def serve(source: Callable[[], Source], clock: Clock) -> None:
    """Serve until standard input ends. Ctrl-C ends the process at once: nothing is half done.

    Parameters
    ----------
    source
        Opens what the tools ask; called with the first call of a tool, and again until it does not fail.
    """
    signal.signal(signal.SIGINT, _end_at_once)
    with wire() as streams:
        import anyio

        anyio.run(partial(_serve, Tools(source, clock), *streams))


def _end_at_once(_: int, __: FrameType | None) -> None:
    os._exit(_INTERRUPTED)  # a thread waits in a read of standard input, and would be waited for


async def _serve(tools: Tools, stdin: IO[str], stdout: IO[str]) -> None:
    import anyio
    from mcp.server.stdio import stdio_server

    server = tools.server()
    try:
        async with stdio_server(anyio.wrap_file(stdin), anyio.wrap_file(stdout)) as (read, write):
            await server.run(read, write, server.create_initialization_options())
    except* BrokenPipeError:
        log.debug("the client is gone")


class Tools:
    """The tools as the SDK asks for them."""

    def __init__(self, source: Callable[[], Source], clock: Clock) -> None:
        self._open, self._clock = source, clock
        self._source: Source | None = None
        self._opening = threading.Lock()
        self._limit: CapacityLimiter | None = None

    def server(self) -> Server[Any]:
        """Return the SDK's server with the tools in it."""
        from mcp.server.lowlevel import Server

        from dgpunet_dask.daemons.mcp.tools import INSTRUCTIONS

        return Server(
            "dgpunet-dask", version=__version__, instructions=INSTRUCTIONS, on_list_tools=self.listed, on_call_tool=self.called
        )

    async def listed(self, _: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        """Return all tools."""
        from mcp.types import ListToolsResult

        from dgpunet_dask.daemons.mcp.tools import TOOLS

        return ListToolsResult(tools=[_described(name) for name in TOOLS])

    async def called(self, _: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        """Call a tool in a thread. What went wrong is the tool's answer, so that a model reads the cure."""
        import anyio
        from mcp.types import CallToolResult, TextContent

        self._limit = self._limit or anyio.CapacityLimiter(CALLS_MAX)
        call = partial(self._called, params.name, params.arguments or {})
        try:
            # a thread that nobody waits for any more ends by itself: nothing blocks for long
            text, told = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limit)
        except DgpunetError as error:
            return CallToolResult(content=[TextContent(type="text", text=_sendable(str(error)))], is_error=True)
        except Exception as error:
            log.exception("the tool %r failed", params.name)
            text = str(DgpunetError(detail=f"{type(error).__name__}: {error}"))
            return CallToolResult(content=[TextContent(type="text", text=_sendable(text))], is_error=True)
        return CallToolResult(content=[TextContent(type="text", text=_sendable(text))], structured_content=told)

    def _called(self, name: str, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        from dgpunet_dask.daemons.mcp.tools import called

        with self._opening:
            source = self._source = self._source or self._open()
        return called(source, name, given, self._clock)


def _described(name: str) -> Tool:
    from mcp.types import Tool, ToolAnnotations

    from dgpunet_dask.daemons.mcp.tools import TOOLS

    kind = TOOLS[name]
    hints = ToolAnnotations(title=kind.title, read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
    return Tool(
        name=name, title=kind.title, description=kind.description, input_schema=kind.arguments.model_json_schema(), annotations=hints
    )


def _sendable(text: str) -> str:
    """Return a text that is valid Unicode: half of a surrogate pair, which JSON may hold, cannot be sent back."""
    return text.encode("utf-8", "backslashreplace").decode()
