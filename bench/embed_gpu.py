"""Embedding on a card: a model of BERT-base's shape and a small one, in our engine, beside `encode`, the tokenizer and the card's own roofs.

All arms embed the same chunks of code, taking turns; the order changes from round to round, and each arm is warm. Random weights cost the same as
trained ones, so BERT-base's shape is made on the spot, with the small model's tokenizer. Rates are real tokens per second: padding is nobody's
work. What `SentenceTransformer.encode` does as it comes (float32, batches of 32) and as well as it can (bfloat16, batches of 256) gets a random
part of the chunks (`--encode-share`), since it takes long.

    python bench/embed_gpu.py --model minilm                       # 20,000 chunks of Python's own library, 5 rounds
    python bench/embed_gpu.py --model FOLDER --texts TEXTS.json.gz --replicas 1 2 4
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from embed_parts import bare, corpus, flops

from dgpunet_dask.hardware.card_facts import card_facts
from dgpunet_dask.retrieval.bertfiles import BertFiles, bert_files
from dgpunet_dask.retrieval.encoder import EngineEncoder, load_encoder
from dgpunet_dask.retrieval.modelfiles import find_model, transformer_folder

DEVICE = "cuda:0"
TARGETS = {"bert_base_tokens_per_second": 1.6e6, "cosine_to_fp32": 0.999}
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
SWEPT = (8192, 16384, 32768, 131072)


def bert_base(like: Path, into: Path, **shape: int) -> Path:
    """Save random weights of BERT-base's shape (109M parameters), or of another, with the tokenizer, pooling and prompts of the model in `like`."""
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(like, into, ignore=shutil.ignore_patterns("*.safetensors", "onnx", "openvino", "*.bin"))
    torch.manual_seed(0)
    inner = transformer_folder(into)
    config = BertConfig(architectures=["BertModel"], **shape)
    BertModel(config).save_pretrained(inner)
    pooling = into / "1_Pooling/config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"word_embedding_dimension": config.hidden_size}))
    return into


def loaded(folder: str, precision: str = "auto", cache: Path | None = None) -> EngineEncoder:
    found = load_encoder(folder, torch_device=DEVICE, precision=precision, cache=cache)
    assert isinstance(found, EngineEncoder)
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call until the card has nothing left to do, and its result."""
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return time.perf_counter() - began, result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(folder: str, texts: list[str], options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Run all rounds for one model; return rates, roofs and what surrounds them."""
    startup, ours = timed(lambda: loaded(folder, cache=cache))
    tokenise_s, ids = timed(lambda: ours.tokens.ids(texts, ""))
    tokens = [len(i) for i in ids]
    some = sorted(random.Random(options.seed).sample(range(len(texts)), max(1, round(len(texts) * options.encode_share))))
    part, part_tokens = [texts[n] for n in some], sum(tokens[n] for n in some)
    plain, better = peers(ours.files.folder)
    arms: dict[str, Callable[[], float]] = {
        "bare_loop": lambda: sum(tokens) / timed(lambda: bare(ours, ids, len(ids)))[0],
        "ours": lambda: sum(tokens) / timed(lambda: ours.encode_documents(texts))[0],
        "tokenizer": lambda: sum(tokens) / timed(lambda: ours.tokens.ids(texts, ""))[0],
        "encode": lambda: part_tokens / timed(lambda: plain.encode(part, show_progress_bar=False))[0],
        "encode_bf16_256": lambda: part_tokens / timed(lambda: better.encode(part, batch_size=256, show_progress_bar=False))[0],
    }
    rates = turns(arms, options.rounds, options.seed)
    exact = loaded(folder, "fp32").encode_documents(part)
    cosine = (ours.encode_documents(part) * exact).sum(1)
    files = bert_files(ours.files.folder)
    assert files is not None
    return {
        "engine": {"name": ours.engine.name, "precision": ours.engine.precision, "batch_tokens": ours.budget.tokens, "packed": _packed(ours)},
        "dimension": ours.dimension, "tokens": sum(tokens), "startup_s": startup, "first_tokenising_s": tokenise_s,
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "of_encode": spread([a / b for a, b in zip(rates["ours"], rates["encode"], strict=True)]),
        "of_encode_bf16_256": spread([a / b for a, b in zip(rates["ours"], rates["encode_bf16_256"], strict=True)]),
        "cosine_to_fp32": {"min": float(cosine.min()), "mean": float(cosine.mean())},
        "roof": roof(files, tokens, statistics.median(rates["bare_loop"])),
        "swept": swept(ours, ids),
        "replicas": {str(n): replicas(folder, texts, sum(tokens), n, cache) for n in options.replicas},
    }  # fmt: skip


