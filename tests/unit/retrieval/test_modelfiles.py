"""Digests of large files are kept, also by two threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dgpunet_dask.retrieval.modelfiles import _cached_sha256, _sha256


def test_two_threads_may_keep_one_digest_at_once(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"x" * (2 << 20))
    both, write = threading.Barrier(2), Path.write_text

    def write_text(path, *given, **more):
        write(path, *given, **more)
        both.wait(20)  # neither has put its own in place yet

    monkeypatch.setattr(Path, "write_text", write_text)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: _cached_sha256(file, tmp_path / "cache"), range(2)))
    assert found == [_sha256(file)] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1
