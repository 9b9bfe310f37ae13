"""Embedding a codebase: submit on a warm cluster until searchable, beside our bare inference loop, plain `encode`, and peers.

All arms embed the same chunks on the same cores, taking turns; the order within a round changes from round to round. The cluster has a home of
its own and is warm: a small tree is indexed first, so that the model is loaded. Each submission makes a new index, so that nothing
is reused. The bare loop is the same engine on tokens that are there already. `encode` and the peers that use it get a random part of the chunks
(`--encode-share`), since they take long. Loading the models, and starting the clusters, are reported apart. The peers run once, Ray Data in an
interpreter that has it with sentence-transformers and what this package needs (`--ray`; without one it is left out, and the reason told).

    python bench/embed.py                          # 5,000 chunks of Python's own library, 3 rounds
    python bench/embed.py --ray RAY_VENV/bin/python
    python bench/embed.py --chunks 300 --rounds 1 --output -
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from embed_parts import PEERS, bare, breakdown, corpus, flops, gemm_flops_per_s, peer

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.bertfiles import bert_files
from dgpunet_dask.retrieval.encoder import EngineEncoder, load_encoder
from dgpunet_dask.retrieval.search import Query, open_searcher

MODEL = "minilm"
TARGETS = {"of_bare_loop": 0.90, "of_encode": 2.5, "cosine_to_fp32": 0.999}
PACKAGES = ("dask", "distributed", "faiss-cpu", "numpy", "openvino", "sentence-transformers", "tokenizers", "torch", "transformers")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def end_to_end(client: Client, folder: Path, index: str) -> float:
    """Return the seconds from submission until a query is answered by the new index's files. No vector is known from before."""
    shutil.rmtree(client.home.vectors, ignore_errors=True)
    started = time.perf_counter()
    job = client.submit("embed-codebase", {"path": [str(folder)], "index": index, "model": MODEL})
    status = client.wait(job.job_id)
    seconds = time.perf_counter() - started
    if status.state != "done":
        raise SystemExit(f"the job ended as {status.state}: {status.to_json()['error']}")
    [answer] = open_searcher(client.home, index).search([Query("close the connection")], 1)
    if not answer["hits"]:
        raise SystemExit("the new index answers nothing")
    return seconds


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return rates, ratios and what surrounds them."""
    from sentence_transformers import SentenceTransformer

    chunks = corpus(options.source, folder / "tree", options.chunks, options.seed)
    texts, tokens = [c.text for c in chunks], [c.tokens for c in chunks]
    some = sorted(random.Random(options.seed).sample(range(len(chunks)), max(1, round(len(chunks) * options.encode_share))))
    part = [texts[n] for n in some]
    home = Home(folder / "home").ensure()
    startup: dict[str, float] = {}
    startup["self_check"], ours = timed(lambda: loaded(home))
    startup["bare_loop"], ours = timed(lambda: loaded(home))
    startup["encode"], plain = timed(lambda: SentenceTransformer(str(ours.files.folder), device="cpu"))
    ids = ours.tokens.ids(texts, "")
    bare(ours, ids[:64], 64)  # the first pass prepares kernels; the cluster's does so on the small tree
    plain.encode(texts[:64], show_progress_bar=False)
    rates: dict[str, list[float]] = {"end_to_end": [], "bare_loop": [], "ours": [], "encode": []}
    with Client(home=home) as client:
        small = folder / "small"
        small.mkdir()
        (small / "a.py").write_text("x = 1\n")
        startup["end_to_end"], _ = timed(lambda: end_to_end(client, small, "warm"))
        arms: dict[str, Callable[[int], float]] = {
            "end_to_end": lambda n: sum(tokens) / end_to_end(client, folder / "tree", f"round-{n}"),
            "bare_loop": lambda _: sum(tokens) / timed(lambda: bare(ours, ids, len(ids)))[0],
            "ours": lambda _: sum(tokens) / timed(lambda: ours.encode_documents(texts))[0],
            "encode": lambda _: sum(tokens[n] for n in some) / timed(lambda: plain.encode(part, show_progress_bar=False))[0],
        }
        for number in range(options.rounds):
            names = list(arms)
            random.Random(options.seed + number).shuffle(names)
            for name in names:
                rates[name].append(arms[name](number))
                print(f"round {number}, {name}: {rates[name][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    exact = plain.encode(part, show_progress_bar=False)
    cosine = (ours.encode_documents(part) * exact / np.linalg.norm(exact, axis=1, keepdims=True)).sum(1)
    return {
        "what": "tokens per second, submit on a warm cluster until searchable, beside bare loop, encode (fp32, default batch) and peers",
        "tokens": sum(tokens), "chunks": len(chunks), "rounds": options.rounds, "seed": options.seed, "encode_share": options.encode_share,
        "engine": {"name": ours.engine.name, "precision": ours.engine.precision, "batch_tokens": ours.budget.tokens},
        "startup_s": startup, **ratios(rates, {"min": float(cosine.min()), "mean": float(cosine.mean())}),
        "roof": roof(ours, ids[:500]),
        "stages_s": breakdown(folder / "tree", folder, ours),
        "peers": {name: peer_rate(name, options.ray, ours, part, sum(tokens[n] for n in some), folder) for name in PEERS},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def loaded(home: Home) -> EngineEncoder:
    found = load_encoder(MODEL, threads=os.cpu_count(), cache=home.root / "cache")
    assert isinstance(found, EngineEncoder)
    return found


def ratios(rates: dict[str, list[float]], cosine: dict[str, float]) -> dict[str, Any]:
    """Return rates and ratios; a ratio is the median of the rounds' own ratios, since arms of one round shared the machine's mood."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    shares = {f"of_{other}": [a / b for a, b in zip(rates["end_to_end"], rates[other], strict=True)] for other in ("bare_loop", "encode")}
    found = {name: statistics.median(values) for name, values in shares.items()} | {"cosine_to_fp32": cosine["min"]}
    return {
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "ratios": {name: spread(values) for name, values in shares.items()},
        "cosine_to_fp32": cosine,
        "targets": {name: {"target": target, "found": found[name], "met": found[name] >= target} for name, target in TARGETS.items()},
    }


