"""Finding functions: by their docstrings, by their docstrings with every name taken away, by their names, and by commits that
edited them.

A package is one pool: the chunks of all its files, docstrings blanked (see docstring_corpus.py). A question's answer is the
chunk that holds most lines of its function. Arms, over the same chunks: BM25 of words between spaces, BM25 of split
identifiers, dense, reciprocal rank fusion (k = 60) of the last two, and ours: the lexical index fused with dense and ranked by
rules. Ours without the rules is shown apart. The rules' weights were chosen on the development packages; the others only
report. `anchor` is dense within pools of 1,000 chunks drawn from all packages, where MiniLM is known to be near 0.79 on
CodeSearchNet. Vectors are kept under --cache, so that a second run takes a minute.

    python bench/retrieval.py --cache CACHE
    python bench/retrieval.py --cache CACHE --packages tornado --output -
    python bench/retrieval.py --cache CACHE --packages '' --repo PATH          # commit subjects of a repository's history
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from commit_corpus import commit_corpus
from docstring_corpus import Corpus, Question, corpus_of, package_folder, sources
from retrieval_arms import (
    Bm25,
    Ours,
    Pool,
    best_cover,
    fusion_alone,
    gain,
    measured,
    places,
    pool_of,
    reciprocal,
    split_identifiers,
    split_spaces,
    top,
)  # fmt: skip
from vector_cache import VectorCache

from dgpunet_dask.retrieval.chunk import CHUNKER_VERSION, chunks_of
from dgpunet_dask.retrieval.encoder import load_encoder
from dgpunet_dask.retrieval.tokens import load_tokens

MODEL = "minilm"
#: With `:N`, N files spread over the package.
DEVELOPMENT = ("stdlib:90", "networkx", "click")
HELD_OUT = ("tornado", "distributed", "werkzeug", "rich")
TARGETS = {"above_fusion": 0.04, "above_best_baseline": 0.02}
BASELINES = ("bm25 spaces", "bm25 identifiers", "dense", "fusion")
ANCHOR_POOL = 1000


def rankings(pool: Pool, questions: list[str], vectors: np.ndarray) -> dict[str, list[list[int]]]:
    """Return each arm's ranking of the pool for each question."""
    texts = [c.text for c in pool.chunks]
    spaces, identifiers = Bm25(texts, split_spaces), Bm25(texts, split_identifiers)
    found: dict[str, list[list[int]]] = {arm: [] for arm in (*BASELINES, "ours, no rules", "ours")}
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(pool, Path(folder) / "lexical")
        for text, cosines in zip(questions, vectors @ pool.vectors.T, strict=True):
            dense, lexical = top(cosines), top(identifiers.scores(text))
            arms = (top(spaces.scores(text)), lexical, dense, reciprocal([dense, lexical]))
            for arm, ranking in zip(BASELINES, arms, strict=True):
                found[arm].append(ranking)
            ranked = ours.ranked(text, cosines)
            found["ours, no rules"].append(ours.numbers(fusion_alone(ranked)))
            found["ours"].append(ours.numbers(ranked))
    return found


def pooled(corpus: Corpus, cache: VectorCache) -> tuple[Pool, dict[str, list[int]]]:
    """Chunk and embed a corpus; also return the numbers of each file's chunks."""
    files = [(path, text, "python") for path, text in corpus.files.items()]
    chunks = list(chunks_of(files, load_tokens(MODEL)))
    pool = pool_of(chunks, cache.documents([c.text for c in chunks]))
    by_path: dict[str, list[int]] = {}
    for number, chunk in enumerate(pool.chunks):
        by_path.setdefault(chunk.path, []).append(number)
    return pool, by_path


def truths_of(pool: Pool, by_path: dict[str, list[int]], questions: list[Question]) -> list[set[int]]:
    covers = [best_cover(pool, by_path, q.path, q.start, q.end) for q in questions]
    return [set() if cover is None else {cover} for cover in covers]


