from __future__ import annotations

import threading
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval.rows import space_of, text_digest
from dgpunet_dask.retrieval.vectorcache import Filler, VectorCache

SPACE = space_of("digest-1", None)


def vectors_of(words, dimension=8):
    """Vectors of length 1 that depend on the words alone."""
    found = np.array([np.random.default_rng(abs(hash(word)) % 2**32).normal(size=dimension) for word in words], np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def digests_of(words):
    return np.frombuffer(b"".join(text_digest(w) for w in words), np.uint8).reshape(-1, 16)


def add(cache, words):
    return cache.add(digests_of(words), vectors_of(words))


def found(cache, words):
    return cache.look_up([text_digest(w) for w in words])


def all_found(cache, words):
    return all(vector is not None for vector in found(cache, words))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=8), asked=st.lists(st.integers(0, 40), max_size=20), again=st.booleans())
def test_what_was_added_is_found_and_nothing_else(home, batches, asked, again):
    space = space_of(uuid.uuid4().hex, None)
    cache, known = VectorCache(home, space), set()
    for batch in batches:
        words = [f"word {n}" for n in batch]
        assert (add(cache, words) if words else 0) == len(set(words) - known)
        known |= set(words)
    reader = VectorCache(home, space) if again else cache
    words = [f"word {n}" for n in asked]
    for word, vector in zip(words, found(reader, words), strict=True):
        if word not in known:
            assert vector is None
        else:
            assert vector.dtype == np.float32
            assert float(vector @ vectors_of([word])[0]) > 1 - 1e-6
            assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


def test_spaces_do_not_mix(home):
    add(VectorCache(home, SPACE), ["one"])
    others = [space_of("digest-2", None), space_of("digest-1", 4)]
    assert [found(VectorCache(home, space), ["one"]) for space in others] == [[None], [None]]


def test_many_small_additions_make_few_packs(home):
    cache = VectorCache(home, SPACE)
    for n in range(0, 1500, 5):
        add(cache, [f"w{i}" for i in range(n, n + 5)])
    assert len(list(cache.folder.glob("*.pack"))) <= 3
    assert all(vector is not None for vector in found(cache, [f"w{i}" for i in range(1500)]))


@pytest.mark.parametrize("harm", [lambda b: b[:-1], lambda b: b"x" + b[1:], lambda _: b"", lambda b: b + b"x"])
def test_a_damaged_pack_is_removed_and_costs_only_what_it_held(home, harm, caplog):
    cache = VectorCache(home, SPACE)
    add(cache, ["one", "two"])
    [pack] = cache.folder.glob("*.pack")
    pack.write_bytes(harm(pack.read_bytes()))
    fresh = VectorCache(home, SPACE)
    assert found(fresh, ["one"]) == [None]
    assert not pack.exists()
    assert "removed from the cache" in caplog.text
    assert add(fresh, ["one"]) == 1
    assert found(fresh, ["one"])[0] is not None


def test_what_a_killed_writer_left_goes_with_the_next_addition(home):
    cache = VectorCache(home, SPACE)
    add(cache, ["one"])
    (cache.folder / "half.tmp").write_bytes(b"DGPUVEC1")
    add(cache, ["two"])
    assert [f.suffix for f in cache.folder.iterdir() if f.name != "lock"] == [".pack"]
    assert all_found(cache, ["one", "two"])


def test_readers_go_on_while_packs_are_merged(home):
    reader, writer = VectorCache(home, SPACE), VectorCache(home, SPACE)
    add(writer, ["one"])
    assert found(reader, ["one"])[0] is not None
    for n in range(20):
        add(writer, [f"more {n}"])
        assert found(reader, ["one"])[0] is not None
    assert all_found(reader, ["one", *(f"more {n}" for n in range(20))])


def test_writers_take_turns(home):
    words = [[f"{n}-{i}" for i in range(40)] for n in range(4)]
    threads = [threading.Thread(target=lambda part=part: [add(VectorCache(home, SPACE), [w]) for w in part]) for part in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all_found(VectorCache(home, SPACE), [w for part in words for w in part])


def test_a_filler_adds_many_units_at_once_and_the_rest_in_the_end(home):
    filler = Filler(home, most=10)
    for n in range(7):
        filler.add(SPACE, digests_of([f"{n} a", f"{n} b"]), vectors_of([f"{n} a", f"{n} b"]))
    words = [f"{n} {x}" for n in range(7) for x in "ab"]
    assert [v is None for v in found(VectorCache(home, SPACE), words)] == [False] * 10 + [True] * 4
    filler.flush()
    assert all_found(VectorCache(home, SPACE), words)


def test_a_full_disk_costs_a_filler_what_it_held_and_nothing_else(home, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    filler = Filler(home)
    filler.add(SPACE, digests_of(["one"]), vectors_of(["one"]))
    with monkeypatch.context() as patch:
        patch.setattr(VectorCache, "_write", full)
        filler.flush()
    assert "not kept" in caplog.text
    assert found(VectorCache(home, SPACE), ["one"]) == [None]