def turns(arms: dict[str, Callable[[], float]], rounds: int, seed: int) -> dict[str, list[float]]:
    """Run each arm once to warm it, then all of them in each round, in an order that changes."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-1, rounds):
        names = list(arms)
        random.Random(seed + number).shuffle(names)
        for name in names:
            rate = arms[name]()
            if number >= 0:
                rates[name].append(rate)
                print(f"round {number}, {name}: {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    return rates


def peers(folder: Path) -> tuple[Any, Any]:
    """Return the model in sentence-transformers: in float32, and in bfloat16."""
    import torch
    from sentence_transformers import SentenceTransformer

    plain, better = (
        SentenceTransformer(str(folder), device=DEVICE, local_files_only=True, model_kwargs={"dtype": dtype})
        for dtype in (torch.float32, torch.bfloat16)
    )
    return plain, better


def _packed(ours: EngineEncoder) -> bool:
    return getattr(ours.engine, "_attention", None) is not None


def swept(ours: EngineEncoder, ids: list[list[int]]) -> dict[str, dict[str, float]]:
    """Return the bare loop's rate by the tokens of a batch."""
    before, found = ours.budget.tokens, {}
    for tokens in SWEPT:
        ours.budget.tokens = tokens
        bare(ours, ids, len(ids))
        found[str(tokens)] = spread([sum(map(len, ids)) / timed(lambda: bare(ours, ids, len(ids)))[0] for _ in range(3)])
    ours.budget.tokens = before
    return found


def roof(files: BertFiles, lengths: list[int], rate: float) -> dict[str, float]:
    """Return what the card does at most: its rate of products of this model's shape, of large ones, and of copies; and our share of the first."""
    import torch

    forward = int(json.loads((files.folder / "config.json").read_text())["intermediate_size"])
    per_token = flops(files, forward, lengths) / sum(lengths)

    def product(rows: int, inner: int, columns: int) -> float:
        left = torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16)
        right = torch.randn(columns, inner, device=DEVICE, dtype=torch.bfloat16)
        return _rate(lambda: torch.nn.functional.linear(left, right), 2.0 * rows * inner * columns)

    held = torch.empty(1 << 30, device=DEVICE, dtype=torch.uint8)
    own = product(16384, files.hidden, forward)
    return {
        "mflop_per_token": per_token / 1e6, "product_of_its_shape_tflops": own / 1e12, "product_8192_tflops": product(8192, 8192, 8192) / 1e12,
        "copy_gb_per_s": _rate(held.clone, 2.0 * held.numel()) / 1e9, "share_of_product": rate * per_token / own,
        "roof_tokens_per_second": own / per_token,
    }  # fmt: skip


def _rate(call: Callable[[], Any], work: float) -> float:
    """Return work per second; the median of five times twenty calls."""
    call()
    return statistics.median(20 * work / timed(lambda: [call() for _ in range(20)] and None)[0] for _ in range(5))


def replicas(folder: str, texts: list[str], tokens: int, count: int, cache: Path) -> float:
    """Return the tokens per second of so many processes on one card, each with its share of the texts, once all are warm."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(count + 1)
    workers = [spawn.Process(target=_replica, args=(folder, texts[n::count], str(cache), ready), daemon=True) for n in range(count)]
    for worker in workers:
        worker.start()
    ready.wait(300)
    began = time.perf_counter()
    ready.wait(300)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return tokens / seconds


def _replica(folder: str, texts: list[str], cache: str, ready: Any) -> None:
    encoder = loaded(folder, cache=Path(cache))
    encoder.encode_documents(texts)
    ready.wait(300)
    encoder.encode_documents(texts)
    ready.wait(300)


def texts_of(options: argparse.Namespace, folder: Path) -> list[str]:
    if options.texts is not None:
        return list(json.loads(gzip.decompress(options.texts.read_bytes())))[: options.chunks]
    return [c.text for c in corpus(options.source, folder / "tree", options.chunks, options.seed)]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="a small model, whose tokenizer the large one gets too")
    parser.add_argument("--texts", type=Path, help="a gzipped JSON list of chunks, instead of cutting --source")
    parser.add_argument("--source", type=Path, action="append", help="Folders to draw files from; default: the standard library.")
    parser.add_argument("--chunks", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encode-share", type=float, default=0.1, help="part of the chunks that slow arms get")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4], help="processes on one card")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "embed_gpu.json"), help="- prints only")
    options = parser.parse_args()
    options.source = options.source or [Path(sysconfig.get_paths()["stdlib"])]
    with tempfile.TemporaryDirectory(prefix="dgb-", dir="/tmp") as held:
        folder = Path(held)
        texts = texts_of(options, folder)
        small = find_model(options.model, folder).folder
        models = {"bert_base": bert_base(small, folder / "bert_base"), "small": small}
        found = {name: measure(str(where), texts, options, folder / "cache") for name, where in models.items()}
    reached = {
        "bert_base_tokens_per_second": found["bert_base"]["tokens_per_second"]["ours"]["median"],
        "cosine_to_fp32": min(model["cosine_to_fp32"]["min"] for model in found.values()),
    }
    result = {
        "what": "real tokens per second on one card, texts to vectors of length 1 in host memory, beside encode, the tokenizer and the card's roofs",
        "chunks": len(texts), "rounds": options.rounds, "seed": options.seed, "encode_share": options.encode_share, "models": found,
        "targets": {name: {"target": t, "found": reached[name], "met": reached[name] >= t} for name, t in TARGETS.items()},
        "machine": {
            "cards": [card.model for card in card_facts() if card.present], "cores": os.cpu_count(), "load": os.getloadavg(),
            "system": platform.system(), "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in PACKAGES}, "numpy": np.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.output != "-":
        Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