def spans(corpus: Corpus, pool: Pool, questions: list[Question], truths: list[set[int]]) -> dict[str, float]:
    """Which share of answers is the function's very lines, and which share of all chunks says what its lines say."""
    whole = [(pool.chunks[n].start_line, pool.chunks[n].end_line) == (q.start, q.end) for q, t in zip(questions, truths, strict=True) for n in t]
    lines = {path: text.split("\n") for path, text in corpus.files.items()}
    said = [c.text in "\n".join(lines[c.path][c.start_line - 1 : c.end_line]) for c in pool.chunks]
    return {"answers_that_are_the_function": round(float(np.mean(whole)), 4), "chunks_that_are_their_lines": round(float(np.mean(said)), 4)}


def compared(found: dict[str, list[list[int]]], truths: list[set[int]]) -> dict[str, Any]:
    """Measure every arm, and ours against them."""
    at = {arm: places(ranking, truths) for arm, ranking in found.items()}
    arms = {arm: measured(p) for arm, p in at.items()}
    best = max(BASELINES, key=lambda arm: arms[arm]["ndcg_at_10"])
    return {
        "questions": len(truths), "arms": arms, "best_baseline": best,
        "above_fusion": margin(at["ours"], at["fusion"]), "above_best_baseline": margin(at["ours"], at[best]),
    }  # fmt: skip


