"""The tensor codec: what comes out is what went in, within each encoding's bound."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from shared.errors import CodecError
from shared.tensor_codec import EncodedTensor, Encoding, decode, encode, encoded_size

RNG = np.random.default_rng(3)
HIDDEN = (RNG.standard_normal((5, 100)) * np.logspace(-3, 2, 100)).astype(np.float32)


def coded(tensor: EncodedTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return decode(tensor, max_rows=1000, columns=tensor.columns)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_size_and_shape(encoding: Encoding, compress: bool) -> None:
    tensor = encode(HIDDEN, encoding, compress=compress)
    assert (tensor.rows, tensor.columns) == HIDDEN.shape
    if not compress:
        assert len(tensor.data) == encoded_size(5, 100, encoding)
    values = coded(tensor)
    assert (values.shape, values.dtype) == (HIDDEN.shape, np.dtype(np.float32))


def test_float32_is_exact() -> None:
    np.testing.assert_array_equal(coded(encode(HIDDEN, Encoding.FLOAT32, compress=True)), HIDDEN)


def test_float16_rounds_and_clips() -> None:
    values = coded(encode(HIDDEN, Encoding.FLOAT16))
    np.testing.assert_array_equal(values, HIDDEN.astype(np.float16).astype(np.float32))
    big = np.array([[1e9, -1e9]], np.float32)
    np.testing.assert_array_equal(coded(encode(big, Encoding.FLOAT16)), [[65504.0, -65504.0]])


@pytest.mark.parametrize(("encoding", "limit"), [(Encoding.INT8, 127), (Encoding.INT4, 7)])
def test_codes_are_within_half_a_step(encoding: Encoding, limit: int) -> None:
    values = coded(encode(HIDDEN, encoding))
    padded = np.zeros((5, 128), np.float32)
    padded[:, :100] = np.abs(HIDDEN)
    peaks = padded.reshape(5, 4, 32).max(axis=2).repeat(32, axis=1)[:, :100]
    # half a step, and what the scale loses in float16 at the largest code
    assert (np.abs(values - HIDDEN) <= peaks * (0.5 / limit + 2.0**-10) + 1e-6).all()


@pytest.mark.parametrize("encoding", list(Encoding))
def test_zeros_stay_zero(encoding: Encoding) -> None:
    zeros = np.zeros((2, 33), np.float32)
    np.testing.assert_array_equal(coded(encode(zeros, encoding)), zeros)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_rows_do_not_depend_on_how_they_were_cut(encoding: Encoding) -> None:
    together = coded(encode(HIDDEN, encoding))
    apart = [coded(encode(HIDDEN[row : row + 1], encoding, compress=True)) for row in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_on_both_sides(value: float) -> None:
    bad = HIDDEN.copy()
    bad[2, 50] = value
    with pytest.raises(CodecError, match="finite"):
        encode(bad, Encoding.INT8)
    with pytest.raises(CodecError, match="finite"):
        coded(EncodedTensor(5, 100, Encoding.FLOAT32, False, bad.tobytes()))


def test_a_scale_that_is_not_finite_is_refused() -> None:
    data = np.array([np.inf], "<f2").tobytes() + bytes([1] * 32)
    with pytest.raises(CodecError, match="finite"):
        coded(EncodedTensor(1, 32, Encoding.INT8, False, data))


FLAT = EncodedTensor(2, 32, Encoding.FLOAT16, False, bytes(128))


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (EncodedTensor(0, 32, Encoding.FLOAT16, False, b""), "rows"),
        (EncodedTensor(11, 32, Encoding.FLOAT16, False, bytes(11 * 64)), "rows"),
        (EncodedTensor(2, 64, Encoding.FLOAT16, False, bytes(256)), "columns"),
        (EncodedTensor(2, 32, Encoding.FLOAT16, False, bytes(127)), "127 bytes"),
        (EncodedTensor(2, 32, Encoding.INT4, False, bytes(128)), "128 bytes"),
        (EncodedTensor(2, 32, Encoding.FLOAT16, True, b"no frame"), "unpacked"),
    ],
)
def test_bytes_that_do_not_fit_their_shape_are_refused(tensor: EncodedTensor, named: str) -> None:
    assert decode(FLAT, max_rows=10, columns=32).shape == (2, 32)
    with pytest.raises(CodecError, match=named):
        decode(tensor, max_rows=10, columns=32)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    assert len(bomb) < 1 << 14
    with pytest.raises(CodecError, match="declares"):
        decode(EncodedTensor(2, 32, Encoding.FLOAT16, True, bomb), max_rows=10, columns=32)


def test_a_second_frame_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(128))
    with pytest.raises(CodecError):
        decode(EncodedTensor(2, 32, Encoding.FLOAT16, True, frame + frame), max_rows=9, columns=32)
