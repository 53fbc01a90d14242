"""The codec's bounds hold for every matrix, and no bytes make it raise anything else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.errors import CodecError
from shared.tensor_codec import EncodedTensor, Encoding, decode, encode, encoded_size

Matrix = npt.NDArray[np.float32]

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 70))
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
# inside float16's normal range: what hidden states are
ORDINARY = st.floats(-60_000, 60_000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def matrices(values: st.SearchStrategy[float]) -> st.SearchStrategy[Matrix]:
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=values))


def round_trip(values: Matrix, encoding: Encoding, compress: bool) -> Matrix:
    tensor = encode(values, encoding, compress=compress)
    return decode(tensor, max_rows=values.shape[0], columns=values.shape[1])


@given(matrices(ANY_FLOAT), st.booleans())
def test_float32_is_exact(values: Matrix, compress: bool) -> None:
    np.testing.assert_array_equal(round_trip(values, Encoding.FLOAT32, compress), values)


@given(matrices(ORDINARY), st.booleans())
def test_float16_is_within_half_a_unit(values: Matrix, compress: bool) -> None:
    error = np.abs(round_trip(values, Encoding.FLOAT16, compress) - values)
    assert (error <= np.abs(values) * 2.0**-11).all()


@given(
    matrices(ORDINARY),
    st.sampled_from([(Encoding.INT8, 127), (Encoding.INT4, 7)]),
    st.booleans(),
)
def test_codes_are_within_half_a_step(
    values: Matrix, coding: tuple[Encoding, int], compress: bool
) -> None:
    encoding, limit = coding
    got = round_trip(values, encoding, compress)
    padded = np.zeros((values.shape[0], -(-values.shape[1] // 32) * 32), np.float32)
    padded[:, : values.shape[1]] = np.abs(values)
    peak = padded.reshape(values.shape[0], -1, 32).max(axis=2)
    bound = peak * (0.5 / limit + 2.0**-10)  # half a step, and the scale's own rounding
    bound += limit * 2.0**-25  # a scale below float16's normal range
    assert (np.abs(got - values) <= bound.repeat(32, axis=1)[:, : values.shape[1]]).all()


@given(matrices(ANY_FLOAT), st.sampled_from(Encoding), st.booleans(), st.integers(0, 6))
def test_rows_do_not_depend_on_how_they_were_cut(
    values: Matrix, encoding: Encoding, compress: bool, cut: int
) -> None:
    together = round_trip(values, encoding, compress)
    parts = [part for part in np.split(values, [min(cut, len(values))]) if len(part)]
    apart = np.concatenate([round_trip(part, encoding, not compress) for part in parts])
    np.testing.assert_array_equal(together, apart)


@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.sampled_from(Encoding),
    st.booleans(),
    st.binary(max_size=300),
    st.booleans(),
)
def test_any_bytes_decode_or_are_a_codec_error(
    rows: int, columns: int, encoding: Encoding, compressed: bool, data: bytes, fit: bool
) -> None:
    if fit and data:  # bytes of the right length, so that the values themselves are looked at
        size = encoded_size(rows, columns, encoding)
        data = (data * (size // len(data) + 1))[:size]
        compressed = False
    try:
        values = decode(
            EncodedTensor(rows, columns, encoding, compressed, data), max_rows=32, columns=columns
        )
    except CodecError:
        return
    assert values.shape == (rows, columns)
    assert np.isfinite(values).all()