def roof(ours: EngineEncoder, ids: list[list[int]]) -> dict[str, float]:
    """Return which share of a product's rate the bare loop reaches, the two taking turns; the median of five."""
    files = bert_files(ours.files.folder)
    assert files is not None
    forward = int(json.loads((files.folder / "config.json").read_text())["intermediate_size"])
    work = flops(files, forward, [len(i) for i in ids])
    most, shares = [], []
    for _ in range(5):
        most.append(gemm_flops_per_s(ours.engine.precision, files, forward, ours.engine.name))
        shares.append(work / timed(lambda: bare(ours, ids, len(ids)))[0] / most[-1])
    per_token = work / sum(map(len, ids)) / 1e6
    return {"gemm_gflops_per_s": statistics.median(most) / 1e9, "mflop_per_token": per_token, "bare_loop_share": statistics.median(shares)}


def peer_rate(name: str, python: str | None, ours: EngineEncoder, texts: list[str], tokens: int, folder: Path) -> dict[str, Any]:
    """Return a peer's rate, and our `encode_documents` on the same texts directly after it."""
    found = peer(name, python, ours.files.folder, texts, folder)
    if "seconds" not in found:
        return found
    beside, _ = timed(lambda: ours.encode_documents(texts))
    return found | {"tokens_per_second": tokens / found["seconds"], "of_ours_alone": beside / found["seconds"]}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encode-share", type=float, default=0.2, help="part of the chunks that slow arms get")
    parser.add_argument("--ray", metavar="PYTHON", help="An interpreter with Ray Data installed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, action="append", help="Folders to draw files from; default: the standard library.")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "embed.json"), help="- prints only")
    options = parser.parse_args()
    options.source = options.source or [Path(sysconfig.get_paths()["stdlib"])]
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = measure(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
