"""An embed job end to end on this machine's card, by the tokens of a unit: submitted on a warm cluster until it is done, beside the encoder alone.

A model of BERT-base's shape with random weights, which cost the same as trained ones, and Python files below `--source`. Every submission makes a new
index, and no vector is known from before. `stages_s` are the stages one after the other in this process, so what of a job is work.

    python bench/embed_card_job.py                                       # units of 16,384 to 262,144 tokens, 3 rounds
    python bench/embed_card_job.py --device cpu --shape tiny --chunks 5000 --tokens 16384 --output -

A model of one small layer (`--shape tiny`) costs next to nothing: its rate is that of all else, on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embed import timed
from embed_gpu import PACKAGES, _version, bert_base, spread
from embed_parts import ROOT, bare, breakdown, corpus

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.hardware.card_facts import card_facts
from dgpunet_dask.retrieval.encoder import EngineEncoder, load_encoder
from dgpunet_dask.retrieval.modelfiles import find_model

#: Another shape than BERT-base's.
SHAPES: dict[str, dict[str, int]] = {"base": {}, "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}}
TOKENS = "batch: {tokens: 16384}"


def workload(folder: Path, tokens: int) -> Path:
    """Copy the shipped workload with other units, and return its folder."""
    made = folder / f"units-{tokens}" / "embed-codebase"
    shutil.copytree(ROOT / "workloads" / "embed_codebase", made)
    text = (made / "job.yaml").read_text()
    assert TOKENS in text
    (made / "job.yaml").write_text(text.replace(TOKENS, f"batch: {{tokens: {tokens}}}"))
    return made


def run(client: Client, job: Path, tree: Path, index: str, model: str) -> dict[str, Any]:
    """Embed the tree anew; return the job's seconds, tokens and units, and where these ran."""
    shutil.rmtree(client.home.vectors, ignore_errors=True)
    seconds, status = timed(lambda: client.wait(client.submit(job, {"path": [str(tree)], "index": index, "model": model}).job_id))
    if status.state != "done":
        raise SystemExit(f"the job ended as {status.state}: {status.to_json()['error']}")
    devices: dict[str, int] = {}
    for attempt in client.attempts(status.job_id):
        devices[str(attempt["device"])] = devices.get(str(attempt["device"]), 0) + 1
    return {"seconds": seconds, "tokens": int(status.metrics["tokens"]), "units": status.to_json()["units"]["total"], "devices": devices}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the jobs, taking turns, then the encoder alone on the same texts."""
    like = Path(options.model) if options.model else find_model("minilm", folder).folder
    model = str(bert_base(like, folder / options.shape, **SHAPES[options.shape]))
    chunks = corpus(options.source, folder / "tree", options.chunks, options.seed, model)
    small = folder / "small"
    small.mkdir()
    (small / "a.py").write_text("x = 1\n")
    jobs = {tokens: workload(folder, tokens) for tokens in options.tokens}
    home = Home(folder / "home").ensure()
    runs: dict[int, list[dict[str, Any]]] = {tokens: [] for tokens in jobs}
    with Client(home=home) as client:
        startup = {tokens: run(client, job, small, f"warm-{tokens}", model)["seconds"] for tokens, job in jobs.items()}
        for number in range(options.rounds):
            order = list(jobs)
            random.Random(options.seed + number).shuffle(order)
            for tokens in order:
                runs[tokens].append(run(client, jobs[tokens], folder / "tree", f"round-{number}-{tokens}", model))
                print(f"round {number}, units of {tokens}: {runs[tokens][-1]}", file=sys.stderr, flush=True)
    encoder = load_encoder(model, torch_device=options.device, cache=home.root / "cache")
    assert isinstance(encoder, EngineEncoder)
    alone = by_itself(encoder, [c.text for c in chunks], options.rounds)
    return {
        "what": "tokens per second of an embed job on a card, submitted on a warm cluster until done, by the tokens of a unit",
        "chunks": len(chunks), "tokens": sum(c.tokens for c in chunks), "shape": options.shape, "rounds": options.rounds, "seed": options.seed, "startup_s": startup,
        "jobs": {tokens: _told(found) for tokens, found in runs.items()}, "alone_tokens_per_second": alone,
        "stages_s": breakdown(folder / "tree", folder, encoder, model),
        "machine": {"cards": [card.model for card in card_facts() if card.present], "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {name: _version(name) for name in PACKAGES},
    }  # fmt: skip


def _told(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tokens_per_second": spread([one["tokens"] / one["seconds"] for one in found]), "units": found[-1]["units"], "devices": found[-1]["devices"]}


def by_itself(encoder: EngineEncoder, texts: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the rates of the encoder without a cluster: of the bare loop, and with the tokenizer."""
    ids = encoder.tokens.ids(texts, "")
    tokens = sum(map(len, ids))
    arms: dict[str, Callable[[], Any]] = {"bare_loop": lambda: bare(encoder, ids, len(ids)), "ours": lambda: encoder.encode_documents(texts)}
    for arm in arms.values():
        arm()  # kernels are prepared
    return {name: spread([tokens / timed(arm)[0] for _ in range(rounds)]) for name, arm in arms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder of a small model, whose tokenizer the large one gets; default: minilm's")
    parser.add_argument("--source", type=Path, action="append", help="Folders to draw files from; default: the standard library.")
    parser.add_argument("--chunks", type=int, default=20000)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16384, 65536, 262144])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="base")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "embed_card_job.json"), help="- prints only")
    options = parser.parse_args()
    options.source = options.source or [Path(sysconfig.get_paths()["stdlib"])]
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as held:
        result = measure(options, Path(held))
    print(json.dumps(result, indent=1))
    if options.output != "-":
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
