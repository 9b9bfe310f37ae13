"""A query's text to its hits on a large index: by a head that has it open, while a job embeds on the same cores, and from a shell.

The chunks are real, cut from installed Python files and numbered where there are too few; their vectors are synthetic, sums of a random vector for each
word, since embedding a million chunks takes hours on a CPU. A query is embedded by the real model, and searched by meaning and by words.

    python bench/search.py                              # 100,000 chunks
    python bench/search.py --chunks 1000000 --no-load
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from embed import _cpu, version

from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.chunk import CHUNKER_VERSION, Chunk, chunks_of
from dgpunet_dask.retrieval.discover import Text, discover, read_text, roots_of
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_table, write_files
from dgpunet_dask.retrieval.index import Draft, Index, Manifest
from dgpunet_dask.retrieval.ingest import content_key
from dgpunet_dask.retrieval.lexicon import LEXICAL, write_lexicon
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.rows import Row, packed, space_of
from dgpunet_dask.retrieval.segments import Segment, SegmentWriter
from dgpunet_dask.retrieval.tokens import load_tokens
from dgpunet_dask.retrieval.words import words
from dgpunet_dask.testing.livecluster import LiveCluster, wait_for

DIMENSION = 384
QUERIES = (
    "parse the header of a message", "retry a request with exponential backoff", "convert a timestamp to local time", "read_csv chunk size",
    "walk a directory tree without following links", "quote a shell argument", "HTTPConnection timeout", "merge two sorted lists",
    "compute the median of a group", "close the file on error", "tokenize python source", "compress a stream of bytes",
)  # fmt: skip


def real_chunks() -> Iterator[list[Chunk]]:
    """Yield the chunks of each installed Python file."""
    tokens = load_tokens("minilm")
    for entry in discover(roots_of([sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")]), lambda *_: None):
        text = read_text(entry) if entry.path.endswith(".py") else None
        if isinstance(text, Text) and (found := list(chunks_of([(content_key(text.text, text.language), text.text, text.language)], tokens))):
            yield found


def numbered(count: int) -> Iterator[list[Chunk]]:
    """Yield files with about `count` chunks in all: the real ones, over again under other keys where there are too few."""
    known: list[list[Chunk]] = []
    seen: set[str] = set()
    left = count
    for chunks in real_chunks():
        if left <= 0:
            return
        if chunks[0].key not in seen:
            seen.add(chunks[0].key)
            known.append(chunks)
            left -= len(chunks)
            yield chunks
    again = 0
    while left > 0:
        again += 1
        for chunks in known:
            if left > 0:
                left -= len(chunks)
                yield [Chunk(**{**vars(c), "key": f"{c.key}-{again}", "text": f"{c.text}\n# copy {again}"}) for c in chunks]


class Vectors:
    """Texts to vectors: the sum of a random vector for each word, and a little that is the text's own."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._words: dict[str, np.ndarray] = {}

    def __call__(self, text: str) -> np.ndarray:
        parts = [self._word(word) for word in set(words(text))]
        total = np.sum(parts, axis=0, dtype=np.float32) if parts else np.zeros(DIMENSION, np.float32)
        total = total + self._random.standard_normal(DIMENSION, np.float32)
        return np.asarray(total / np.linalg.norm(total), np.float32)

    def _word(self, word: str) -> np.ndarray:
        if word not in self._words:
            self._words[word] = self._random.standard_normal(DIMENSION, np.float32)
        return self._words[word]


def build(home: Home, name: str, count: int, seed: int) -> dict[str, Any]:
    """Make an index of about `count` chunks and return what it is."""
    model, vectors, keys = find_model("minilm", home.root / "cache"), Vectors(seed), list[str]()
    made: dict[str, Any] = {}

    def write(draft: Draft) -> Manifest:
        import pyarrow as pa

        folder = draft.new_segment()
        with SegmentWriter(folder) as writer:
            for chunks in numbered(count):
                keys.append(chunks[0].key)
                rows = [Row(chunk, space_of(model.digest, None), vectors(chunk.text)) for chunk in chunks]
                with pa.ipc.open_stream(packed(rows)["chunks"]) as stream:
                    writer.append(stream.read_all(), np.stack([row.vector for row in rows if row.vector is not None]))
            facts = writer.finish()
        paths = {f"pkg{n % 97}/mod{n % 1009}/file_{n}.py": key for n, key in enumerate(keys)}
        write_files(draft.version / FILES, (FileRow(path, key, "python", 1, 1, 1, 1) for path, key in paths.items()))
        began = time.perf_counter()
        write_lexicon(draft.version / LEXICAL, None, None, read_table(draft.version / FILES), [Segment(folder)])
        made.update(chunks=facts.rows, files=len(paths), lexical_s=round(time.perf_counter() - began, 1))
        return Manifest(uuid.uuid4().hex, (), "minilm", model.digest, DIMENSION, None, CHUNKER_VERSION, files=len(paths), chunks=facts.rows)

    manifest = Index(home, name).publish(write)
    index = Index(home, name)
    folders = (index.version(manifest), *index.segments(manifest))
    return made | {"mib": sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file()) >> 20}


