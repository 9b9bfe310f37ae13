from __future__ import annotations

import json
import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dgpunet_dask.retrieval.described import described
from dgpunet_dask.retrieval.exact import exact_scan, exact_scores, parts_of
from dgpunet_dask.retrieval.inverted import Inverted, _trained, lists_for, write_inverted
from dgpunet_dask.retrieval.opened import _Dense
from dgpunet_dask.retrieval.scans import IVF, SCAN, Scan, ScanFacts, kept, kinds_for, measured, worth, write_scan
from dgpunet_dask.retrieval.segments import FACTS, VECTORS, Segment, SegmentWriter, chunk_schema, digests_of
from dgpunet_dask.retrieval.verify import verify
from tests.unit.retrieval.test_search import make

ROWS, DIMENSION = 9000, 24


def unit(shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def chunks(rows):
    values = {"key": [f"k{n}" for n in range(rows)], "start_line": [1] * rows, "end_line": [1] * rows, "language": ["c"] * rows, "tokens": [1] * rows}
    values |= {name: [None] * rows for name in ("symbol", "kind", "scope")} | {"text": [f"t{n}" for n in range(rows)]}
    return pa.table([pa.array(values[f.name], f.type) for f in chunk_schema()], schema=chunk_schema())


def segment(folder, vectors):
    folder.mkdir()
    with SegmentWriter(folder) as writer:
        writer.append(chunks(len(vectors)), vectors)
        writer.finish()
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return segment(tmp_path_factory.mktemp("scans") / uuid.uuid4().hex, unit((ROWS, DIMENSION)))


def test_what_a_segment_gets_depends_on_its_size():
    assert [kinds_for(n) for n in (1, 8191, 8192, 262143, 262144)] == [(), (), ("fp16",), ("fp16",), ("ivf", "fp16")]
    assert [lists_for(n) for n in (1, 262144, 10**6, 10**7)] == [4, 2048, 4096, 16384]


def test_a_large_segment_says_what_its_scan_is_worth_and_a_small_one_has_none(large, tmp_path):
    told = json.loads((large / FACTS).read_text())
    assert told["scan"]["kind"] == "fp16"
    assert (told["scan"]["recall"], told["scan"]["exact_share"]) == (1.0, 0.0)
    assert set(told["digests"]) == {"chunks.arrow", "vectors.faiss", "keys.arrow", SCAN}
    small = segment(tmp_path / "s", unit((50, DIMENSION)))
    assert json.loads((small / FACTS).read_text())["scan"] is None
    assert not (small / SCAN).exists()


def test_the_file_is_what_faiss_itself_would_write(tmp_path):
    import faiss

    vectors = unit((500, DIMENSION))
    with (tmp_path / SCAN).open("wb") as file:
        write_scan(file, vectors)
    own = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    own.add(vectors)
    assert faiss.serialize_index(own).tobytes() == (tmp_path / SCAN).read_bytes()
    off = np.abs(faiss.read_index(str(tmp_path / SCAN)).reconstruct_n(0, 500) - vectors)
    assert (off <= np.abs(vectors) * 2.0**-11 + 2.0**-25).all()


@pytest.mark.parametrize("shape", ["even", "clustered", "copies", "nearly equal"])
def test_a_scan_finds_what_the_exact_one_finds(tmp_path, shape):
    random = np.random.default_rng(7)
    vectors = unit((4000, DIMENSION), 3)
    if shape != "even":
        centres = vectors[:20]
        spread = {"clustered": 0.05, "copies": 0.0, "nearly equal": 1e-5}[shape]
        vectors = centres[random.integers(0, 20, 4000)] + spread * random.normal(size=vectors.shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder = segment(tmp_path / "s", vectors)
    exact, mapped = exact_scan(folder / VECTORS), Segment(folder).vectors
    with (folder / SCAN).open("wb") as file:
        write_scan(file, mapped)
    scan = Scan(folder / SCAN, mapped, exact)
    for query in [*unit((20, DIMENSION), 11), *vectors[:5]]:
        for count in (1, 10, 216, 900):
            found, wanted = (np.sort(exact_scores(mapped, rows, query)) for rows in (scan.nearest(query, count), exact(query, count)))
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_scan_that_is_of_no_use_is_not_kept(tmp_path):
    """Where all is equally near, every query ends in the exact scan."""
    folder = segment(tmp_path / "s", np.repeat(unit((1, DIMENSION)), 8192, axis=0))
    told = json.loads((folder / FACTS).read_text())["scan"]
    assert (told["kind"], told["exact_share"]) == (None, 1.0)
    assert not (folder / SCAN).exists()
    assert len(_Dense(folder).nearest(unit(DIMENSION), 5, None)) == 5


def test_measuring_tells_a_scan_that_belongs_to_other_vectors(large, tmp_path):
    other, mapped = unit((ROWS, DIMENSION), 5), Segment(large).vectors
    with (tmp_path / SCAN).open("wb") as file:
        write_scan(file, other)
    found = measured(tmp_path, mapped, exact_scan(large / VECTORS), ScanFacts("fp16", 0.0, 0.0))
    assert not kept(found)


def test_the_bound_of_recall_decides():
    good = ScanFacts("fp16", 1.0, 0.0)
    assert [kept(f) for f in (good, replace(good, recall=0.9989), replace(good, exact_share=0.2))] == [True, False, False]
    assert [kept(replace(good, kind=kind, recall=0.991)) for kind in ("fp16", "ivf", None)] == [False, True, False]


def clustered(rows, dimension=16, seed=3):
    random = np.random.default_rng(seed)
    centres = unit((50, dimension), seed)
    vectors = centres[random.integers(0, 50, rows)] + 0.5 * unit((rows, dimension), seed + 1)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("copies", [False, True])  # of three vectors, so that most lists are empty
def test_an_inverted_file_is_what_faiss_itself_would_write(tmp_path, copies):
    import faiss

    vectors, lists = np.repeat(unit((3, 16)), 70, axis=0) if copies else clustered(6000), 16 if copies else 128
    vectors = vectors.astype(np.float16).astype(np.float32)  # what lies between two float16 it rounds upwards, not to the even one
    with (tmp_path / SCAN).open("wb") as file:
        write_inverted(file, vectors, lists)
    own = _trained(vectors, lists)
    for part in parts_of(vectors):  # near ties fall differently in products of other sizes
        own.add(part)
    assert faiss.serialize_index(own).tobytes() == (tmp_path / SCAN).read_bytes()


def test_an_inverted_file_reads_as_many_lists_as_it_takes(tmp_path):
    vectors = clustered(12000)
    folder = segment(tmp_path / "s", vectors)
    exact, mapped = exact_scan(folder / VECTORS), Segment(folder).vectors
    with (folder / SCAN).open("wb") as file:
        write_inverted(file, mapped, 256)
    few, many = (measured(folder, mapped, exact, ScanFacts(IVF, 0.0, 0.0, probes=n)) for n in (1, 64))
    assert few.recall < many.recall
    assert many.recall > 0.95
    assert measured(folder, mapped, exact, ScanFacts(IVF, 0.0, 0.0, probes=256)).recall == 1.0
    found = worth(folder, mapped, exact, IVF)
    assert found.probes in (8, 16, 32, 64, 128)
    assert kept(found) or found.probes == lists_for(12000) // 4
    scan = Inverted(folder / SCAN, mapped, exact, 1)
    assert len(set(scan.nearest(vectors[0], 11000).tolist())) == 11000  # beyond what its lists hold
    assert scan.fell_back == 1


def test_a_very_large_segment_is_searched_by_lists(tmp_path, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.retrieval.scans._LISTS_FROM", 10000)
    monkeypatch.setattr("dgpunet_dask.retrieval.scans.lists_for", lambda _: 128)
    folder = segment(tmp_path / "s", clustered(12000))
    told = json.loads((folder / FACTS).read_text())["scan"]
    assert told["kind"] == "ivf"
    assert told["recall"] >= 0.99
    assert told["probes"] in (8, 16, 32)
    opened = _Dense(folder)
    query = unit(16, 9)
    found, exact = ({row for _, row in opened.nearest(query, 100, rows)} for rows in (None, np.arange(12000)))
    assert len(found & exact) >= 95


def test_where_lists_find_too_little_all_is_scanned(tmp_path, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.retrieval.scans._LISTS_FROM", 10000)
    monkeypatch.setattr("dgpunet_dask.retrieval.scans.lists_for", lambda _: 256)
    monkeypatch.setattr("dgpunet_dask.retrieval.scans._MOST_LISTS", 256)  # one list of 256 is read
    folder = segment(tmp_path / "s", unit((12000, 24)))
    assert json.loads((folder / FACTS).read_text())["scan"]["kind"] == "fp16"


def test_a_segment_of_an_older_release_is_searched_exactly(large, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    for file in large.iterdir():
        if file.name not in (SCAN, FACTS):
            (older / file.name).symlink_to(file)
    told = json.loads((large / FACTS).read_text())
    del told["scan"]
    (older / FACTS).write_text(json.dumps(told))
    query = unit(DIMENSION, 9)
    assert Segment(older).facts.scan is None
    assert _Dense(older).nearest(query, 100, None) == _Dense(large).nearest(query, 100, None)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other"])
def test_without_its_scan_a_segment_is_searched_exactly_and_the_log_tells(large, tmp_path, caplog, damage):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in large.iterdir():
        if file.name != SCAN:
            (broken / file.name).symlink_to(file)
    whole = (large / SCAN).read_bytes()
    if damage != "gone":
        (broken / SCAN).write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": (large / VECTORS).read_bytes()}[damage])
    query = unit(DIMENSION, 9)
    assert _Dense(broken).nearest(query, 100, None) == _Dense(large).nearest(query, 100, None)
    assert "searched without its scan" in caplog.text


def test_an_index_tells_how_it_is_searched_and_verifying_measures_it_again(home):
    make(home, unit((ROWS, DIMENSION)))
    [told] = described(home, "x")["scans"]
    assert (told["chunks"], told["kind"], told["recall"]) == (ROWS, "fp16", 1.0)
    folder = home.indexes / "x" / "segments" / told["segment"]
    assert not [fault for fault in verify(home, "x").faults if "segment" in fault]

    (folder / SCAN).unlink()
    assert [fault for fault in verify(home, "x").faults if f"{SCAN} changed since written" in fault]

    with (folder / SCAN).open("wb") as file:
        write_scan(file, unit((ROWS, DIMENSION), 5))
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, "digests": digests_of(folder)}))
    assert [fault for fault in verify(home, "x").faults if "its scan finds" in fault]
