"""The ledger under a million random steps: units come and end, run out of memory, devices are lost, join and leave, others use cards,
owners come and go, policies are swapped. After each step every limit is checked, and each placement is compared with the plain rules.

    python bench/ledger.py                        # a million steps, some minutes
    python bench/ledger.py --steps 20000 --seed 7
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from dgpunet_dask.testing.ledger import DEVICES, HOSTS, KINDS, POLICIES, LedgerPlay

#: What happens, and how often.
CHANCES = {
    "place": 45, "finish": 38, "oom": 2, "lose": 1, "join": 3, "leave": 0.5, "foreign": 3, "evict": 1, "policy": 1, "owner": 1, "later": 5,
}  # fmt: skip
CARDS = [d.name for d in DEVICES if d.kind == "gpu"]


def step(play: LedgerPlay, what: str, chance: random.Random) -> None:
    """Let `what` happen to something."""
    device = chance.choice(DEVICES).name
    if what == "place":
        play.place(chance.choice(KINDS))
    elif what in ("finish", "oom"):
        if play.units:
            holder = chance.choice(sorted(play.units))
            play.oom(holder) if what == "oom" else play.finish(holder, took=chance.lognormvariate(0, 0.3))
    elif what == "foreign":
        play.foreign(chance.choice(CARDS), chance.choice([0, 0, 300, 3000, 12000, 40000]))
    elif what == "policy":
        play.policy(chance.randrange(len(POLICIES)))
    elif what == "owner":
        play.owner(chance.choice(HOSTS).name, chance.choice([None, 5.0, 5000.0]))
    elif what == "later":
        play.later(chance.expovariate(0.5), chance.randrange(1440))
    else:
        getattr(play, what)(device)


def run(steps: int, seed: int) -> dict[str, Any]:
    """Take `steps` steps and return what was found."""
    chance, play = random.Random(seed), LedgerPlay()
    names, weights = list(CHANCES), list(CHANCES.values())
    violations: list[str] = []
    begun = time.perf_counter()
    for number in range(steps):
        what = chance.choices(names, weights)[0]
        step(play, what, chance)
        violations += [f"step {number}, {what}: {fault}" for fault in play.faults()]
    seconds = time.perf_counter() - begun
    return {
        "what": "violations of the ledger's limits in random steps", "steps": steps, "seed": seed, "violations": len(violations),
        "first": violations[:20], "happened": dict(sorted(play.steps.items())), "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ledger.json")
    options = parser.parse_args()
    result = run(options.steps, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['steps']} steps in {result['seconds']} s, seed {result['seed']}: {result['happened']}")
    print("\n".join(result["first"]) if result["first"] else "no violation")
    return 0 if not result["violations"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
