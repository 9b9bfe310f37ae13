"""Items survive being packed, and a file that is not whole is never taken for one."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgpunet_dask.errors import DamagedFile, NewerFormat
from dgpunet_dask.stagehost.frames import ALIGN, SMALL_BUFFER, nbytes_of, pack, packed_size, read_frames, unpack, write_frames

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
arrays = hnp.arrays(
    dtype=st.sampled_from([np.uint8, np.int64, np.float32, np.float64]),
    shape=st.one_of(hnp.array_shapes(max_dims=3, max_side=8), st.just((40, 64)), st.just((0,)), st.just((3, 0))),
)


@given(st.lists(plain, max_size=6))
def test_plain_items_come_back_from_frames_and_from_a_file(items):
    assert unpack(pack(items)) == items
    assert unpack(_through_file(pack(items))) == items


@given(st.lists(arrays, max_size=4))
def test_arrays_come_back_equal_aligned_and_writable_from_a_file(items):
    found = unpack(_through_file(pack(items)))
    assert len(found) == len(items)
    for before, after in zip(items, found, strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
        assert after.flags.aligned
        assert after.flags.writeable


def test_large_arrays_are_not_copied_and_small_ones_have_no_frame_of_their_own():
    large, small = np.arange(SMALL_BUFFER, dtype=np.float64), np.arange(8)
    frames = pack([large, small])
    assert len(frames) == 2
    assert np.shares_memory(np.frombuffer(frames[1], np.float64), large)
    assert np.shares_memory(unpack(frames)[0], large)


def test_arrays_that_are_not_contiguous_are_packed_too():
    grid = np.arange(200 * 200).reshape(200, 200)
    for items in ([grid[::2, ::3]], [np.asfortranarray(grid)], [pickle.PickleBuffer(bytes(8192))]):
        found = unpack(_through_file(pack(items)))[0]
        np.testing.assert_array_equal(np.asarray(found), np.asarray(items[0]))


@given(st.one_of(plain, arrays))
def test_packed_size_counts_the_content(item):
    assert packed_size(item) >= len(pickle.dumps(item, protocol=5)) - 512


def test_packed_size_of_an_array_is_about_its_bytes():
    assert 8_000_000 <= packed_size(np.zeros(1_000_000)) < 8_001_000
    assert nbytes_of(pack([np.zeros(1_000_000)])) == pytest.approx(8_000_000, abs=1000)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.data())
def test_a_file_cut_anywhere_is_refused(frames, data):
    whole = _file_of(frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DamagedFile):
        read_frames(io.BytesIO(whole[:cut]))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.data())
def test_a_file_with_one_changed_byte_is_refused(frames, data):
    whole = bytearray(_file_of(frames))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((DamagedFile, NewerFormat)):
        read_frames(io.BytesIO(whole))


def test_a_file_with_more_behind_it_is_refused():
    with pytest.raises(DamagedFile):
        read_frames(io.BytesIO(_file_of([b"abc"]) + b"\0"))


def test_a_newer_format_is_named_as_such():
    whole = bytearray(_file_of([b"abc"]))
    whole[8:12] = (2).to_bytes(4, "big")
    with pytest.raises(NewerFormat) as caught:
        read_frames(io.BytesIO(whole))
    assert caught.value.fields["found"] == 2


def test_a_path_can_be_written_and_read_and_is_named_in_errors(tmp_path):
    path = tmp_path / "unit"
    digest = write_frames(path, pack(["x" * 100_000]))
    assert path.read_bytes()[-32:].hex() == digest
    assert unpack(read_frames(path)) == ["x" * 100_000]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=str(path)):
        read_frames(path)


def test_frames_start_at_aligned_places():
    whole = _file_of([b"a", b"b" * 70, b"c"])
    assert [whole.index(letter * n) % ALIGN for letter, n in ((b"b", 70), (b"c", 1))] == [0, 0]


def _file_of(frames):
    out = io.BytesIO()
    write_frames(out, frames)
    return out.getvalue()


def _through_file(frames):
    return read_frames(io.BytesIO(_file_of(frames)))
