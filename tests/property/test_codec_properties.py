"""The tensor codec: errors within their bound, and no trace of how rows were cut into messages."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import hadamard

from shared.errors import CodecError
from shared.tensor_codec import BLOCK, EncodedTensor, Encoding, FloatArray, decode, encode

MAX_ROWS = 12
_FLOAT16_MAX = 65504.0
_HALF_STEP = 2.0**-11  # of a float16, relative
_SMALLEST_HALF_STEP = 2.0**-25  # of its subnormals, absolute

encodings = st.sampled_from(Encoding)


@st.composite
def matrices(draw: st.DrawFn, rows: int | None = None) -> FloatArray:
    """Float32 with outliers, zeros, subnormals, and columns that do not fill their last block."""
    shape = (draw(st.integers(1, MAX_ROWS)) if rows is None else rows, draw(st.integers(1, 80)))
    values = st.one_of(
        st.floats(-8, 8, width=32), st.floats(allow_nan=False, allow_infinity=False, width=32)
    )
    return draw(hnp.arrays(np.float32, shape, elements=values, fill=st.just(np.float32(0.5))))


def bound(values: FloatArray, encoding: Encoding) -> npt.NDArray[np.float64]:
    """How far each decoded value may lie from the original (clipped to float16's range)."""
    wide = values.astype(np.float64)
    if encoding is Encoding.FLOAT32:
        return np.zeros_like(wide)
    if encoding is Encoding.FLOAT16:
        return np.maximum(np.abs(wide) * _HALF_STEP, _SMALLEST_HALF_STEP)
    codes = 127 if encoding is Encoding.INT8 else 7
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // BLOCK) * BLOCK))
    padded[:, :columns] = wide
    blocks = padded.reshape(rows, -1, BLOCK)
    step = np.abs(blocks @ hadamard(BLOCK) / BLOCK).max(axis=2) / codes
    # half a step of rounding, and the rounding of the step itself at its largest multiple
    error = 0.51 * step + codes * np.maximum(step * _HALF_STEP, _SMALLEST_HALF_STEP)
    # in the worst case all columns of a block err the same way, and turning back adds them up; the
    # additions themselves round as well
    total = BLOCK * error + BLOCK * np.abs(blocks).max(axis=2) * 2.0**-20
    return np.asarray(total.repeat(BLOCK, axis=1)[:, :columns])


@given(matrices(), encodings, st.booleans())
@settings(deadline=None)
def test_a_round_trip_stays_within_its_bound(
    values: FloatArray, encoding: Encoding, compress: bool
) -> None:
    coded = encode(values, encoding, compress=compress)
    decoded = decode(coded, max_rows=MAX_ROWS, columns=values.shape[1])
    wanted = values
    if encoding is not Encoding.FLOAT32:
        wanted = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX)
    assert decoded.dtype == np.float32
    assert (np.abs(decoded.astype(np.float64) - wanted) <= bound(wanted, encoding)).all()


@given(matrices(), encodings, st.lists(st.integers(1, MAX_ROWS - 1), max_size=4))
@settings(deadline=None)
def test_chunks_decode_to_the_bits_of_the_whole(
    values: FloatArray, encoding: Encoding, cuts: list[int]
) -> None:
    columns = values.shape[1]
    whole = decode(encode(values, encoding), max_rows=MAX_ROWS, columns=columns)
    chunks = [chunk for chunk in np.split(values, sorted(set(cuts))) if len(chunk)]
    parts = [
        decode(encode(chunk, encoding, compress=True), max_rows=MAX_ROWS, columns=columns)
        for chunk in chunks
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(
    st.integers(0, 1 << 22), st.integers(0, 200), encodings, st.booleans(), st.binary(max_size=300)
)
@settings(deadline=None)
def test_any_payload_decodes_finite_or_is_a_codec_error(
    rows: int, columns: int, encoding: Encoding, compressed: bool, data: bytes
) -> None:
    try:
        values = decode(
            EncodedTensor(rows, columns, encoding, compressed, data), max_rows=512, columns=8
        )
    except CodecError:
        return
    assert values.shape == (rows, 8)
    assert np.isfinite(values).all()


@given(matrices(), encodings, st.booleans(), st.data())
@settings(deadline=None)
def test_a_damaged_payload_decodes_finite_or_is_a_codec_error(
    values: FloatArray, encoding: Encoding, compress: bool, data: st.DataObject
) -> None:
    coded = encode(values, encoding, compress=compress)
    damaged = bytearray(coded.data)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(damaged) // 2, len(damaged))) :]
    rows, columns = values.shape
    try:
        decoded = decode(
            EncodedTensor(rows, columns, encoding, compress, bytes(damaged)),
            max_rows=MAX_ROWS,
            columns=columns,
        )
    except CodecError:
        return
    assert np.isfinite(decoded).all()
