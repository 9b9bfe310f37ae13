from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval.columns import Texts

parts = st.lists(st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=12), max_size=4)


@settings(deadline=None)  # the first example imports
@given(parts, st.integers(0, 3))
def test_values_are_those_of_the_column(parts, cut):
    """In parts of any size, with and without values that are missing, and where a part is a piece of a longer array."""
    column = pa.chunked_array([pa.array(["left", None, "out"][:cut] + part, pa.string()).slice(cut) for part in parts], pa.string())
    texts = Texts(column)
    assert [texts[row] for row in range(len(column))] == column.to_pylist()
