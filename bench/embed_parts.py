"""What `embed.py` measures beside its arms: the trees to embed, where the time goes, and what the processor could do at most."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dgpunet_dask.config.home import Home
from dgpunet_dask.model.stage import StageContext
from dgpunet_dask.retrieval.bertfiles import BertFiles
from dgpunet_dask.retrieval.chunk import Chunk, chunks_of
from dgpunet_dask.retrieval.discover import Text, discover, read_text, roots_of
from dgpunet_dask.retrieval.encoder import EngineEncoder
from dgpunet_dask.retrieval.tokens import load_tokens

ROOT = Path(__file__).parents[1]
UNIT_FILES = 16
#: Their own interpreter, with the texts as JSON in a file: Ray Data with our engine or `encode`, and plain Dask with `encode`.
PEERS = {
    "ray_data_ours": ("ray", "ours"),
    "ray_data_encode": ("ray", "encode"),
    "dask_encode": ("dask", "encode"),
}
PEER_CODE = """
import json, os, sys, time
runner, engine, model, texts_file = sys.argv[1:]
texts = json.load(open(texts_file)); cores = os.cpu_count()
class Embed:
    def __init__(self):
        if engine == "ours":
            from dgpunet_dask.retrieval.encoder import load_encoder
            loaded = load_encoder("minilm", threads=cores); self.embed = loaded.encode_documents
        else:
            import torch; torch.set_num_threads(cores)
            from sentence_transformers import SentenceTransformer
            loaded = SentenceTransformer(model, device="cpu"); self.embed = lambda t: loaded.encode(t, show_progress_bar=False)
        self.embed(["warm"] * 8)
    def __call__(self, batch):
        return {"vector": self.embed(list(batch["text"]))}
def main():
    began = time.perf_counter()
    if runner == "ray":
        import ray
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
        def run(texts):
            data = ray.data.from_items([{"text": t} for t in texts])
            return data.map_batches(Embed, batch_size=128, num_cpus=cores, concurrency=1).take_all()
        version = ray.__version__
    else:
        import distributed
        client = distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None)
        held = client.submit(Embed, actor=True).result()
        def run(texts):
            parts = [texts[n:n + 128] for n in range(0, len(texts), 128)]
            return [v for f in [held.__call__({"text": p}) for p in parts] for v in f.result()["vector"]]
        version = distributed.__version__
    run(texts[:64]); startup = time.perf_counter() - began  # Ray Data makes its actor anew for each data set
    began = time.perf_counter(); rows = run(texts); seconds = time.perf_counter() - began
    assert len(rows) == len(texts)
    print(json.dumps({"seconds": seconds, "startup_s": startup, "version": version}))
if __name__ == "__main__":
    main()
"""


def corpus(sources: list[Path], into: Path, chunks: int, seed: int, model: str = "minilm") -> list[Chunk]:
    """Copy Python files below `sources`, drawn by `seed`, until they hold so many chunks; return these."""
    counter = load_tokens(model)
    entries = [e for e in discover(roots_of(sources), lambda *_: None) if e.path.endswith(".py") and "/test" not in e.path]
    random.Random(seed).shuffle(entries)
    found: list[Chunk] = []
    for entry in entries:
        text = read_text(entry)
        if len(found) >= chunks:
            break
        if not isinstance(text, Text) or not text.text.strip():
            continue
        target = into / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(os.fsdecode(entry.file), target)
        found += chunks_of([(entry.path, text.text, text.language)], counter)
    return found


def flops(files: BertFiles, forward: int, lengths: list[int]) -> float:
    """Return the floating-point operations of all products for inputs of these lengths, without any padding."""
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    matrices = 2 * tokens * files.layers * (4 * files.hidden**2 + 2 * files.hidden * forward)
    return float(matrices + 4 * files.layers * files.hidden * pairs)


def gemm_flops_per_s(precision: str, files: BertFiles, forward: int, engine: str, seconds: float = 3.0) -> float:
    """Return the rate of the model's widest product, 1,024 tokens at once, on all cores in `engine`: no encoder is faster than it."""
    run = _openvino_product(precision, files.hidden, forward) if engine == "openvino" else _torch_product(precision, files.hidden, forward)
    run()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += run()
    return done * 2 * 1024 * files.hidden * forward / (time.perf_counter() - began)


