"""A codebase embedded twice: undisturbed, and while head, worker, client and stage host are killed with `kill -9` on the way.

What the kills cost is told in seconds and in starts of units beyond one for each; the two indexes are compared row by row. Both runs
are of one cluster, one after the other, and nothing of the first is reused by the second.

    python bench/durable_embed.py                     # about a million tokens of the standard library
    python bench/durable_embed.py --tokens 100000 --output -
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sysconfig
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgpunet_dask.testing.durable_embed import calm, likeness, storm, tree
from dgpunet_dask.testing.history import check_history
from dgpunet_dask.testing.livecluster import live_cluster


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both and return what they took, and what they have in common."""
    files = tree(options.source, folder / "tree", options.tokens)
    with live_cluster(folder / "h") as cluster:
        calm(cluster, warm_up(folder), "warm")  # the model is loaded, as it would be in use
        _, plain = calm(cluster, folder / "tree", "calm")
        print(f"undisturbed: {plain.tokens} tokens in {plain.units} units, {plain.seconds:.1f} s", flush=True)
        _, ran, kills = storm(cluster, folder / "tree", "storm", plain.units, lambda line: print(line, flush=True))
        print(f"with {len(kills)} kills: {ran.seconds:.1f} s, {ran.attempts} starts of {ran.units} units", flush=True)
        found = likeness(cluster.home, "calm", "storm")
        history = check_history(cluster.home.root / "ledger.db", cluster.root)
        left = cluster.orphans()
    met = ran.state == "done" and found.same and not history and not left and ran.attempts - ran.units <= len(kills)
    return {
        "what": "one index made undisturbed and while processes are killed: seconds, starts of units, rows and vectors in common",
        "files": files, "undisturbed": asdict(plain), "killed": asdict(ran), "kills": [asdict(kill) for kill in kills],
        "computed_again": ran.attempts - ran.units, "cost_s": ran.seconds - plain.seconds, "likeness": asdict(found),
        "history": history, "left": left, "met": met,
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
    }  # fmt: skip


def warm_up(folder: Path) -> Path:
    small = folder / "small"
    small.mkdir()
    (small / "a.py").write_text("x = 1\n")
    return small


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--source", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "durable_embed.json"), help="- prints only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = measure(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(text + "\n")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