def margin(ours: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return the mean gain in NDCG@10 with its paired bootstrap 95% interval."""
    gains = gain(ours) - gain(other)
    draws = np.random.default_rng(seed).integers(0, len(gains), (2000, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    return {"ndcg_at_10": round(float(gains.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def docstrings(name: str, limit: int | None, cache: VectorCache, *, renamed: bool) -> tuple[dict[str, Any], Any]:
    corpus = corpus_of(name, sources(package_folder(name), limit), renamed=renamed)
    pool, by_path = pooled(corpus, cache)
    truths = truths_of(pool, by_path, corpus.questions)
    texts = [q.text for q in corpus.questions]
    vectors = cache.queries(texts)
    result = {"files": len(corpus.files), "chunks": len(pool.chunks), "left_out": dict(corpus.left_out)}
    result |= spans(corpus, pool, corpus.questions, truths) | compared(rankings(pool, texts, vectors), truths)
    return result, (corpus, pool, by_path, truths, vectors)


def names(corpus: Corpus, pool: Pool, by_path: dict[str, list[int]], cache: VectorCache) -> dict[str, Any]:
    """Ask for functions by name alone; an answer is any chunk in which a function of that name begins."""
    asked = list(dict.fromkeys(q.name.rpartition(".")[2] for q in corpus.questions))
    truths = []
    for name in asked:
        covers = [best_cover(pool, by_path, path, line, line) for path, line in corpus.defined[name]]
        truths.append({cover for cover in covers if cover is not None})
    return compared(rankings(pool, asked, cache.queries(asked)), truths)


def commits(repository: Path, limit: int, under: str, cache: VectorCache) -> dict[str, Any]:
    corpus, asked = commit_corpus(repository, limit, under)
    pool, by_path = pooled(corpus, cache)
    truths = [set().union(*truths_of(pool, by_path, questions)) for _, questions in asked]
    texts = [subject for subject, _ in asked]
    return {"under": under, "files": len(corpus.files), "chunks": len(pool.chunks)} | compared(rankings(pool, texts, cache.queries(texts)), truths)


def anchor(parts: list[Any], seed: int = 0) -> float:
    """Dense NDCG@10 where 999 chunks of all packages stand against the answer."""
    everything = np.concatenate([pool.vectors for _, pool, *_ in parts])
    rng = np.random.default_rng(seed)
    found = []
    for _, pool, _, truths, vectors in parts:
        for truth, vector in zip(truths, vectors, strict=True):
            others = everything[rng.choice(len(everything), min(ANCHOR_POOL, len(everything)) - 1, replace=False)]
            best = max((float(pool.vectors[n] @ vector) for n in truth), default=-1.0)
            found.append(1 + int((others @ vector > best + 1e-6).sum()))
    return round(float(gain(np.array(found, float)).mean()), 4)


def table(title: str, result: dict[str, Any]) -> None:
    print(f"\n{title}: {result['questions']} questions, {result.get('chunks', 'the same')} chunks")
    for arm, m in result["arms"].items():
        print(f"  {arm:18} NDCG@10 {m['ndcg_at_10']:.3f} [{m['interval'][0]:.3f}, {m['interval'][1]:.3f}]  MRR {m['mrr']:.3f}  "
              f"R@1 {m['recall_at_1']:.3f}  R@10 {m['recall_at_10']:.3f}")  # fmt: skip
    print(f"  ours above fusion {result['above_fusion']['ndcg_at_10']:+.3f}, above {result['best_baseline']} "
          f"{result['above_best_baseline']['ndcg_at_10']:+.3f}", flush=True)  # fmt: skip


def measure(arguments: argparse.Namespace, cache: VectorCache) -> dict[str, Any]:
    results: dict[str, Any] = {}
    parts = []
    for spec in filter(None, arguments.packages.split(",")):
        name, _, files = spec.partition(":")
        limit = arguments.limit or (int(files) if files else None)
        role = "development" if spec in DEVELOPMENT else "held out"
        results[spec], part = docstrings(name, limit, cache, renamed=False)
        results[spec]["role"] = role
        table(f"{spec} ({role}), docstrings", results[spec])
        parts.append(part)
        results[spec]["names"] = names(*part[:3], cache)
        table(f"{spec} ({role}), names", results[spec]["names"])
        if spec in arguments.renamed.split(","):
            results[spec]["renamed"], _ = docstrings(name, limit, cache, renamed=True)
            table(f"{spec} ({role}), docstrings, every name renamed", results[spec]["renamed"])
    if parts:
        results["anchor"] = {"of": list(results), "pool": ANCHOR_POOL, "dense_ndcg_at_10": anchor(parts), "known_of_minilm": 0.79}
        print(f"\ndense in pools of {ANCHOR_POOL}: {results['anchor']['dense_ndcg_at_10']}")
    if arguments.repo:
        results["commits"] = commits(arguments.repo, arguments.commits, arguments.under, cache)
        table("commit subjects", results["commits"])
    return results


def known(output: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run with the same model, chunks and libraries found, so that packages may be measured one by one."""
    path = Path(output)
    earlier = json.loads(path.read_text(encoding="utf-8")) if output != "-" and path.exists() else {}
    return earlier if all(earlier.get(name) == results[name] for name in ("model", "chunker", "python", "versions")) else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for vectors")
    parser.add_argument("--packages", default=",".join((*DEVELOPMENT, *HELD_OUT)), help="installed packages, or stdlib; NAME:N takes N files")
    parser.add_argument("--renamed", default="", help="of these packages, the harder split too")
    parser.add_argument("--limit", type=int, help="files of each package")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repo", type=Path, help="a git repository with Python files, whose commits are asked for")
    parser.add_argument("--under", default="", help="only what lies in this folder of the repository")
    parser.add_argument("--commits", type=int, default=300)
    parser.add_argument("--output", default=str(Path(__file__).parent / "results/retrieval.json"))
    arguments = parser.parse_args()
    cache = VectorCache(arguments.cache, lambda: load_encoder(MODEL, threads=arguments.threads), MODEL)
    results = {"targets": TARGETS, "model": MODEL, "chunker": CHUNKER_VERSION, "python": platform.python_version(),
               "versions": {p: version(p) for p in ("tantivy", "torch")}, **measure(arguments, cache)}  # fmt: skip
    text = json.dumps(known(arguments.output, results) | results, indent=1)
    print(text) if arguments.output == "-" else Path(arguments.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
