"""Vectors kept between runs of a bench by the digest of their text, in numbered files of a folder; a killed run loses one block
at most."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 512


class VectorCache:
    """`encoder` is loaded only when a text is not known yet. Writers take turns: run one at a time on a folder."""

    def __init__(self, folder: Path, load: Any, model: str) -> None:
        self._folder = folder / model
        self._folder.mkdir(parents=True, exist_ok=True)
        self._load = load
        self._encoder: Any = None
        self._known: dict[bytes, np.ndarray] = {}
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path) as block:
                self._known.update(zip([k.tobytes() for k in block["keys"]], block["vectors"], strict=True))

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' vectors, ``(len(texts), dimension)``."""
        return self._vectors(texts, "encode_documents")

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of questions."""
        return self._vectors(texts, "encode_queries")

    def _vectors(self, texts: Sequence[str], how: str) -> np.ndarray:
        keys = [hashlib.blake2b(f"{how}\0{t}".encode(errors="surrogatepass"), digest_size=16).digest() for t in texts]
        missing = list({k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}.items())
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            self._encoder = self._encoder or self._load()
            vectors = getattr(self._encoder, how)([t for _, t in block])
            self._save([k for k, _ in block], vectors)
            print(f"  embedded {min(start + BLOCK, len(missing))} of {len(missing)}", flush=True)
        return np.stack([self._known[k] for k in keys])

    def _save(self, keys: list[bytes], vectors: np.ndarray) -> None:
        self._known.update(zip(keys, vectors, strict=True))
        name = hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
        partial = self._folder / f"{name}.partial"
        with partial.open("wb") as file:
            np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 16), vectors=vectors)
        os.replace(partial, self._folder / f"{name}.npz")
