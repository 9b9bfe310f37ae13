"""Embedding a codebase: submit on a warm cluster until searchable, beside plain `encode` and our bare inference loop.

All arms embed the same chunks, taking turns; the order within a round changes from round to round. The cluster has a home of its
own and is warm: a small tree is indexed first, so that the model is loaded. Each submission makes a new index, so that nothing
is reused. Loading the models, and starting the cluster, are reported apart.

    python bench/embed.py                          # 60,000 tokens of the installed `distributed`, 5 rounds
    python bench/embed.py --tokens 5000 --rounds 1 --output -
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import distributed
import numpy as np

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.chunk import Chunk, chunks_of
from dgpunet_dask.retrieval.discover import Text, discover, read_text, roots_of
from dgpunet_dask.retrieval.encoder import load_encoder
from dgpunet_dask.retrieval.search import Query, open_searcher
from dgpunet_dask.retrieval.tokens import load_tokens

MODEL = "minilm"
TARGETS = {"of_bare_loop": 0.90, "of_encode": 2.5, "cosine_to_fp32": 0.999}
PACKAGES = ("dask", "distributed", "faiss-cpu", "numpy", "sentence-transformers", "tokenizers", "torch", "transformers")


def corpus(source: Path, into: Path, tokens: int, seed: int) -> list[Chunk]:
    """Copy files of `source`, drawn by `seed`, until they hold `tokens` tokens; return their chunks."""
    counter = load_tokens(MODEL)
    entries = [e for e in discover(roots_of([source]), lambda *_: None) if e.path.endswith(".py")]
    random.Random(seed).shuffle(entries)
    found: list[Chunk] = []
    for entry in entries:
        text = read_text(entry)
        if sum(c.tokens for c in found) >= tokens:
            break
        if not isinstance(text, Text) or not text.text.strip():
            continue
        target = into / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.fsdecode(entry.file), target)
        found += chunks_of([(entry.path, text.text, text.language)], counter)
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def end_to_end(client: Client, folder: Path, index: str) -> float:
    """Return the seconds from submission until a query is answered by the new index's files."""
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

    chunks = corpus(options.source, folder / "tree", options.tokens, options.seed)
    texts = [c.text for c in chunks]
    tokens = sum(c.tokens for c in chunks)
    startup: dict[str, float] = {}
    startup["bare_loop"], bare = timed(lambda: load_encoder(MODEL, threads=os.cpu_count()))
    startup["encode"], plain = timed(lambda: SentenceTransformer(str(bare.files.folder), device="cpu"))
    bare.encode_documents(texts[:64])  # the first pass prepares kernels; the cluster's does so on the small tree
    plain.encode(texts[:64], show_progress_bar=False)
    seconds: dict[str, list[float]] = {"end_to_end": [], "bare_loop": [], "encode": []}
    with Client(home=Home(folder / "home")) as client:
        small = folder / "small"
        small.mkdir()
        (small / "a.py").write_text("x = 1\n")
        startup["end_to_end"], _ = timed(lambda: end_to_end(client, small, "warm"))
        arms: dict[str, Callable[[int], Any]] = {
            "end_to_end": lambda n: seconds["end_to_end"].append(end_to_end(client, folder / "tree", f"round-{n}")),
            "bare_loop": lambda _: seconds["bare_loop"].append(timed(lambda: bare.encode_documents(texts))[0]),
            "encode": lambda _: seconds["encode"].append(timed(lambda: plain.encode(texts, show_progress_bar=False))[0]),
        }
        for number in range(options.rounds):
            names = list(arms)
            random.Random(options.seed + number).shuffle(names)
            for name in names:
                arms[name](number)
    exact = plain.encode(texts, show_progress_bar=False)
    cosine = float((bare.encode_documents(texts) * exact / np.linalg.norm(exact, axis=1, keepdims=True)).sum(1).min())
    return report(options, seconds, startup, tokens, len(chunks), cosine)


def report(
    options: argparse.Namespace, seconds: dict[str, list[float]], startup: dict[str, float], tokens: int, chunks: int, cosine: float
) -> dict[str, Any]:
    """Put the figures together; ratios are medians of the rounds' own ratios, since arms of one round shared the machine's mood."""
    rates = {name: [tokens / s for s in took] for name, took in seconds.items()}
    ratios = {
        f"of_{other}": [b / a for a, b in zip(seconds["end_to_end"], seconds[other], strict=True)]
        for other in ("bare_loop", "encode")
    }
    found: dict[str, Any] = {name: statistics.median(values) for name, values in ratios.items()} | {"cosine_to_fp32": cosine}
    return {
        "what": "tokens per second, submit on a warm cluster until searchable, beside bare loop and encode (fp32, default batch)",
        "tokens": tokens,
        "chunks": chunks,
        "rounds": options.rounds,
        "seed": options.seed,
        "tokens_per_second": {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in rates.items()},
        "ratios": {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in ratios.items()},
        "cosine_to_fp32": cosine,
        "startup_s": startup,
        "targets": {
            name: {"target": target, "found": found[name], "met": found[name] >= target} for name, target in TARGETS.items()
        },
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, default=Path(distributed.__file__).parent)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "embed.json"), help="- prints only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as folder:
        result = measure(options, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if options.output != "-":
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