def timed(ask: Callable[[str], Any], rounds: int) -> dict[str, float]:
    """Ask all queries `rounds` times, one after another, and return quantiles in milliseconds."""
    took = []
    for _ in range(rounds):
        for query in QUERIES:
            began = time.perf_counter()
            ask(query)
            took.append((time.perf_counter() - began) * 1000)
    return {"n": len(took), **{f"p{q}_ms": round(float(np.quantile(took, q / 100)), 1) for q in (50, 90, 99)}}


def shell(cluster: LiveCluster, runs: int) -> dict[str, float]:
    """Search by commands of their own and return quantiles in milliseconds."""
    took = []
    for run in range(runs):
        began = time.perf_counter()
        process = cluster.command("search", "big", QUERIES[run % len(QUERIES)], "--json")
        out, err = process.communicate(timeout=120)
        if process.returncode or not json.loads(out)["hits"]:
            raise RuntimeError(err)
        took.append((time.perf_counter() - began) * 1000)
    return {"n": len(took), "p50_ms": round(float(np.median(took)), 1), "max_ms": round(max(took), 1)}


def bare(seconds: int = 5) -> dict[str, float]:
    """Start an interpreter that does nothing, for comparison with `shell`."""
    took = []
    for _ in range(seconds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        took.append((time.perf_counter() - began) * 1000)
    return {"p50_ms": round(float(np.median(took)), 1)}


def under_load(cluster: LiveCluster, ask: Callable[[str], Any], rounds: int) -> dict[str, Any]:
    """Ask while a job embeds the standard library, which takes minutes."""
    job = cluster.submit_named("embed-codebase", {"path": [sysconfig.get_path("stdlib")], "index": "load"}, key="load")
    wait_for("the first unit", lambda: cluster.asked(lambda api: api.show(job.job_id)).units.done > 0, 300.0)
    found = timed(ask, rounds)
    status = cluster.asked(lambda api: api.show(job.job_id))
    if status.state != "running":
        raise RuntimeError(f"the job was {status.state} before the queries ended: nothing was measured under load")
    cluster.asked(lambda api: api.cancel(job.job_id))
    return found | {"units_done_meanwhile": status.units.done}


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-load", action="store_true", help="do not measure beside a job")
    parser.add_argument("--output", default=str(Path(__file__).with_name("results") / "search.json"), help="- for none")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgs-") as folder:
        cluster = LiveCluster(Path(folder) / "h")
        cluster.home.ensure()
        began = time.perf_counter()
        found: dict[str, Any] = {
            "what": "query text to hits", "machine": _cpu(), "python": platform.python_version(),
            "versions": {name: version(name) for name in ("faiss-cpu", "tantivy", "numpy", "pyarrow")}, "seed": chosen.seed,
            "index": build(cluster.home, "big", chosen.chunks, chosen.seed), "build_s": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        cluster.up()
        try:
            found |= measured(cluster, chosen.rounds, load=not chosen.no_load)
        finally:
            left = cluster.down()
    print(json.dumps(found, indent=1))
    if left:
        raise SystemExit(f"left over: {left}")
    if chosen.output != "-":
        Path(chosen.output).write_text(json.dumps(found, indent=1) + "\n")


def measured(cluster: LiveCluster, rounds: int, *, load: bool) -> dict[str, Any]:
    """Return all timings."""
    api = cluster.api()

    def ask(query: str) -> Any:
        return api.search("big", {"queries": [{"query": query}], "k": 10})

    began = time.perf_counter()
    ask(QUERIES[0])
    found: dict[str, Any] = {"first_query_s": round(time.perf_counter() - began, 2)}
    took = [ask(query)[0]["took_ms"] for query in QUERIES for _ in range(3)]
    found["inside_the_head"] = {"p50_ms": round(float(np.median(took)), 1), "max_ms": round(max(took), 1)}
    found["over_http"] = timed(ask, rounds)
    found["from_a_shell"] = shell(cluster, 20)
    found["an_interpreter_alone"] = bare()
    if load:
        found["over_http_while_a_job_embeds"] = under_load(cluster, ask, rounds)
    return found


if __name__ == "__main__":
    main()