def _torch_product(precision: str, hidden: int, forward: int) -> Callable[[], int]:
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = torch.randn(1024, hidden, dtype=dtype), torch.randn(forward, hidden, dtype=dtype)

    def run() -> int:
        with torch.inference_mode():
            for _ in range(20):
                torch.nn.functional.linear(left, right)
        return 20

    return run


def _openvino_product(precision: str, hidden: int, forward: int) -> Callable[[], int]:
    """A chain of products there and back, so that the graph's own inputs and outputs weigh little."""
    from dgpunet_dask.retrieval.openvino_engine import _settings, import_openvino

    openvino = import_openvino()
    from openvino import opset13 as op

    pairs, random_ = 10, np.random.default_rng(0)
    start = values = op.parameter([1024, hidden], np.float32)
    for _ in range(pairs):
        for shape in ((forward, hidden), (hidden, forward)):
            values = op.matmul(values, op.constant(random_.normal(0, 0.02, shape).astype(np.float32)), False, True)
    model = openvino.Model([op.result(values)], [start], "products")
    compiled = openvino.Core().compile_model(model, "CPU", _settings(precision, os.cpu_count()))
    queue = openvino.AsyncInferQueue(compiled, 2 * (os.cpu_count() or 1))
    given = random_.normal(0, 1, (1024, hidden)).astype(np.float32)

    def run() -> int:
        for _ in range(8):
            queue.start_async({0: given})
        queue.wait_all()
        return 8 * 2 * pairs

    return run


def breakdown(tree: Path, folder: Path, encoder: EngineEncoder, model: str = "minilm") -> dict[str, float]:
    """Return the seconds of each stage, one after the other in this process: what of a job is work, whatever the cluster adds."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
        return result

    stages = _stages()
    home = Home(folder / "breakdown-home").ensure()
    context = StageContext(threads=os.cpu_count() or 1, folder=folder / "scratch", home=home.root)
    (folder / "scratch").mkdir()
    made = {name: _made(getattr(stages, name), context) for name in ("Discover", "Chunk", "Write", "Publish")}
    made["Discover"].load(path=[str(tree)], index="breakdown", model=model)
    made["Chunk"].load()
    files = timed("discover", lambda: list(made["Discover"]()))
    units = [timed("chunk", lambda n=n: made["Chunk"](files[n : n + UNIT_FILES])) for n in range(0, len(files), UNIT_FILES)]
    items = []
    for unit in units:
        texts = [row.chunk.text for row in unit]
        ids = timed("tokenise", lambda texts=texts: encoder.tokens.ids(texts, ""))
        vectors = timed("forward", lambda ids=ids: bare(encoder, ids, len(ids)))
        for row, vector in zip(unit, vectors, strict=True):
            row.vector, row.embedded = vector, True
        item = timed("write", lambda unit=unit: made["Write"](unit))
        items += timed("transfer", lambda item=item: pickle.loads(pickle.dumps(item, protocol=5)))
    timed("publish", lambda: made["Publish"](iter(items)))
    return seconds


def bare(encoder: EngineEncoder, ids: list[list[int]], count: int) -> np.ndarray:
    """The inference loop alone, on tokens that are there: sorted, cut, forwarded."""
    from dgpunet_dask.retrieval.batching import TokenBatch, batches

    vectors = np.empty((count, encoder.engine.dimension), np.float32)
    cut = (TokenBatch(rows, [ids[n] for n in rows], []) for rows in batches([len(i) for i in ids], encoder.budget.tokens))
    for rows, pooled in encoder.engine.pooled(cut):
        vectors[rows] = pooled
    return vectors


def _made(kind: Any, context: StageContext) -> Any:
    stage = kind()
    stage.context = context
    return stage


def _stages() -> Any:
    spec = importlib.util.spec_from_file_location("embed_codebase_stages", ROOT / "workloads/embed_codebase/stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def peer(name: str, python: str | None, model: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    """Run a peer on `texts`, start-up apart; why it is left out where it is."""
    runner, engine = PEERS[name]
    if runner == "ray" and python is None:
        return {"left_out": "no interpreter with Ray Data was given: --ray"}
    script, listed = folder / "peer.py", folder / "texts.json"
    script.write_text(PEER_CODE)
    listed.write_text(json.dumps(texts))
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    command = [python if runner == "ray" and python else sys.executable, str(script), runner, engine, str(model), str(listed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        return {"left_out": done.stderr[-2000:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))
