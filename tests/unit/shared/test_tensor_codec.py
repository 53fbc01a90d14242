"""Tensor payloads: exact sizes, known values, and every refusal (any input: tests/property)."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from scipy.linalg import hadamard

from shared.errors import CodecError
from shared.tensor_codec import EncodedTensor, Encoding, FloatArray, decode, encode, encoded_size


def normal(rows: int, columns: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def decoded(tensor: EncodedTensor, max_rows: int = 64) -> FloatArray:
    return decode(tensor, max_rows=max_rows, columns=tensor.columns)


@pytest.mark.parametrize(
    ("encoding", "size"),
    [
        (Encoding.FLOAT32, 3 * 70 * 4),
        (Encoding.FLOAT16, 3 * 70 * 2),
        (Encoding.INT8, 3 * 3 * 34),
        (Encoding.INT4, 3 * 3 * 18),
    ],
)
def test_sizes(encoding: Encoding, size: int) -> None:
    assert encoded_size(3, 70, encoding) == size
    assert len(encode(normal(3, 70), encoding).data) == size


@pytest.mark.parametrize(
    ("encoding", "error"),
    [
        (Encoding.FLOAT32, 0.0),
        (Encoding.FLOAT16, 1e-3),
        (Encoding.INT8, 0.01),
        (Encoding.INT4, 0.11),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_relative_errors(encoding: Encoding, error: float, compress: bool) -> None:
    values = normal(5, 576)
    got = decoded(encode(values, encoding, compress=compress))
    assert np.linalg.norm(got - values) <= error * np.linalg.norm(values)


@pytest.mark.parametrize(("encoding", "peak"), [(Encoding.INT8, 127), (Encoding.INT4, 7)])
def test_codes_on_the_grid_are_exact(encoding: Encoding, peak: int) -> None:
    codes = (np.arange(32) % (2 * peak + 1) - peak)[None] * 0.5
    codes[0, 5] = peak * 0.5
    values = (codes @ hadamard(32)).astype(np.float32)
    assert (decoded(encode(values, encoding)) == values).all()


def test_the_int4_layout_is_the_documented_one() -> None:
    codes = np.zeros((1, 32))
    codes[0, :3] = (7, -7, 1)
    data = encode((codes @ hadamard(32)).astype(np.float32), Encoding.INT4).data
    assert data[:2] == np.array(1.0, "<f2").tobytes()
    assert data[2:4] == bytes([0x0F | 0x10, 0x09 | 0x80])  # code + 8, even columns low


@pytest.mark.parametrize("encoding", list(Encoding))
def test_zeros_and_outliers(encoding: Encoding) -> None:
    assert (decoded(encode(np.zeros((2, 40), np.float32), encoding)) == 0).all()
    huge = np.full((1, 40), -1e6, np.float32)
    wanted = -1e6 if encoding is Encoding.FLOAT32 else -65504.0
    np.testing.assert_allclose(decoded(encode(huge, encoding)), wanted, rtol=1e-3)


def test_an_outlier_costs_its_neighbours_little() -> None:
    values = normal(64, 576)
    values[:, 7::64] *= 40
    for encoding in (Encoding.INT8, Encoding.INT4):
        error = decoded(encode(values, encoding)) - values
        plain = np.abs(values.reshape(64, -1, 32)).max(axis=2) / (
            127 if encoding is Encoding.INT8 else 7
        )
        usual = np.sqrt((plain**2).mean() / 12)  # of steps as large as the outliers make them
        assert np.sqrt((error**2).mean()) < 0.6 * usual


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", list(Encoding))
def test_values_that_are_not_finite_are_not_sent(encoding: Encoding, bad: float) -> None:
    values = normal(2, 40)
    values[1, 3] = bad
    with pytest.raises(CodecError, match="not finite"):
        encode(values, encoding)


def test_values_that_are_not_finite_are_not_taken() -> None:
    scale = np.array([[np.inf]], "<f2").view(np.uint8)
    block = np.concatenate([scale, np.ones((1, 32), np.uint8)], axis=1).tobytes()
    for tensor in (
        EncodedTensor(1, 1, Encoding.FLOAT32, False, np.array([np.nan], "<f4").tobytes()),
        EncodedTensor(1, 1, Encoding.FLOAT16, False, np.array([np.inf], "<f2").tobytes()),
        EncodedTensor(1, 32, Encoding.INT8, False, block),
    ):
        with pytest.raises(CodecError, match="not finite"):
            decoded(tensor)


def frame(size: int, *, declare: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=declare).compress(bytes(size))


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (EncodedTensor(0, 2, Encoding.FLOAT32, False, b""), "0 rows"),
        (EncodedTensor(65, 2, Encoding.FLOAT32, False, bytes(520)), "65 rows"),
        (EncodedTensor(1, 3, Encoding.FLOAT32, False, bytes(12)), "3 columns"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, False, bytes(7)), "7 bytes"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, False, bytes(9)), "9 bytes"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, bytes(8)), "unpacked"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, b""), "unpacked"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, frame(1 << 24)), "declares 16777216"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, frame(8, declare=False)), "declares"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, frame(8)[:-1]), "unpacked"),
        (EncodedTensor(1, 2, Encoding.FLOAT32, True, frame(8) + b"more"), "unpacked"),
    ],
)
def test_a_payload_that_does_not_hold_together_is_refused(
    tensor: EncodedTensor, named: str
) -> None:
    with pytest.raises(CodecError, match=named):
        decode(tensor, max_rows=64, columns=2)
