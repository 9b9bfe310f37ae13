"""A Dask worker of a cluster of real machines: ``python -m dgpunet_dask.daemons.worker_main``.

Stock classes, dask-cuda's `CUDAWorker` for a card and `distributed.Worker` for a CPU, under the host's own certificate: their command
lines build TLS contexts once and know neither renewal nor revocation, and dask-cuda's has no option for its nanny's port.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from distributed import Worker
from distributed._signals import wait_for_signals
from distributed.compatibility import asyncio_run
from distributed.config import get_loop_factory

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.cluster.severing import follow
from dgpunet_dask.config.home import home_from
from dgpunet_dask.daemons.secret import http_prefix

#: How long a worker that was told to end may take to do so in good order.
CLOSE_S: Final = 10.0
LOG_FORMAT: Final = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one worker until it, its scheduler or its owner ends."""
    args = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    make = _cuda_worker if args.cuda else _cpu_worker
    asyncio_run(_run(make, args), loop_factory=get_loop_factory())
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dgpunet-dask-worker", description=__doc__)
    parser.add_argument("scheduler")
    for name in ("--host", "--name", "--local-directory"):
        parser.add_argument(name, required=True)
    for name in ("--nthreads", "--worker-port", "--nanny-port"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--preload", action="append", default=[])
    parser.add_argument("--cuda", action="store_true")
    return parser.parse_args(argv)


async def _run(make: Any, args: argparse.Namespace) -> None:
    worker = make(args)

    async def until_finished() -> None:
        await worker
        await worker.finished()

    async def until_told() -> None:
        await wait_for_signals()
        async with asyncio.timeout(CLOSE_S):
            await worker.close()

    tasks = [asyncio.create_task(until_finished()), asyncio.create_task(until_told())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _common(args: argparse.Namespace) -> dict[str, Any]:
    """Return what both kinds of workers are given. The page that answers ``/health`` stays on this machine, under a secret path."""
    home = home_from()
    return {
        "security": ClusterSecurity(home.pki),
        "host": args.host,
        "protocol": "tls",
        "name": args.name,
        "nthreads": args.nthreads,
        "memory_limit": 0,
        "local_directory": args.local_directory,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "preload": args.preload,
    }


def _cpu_worker(args: argparse.Namespace) -> Any:
    return Worker(args.scheduler, port=args.worker_port, http_prefix=http_prefix(home_from().run), **_common(args))


def _cuda_worker(args: argparse.Namespace) -> Any:
    from dask_cuda.cuda_worker import CUDAWorker  # only here: it wants a driver

    common = _common(args) | {"memory_limit": "0"}
    made = CUDAWorker(
        args.scheduler, worker_port=str(args.worker_port), port=args.nanny_port, dashboard_prefix=http_prefix(home_from().run), **common
    )
    for nanny in made.nannies:  # the workers in front of which they stand do so in their preload
        follow(nanny)
    return made


if __name__ == "__main__":
    sys.exit(main())
