from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.chunks import chunks


@given(st.integers(0, 500), st.integers(0, 500), st.integers(3, 130))
def test_chunks_cover_all_once_and_none_is_alone(start: int, length: int, size: int) -> None:
    pieces = list(chunks(start, start + length, size))
    assert [i for a, b in pieces for i in range(a, b)] == list(range(start, start + length))
    assert all(b - a <= size for a, b in pieces)
    assert length == 1 or all(b - a >= 2 for a, b in pieces)
