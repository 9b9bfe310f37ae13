"""What the membership of a cluster reaches hosts and the scheduler through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpunet_dask.cluster.nodes import Node
from dgpunet_dask.daemons.surveying import Survey

Ask = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Reach:
    """What the membership reaches the scheduler through.

    Parameters
    ----------
    ask
        Asks the scheduler's plugin: ``await ask("dgpunet_hold", holds={...})``; raises DgpunetError while it is away.
    retire
        Lets workers leave in good order, by their addresses.
    fleet
        Gives the devices as the plugin sees them: rows with `name`, `host`, `state` and what is charged.
    reachable
        Tries a host's peer port from here: ``None`` if it answers, else why not.
    survey
        Tries the documented ports of hosts, both ways.
    knock
        Tries the ports that a host, by its name and address, will need once it has joined.
    """

    ask: Ask
    retire: Callable[[Sequence[str]], Awaitable[None]]
    fleet: Callable[[], Awaitable[list[dict[str, Any]]]]
    reachable: Callable[[Node], Awaitable[str | None]]
    survey: Callable[[Sequence[Node]], Awaitable[Survey]]
    knock: Callable[[str, str], Awaitable[Sequence[Mapping[str, Any]]]]
