"""A known computation on each idle card now and then, in a process of its own: the agent itself never holds anything on a card."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.daemons.card_log import Report, fault
from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.hardware.canary import KILL_S
from dgpunet_dask.observe.canary_schedule import EVERY_S, IDLE_S, CardUse, next_due

log = logging.getLogger(__name__)

#: A card that computes more than this, in per cent, is not idle. Desktops draw a little all the time.
IDLE_PERCENT: Final = 5
#: Starting a process, importing torch from a cold disk and opening a card take most of it.
LIMIT_S: Final = 180.0
_SEEDS: Final = 1 << 31
_MARK: Final = "canary "
_SCRIPT: Final = (
    "import json, sys; from dataclasses import asdict; from dgpunet_dask.hardware.canary import canary; "
    f"print({_MARK!r} + json.dumps(asdict(canary('cuda:0', int(sys.argv[1])))))"
)

Rows = Sequence[Mapping[str, Any]]
#: A `CanaryResult` as its process prints it: ok, mismatches, failed, seconds, gflops, why.
Result = Mapping[str, Any]
#: Takes a card's UUID and a seed.
Run = Callable[[str, int], Awaitable[Result]]


async def run_apart(uuid: str, seed: int) -> Result:
    """Run the canary on a card in a process that ends with this call, however that ends."""
    argv = [sys.executable, "-P", "-c", _SCRIPT, str(seed)]
    env = child_env({"CUDA_VISIBLE_DEVICES": uuid, "OMP_NUM_THREADS": "1"})  # the host's own work goes first
    try:
        child = await asyncio.create_subprocess_exec(*argv, env=env, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        return _unrun(f"its process did not start: {error}")
    try:
        async with asyncio.timeout(LIMIT_S):
            printed, told = await child.communicate()
    except TimeoutError:
        return _unrun(f"it did not end within {LIMIT_S:g} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        with contextlib.suppress(TimeoutError):  # one that hangs inside the driver does not end of a kill either
            async with asyncio.timeout(KILL_S):
                await child.wait()
    last = told.decode(errors="replace").strip().rpartition("\n")[2][:300]
    return _result_in(printed.decode(errors="replace")) or _unrun(f"its process ended with status {child.returncode}: {last}")


def _result_in(printed: str) -> Result | None:
    line = next((line for line in printed.splitlines() if line.startswith(_MARK)), None)
    found = None if line is None else json.loads(line.removeprefix(_MARK))
    return found if isinstance(found, dict) else None


def _unrun(why: str) -> Result:
    return {"ok": None, "why": why}


@dataclass
class _Card:
    """What is known of one card: its name, when it was last busy, when the last canary ended, and what came of it."""

    name: str
    busy_s: float
    ran_s: float | None = None
    result: Result | None = None


class CardCanary:
    """Runs the canary on the cards of one host, one at a time.

    Parameters
    ----------
    clock
        Time.
    run
        Runs one.
    every_s, idle_s
        How often on each card, and how long it must have been idle.
    """

    def __init__(self, clock: Clock, run: Run = run_apart, *, every_s: float = EVERY_S, idle_s: float = IDLE_S) -> None:
        self.clock, self.run = clock, run
        self.every_s, self.idle_s = every_s, idle_s
        self._cards: dict[str, _Card] = {}
        self._running: tuple[str, asyncio.Future[Result]] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return the last result of each card, as `observe.facts` has it."""
        return [_row(uuid, card, card.result) for uuid, card in self._cards.items() if card.result is not None]

    def look(self, cards: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], stagehosts: Rows) -> list[Report]:
        """Take the result of a canary that has ended, and start the next one that is due.

        Parameters
        ----------
        cards
            How the cards are, by UUID.
        names
            Their names in the fleet.
        stagehosts
            What runs on them.
        """
        reports = self._collected()
        busy = [str(row["device"]) for row in stagehosts if row.get("busy")]
        uses = {uuid: self._use(uuid, names.get(uuid, uuid), row, busy) for uuid, row in cards.items()}
        due = next_due(uses.values(), running=self._running is not None, every_s=self.every_s, idle_s=self.idle_s)
        if due is not None:
            uuid = next(uuid for uuid, use in uses.items() if use.device == due)
            self._running = uuid, asyncio.ensure_future(self.run(uuid, secrets.randbelow(_SEEDS)))
        return reports

    async def stop(self) -> None:
        """End what runs."""
        if self._running is not None:
            self._running[1].cancel()
            await asyncio.gather(self._running[1], return_exceptions=True)
            self._running = None

    def _use(self, uuid: str, name: str, row: Mapping[str, Any], busy: Sequence[str]) -> CardUse:
        now = self.clock.monotonic()
        card = self._cards.setdefault(uuid, _Card(name, now))
        card.name = name
        units, percent = busy.count(name), row.get("utilisation")
        if units or (percent is not None and percent > IDLE_PERCENT):
            card.busy_s = now
        total, used = row.get("vram_mib"), row.get("used_mib")
        return CardUse(
            device=name,
            units=units,
            idle_s=now - card.busy_s,
            since_canary_s=None if card.ran_s is None else now - card.ran_s,
            free_mib=None if total is None or used is None else total - used,
            out=row.get("present") is not True or (card.result is not None and card.result.get("ok") is False),
        )

    def _collected(self) -> list[Report]:
        if self._running is None or not self._running[1].done():
            return []
        (uuid, future), self._running = self._running, None
        card, now = self._cards[uuid], self.clock.monotonic()
        error = future.exception()
        card.result = result = future.result() if error is None else _unrun(str(error) or type(error).__name__)
        card.ran_s = card.busy_s = now
        if result.get("ok") is None:
            log.info("the canary could not run on %s: %s", card.name, result.get("why"))
        if result.get("ok") is not False:
            return []
        steps = ", ".join(result.get("failed") or ()) or "steps that are not told"
        what = f"a known computation gave another result ({result.get('mismatches')} wrong numbers in {steps})"
        return [fault(uuid, card.name, what, at=self.clock.wall(), cordon=True, severity="critical")]


def _row(uuid: str, card: _Card, result: Result) -> dict[str, Any]:
    told = {key: result.get(key) for key in ("ok", "mismatches", "failed", "seconds", "gflops", "why")}
    return {"device": card.name, "uuid": uuid, **told}
