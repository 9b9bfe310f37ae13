"""The Dask scheduler of a cluster of real machines: the stock class, under the head's certificate.

Its own pages (dashboard, metrics) listen on 127.0.0.1 and under a secret path; people reach them through the head's API.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from distributed import Scheduler
from distributed._signals import wait_for_signals
from distributed.compatibility import asyncio_run
from distributed.config import get_loop_factory

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.cluster.severing import follow
from dgpunet_dask.config.home import home_from
from dgpunet_dask.daemons.hidden_pages import hide_prefix
from dgpunet_dask.daemons.secret import http_prefix
from dgpunet_dask.daemons.worker_main import LOG_FORMAT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scheduler until it is told to end or its owner is gone."""
    parser = argparse.ArgumentParser(prog="dgpunet-dask-scheduler", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dashboard-port", type=int, required=True)
    parser.add_argument("--scheduler-file", required=True)
    parser.add_argument("--preload", action="append", default=[])
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    asyncio_run(_run(args), loop_factory=get_loop_factory())
    return 0


async def _run(args: argparse.Namespace) -> None:
    home = home_from()
    scheduler = Scheduler(
        security=ClusterSecurity(home.pki),
        host=args.host,
        port=args.port,
        protocol="tls",
        dashboard=True,
        dashboard_address=f"127.0.0.1:{args.dashboard_port}",
        http_prefix=http_prefix(home.run),
        scheduler_file=args.scheduler_file,
        preload=args.preload,
    )
    follow(scheduler)
    hide_prefix(scheduler)  # nothing is served before this line: the loop waits

    async def until_told() -> None:
        signum = await wait_for_signals()
        await scheduler.close(reason=f"signal-{signum}")

    async def until_finished() -> None:
        await scheduler
        await scheduler.finished()

    tasks = [asyncio.create_task(until_finished()), asyncio.create_task(until_told())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


if __name__ == "__main__":
    sys.exit(main())
