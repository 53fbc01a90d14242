"""Hidden states as bytes: float32, float16, or int8 and int4 codes over blocks of 32 columns.

A block is turned by a Walsh-Hadamard matrix before it is coded, and back after (as QuaRot, arXiv
2404.00456, does with weights and activations): an outlier is spread over its block instead of
making the steps of all others as large as its own.  On real states that halves the error.

Every row is coded by itself, so the values that arrive do not depend on how rows were cut into
messages: a replay in other chunks gives the cloud the same context to the bit.  Zstandard runs over
the coded bytes; its output is bounded by the declared shape before anything is unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import zstandard

from shared.errors import CodecError

FloatArray = npt.NDArray[np.float32]

BLOCK = 32
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_ZSTD_LEVEL = 3


class Encoding(Enum):
    """How a value is stored before compression."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class EncodedTensor:
    """A matrix ``[rows, columns]`` of ``encoding``, perhaps compressed with Zstandard."""

    rows: int
    columns: int
    encoding: Encoding
    compressed: bool
    data: bytes


def encoded_size(rows: int, columns: int, encoding: Encoding) -> int:
    """Bytes of the coded matrix before compression."""
    blocks = rows * -(-columns // BLOCK)
    return {
        Encoding.FLOAT32: rows * columns * 4,
        Encoding.FLOAT16: rows * columns * 2,
        Encoding.INT8: blocks * (2 + BLOCK),
        Encoding.INT4: blocks * (2 + BLOCK // 2),
    }[encoding]


def encode(values: FloatArray, encoding: Encoding, *, compress: bool = False) -> EncodedTensor:
    """Code ``[rows, columns]`` float32; finite values beyond float16's range are clipped to it.

    Raises:
        CodecError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise CodecError("hidden states that are not finite cannot be sent")
    rows, columns = values.shape
    if encoding is Encoding.FLOAT32:
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    elif encoding is Encoding.FLOAT16:
        data = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2").tobytes()
    else:
        data = _quantize(values, encoding)
    if compress:
        data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)
    return EncodedTensor(rows, columns, encoding, compress, data)


def decode(tensor: EncodedTensor, *, max_rows: int, columns: int) -> FloatArray:
    """The matrix ``[rows, columns]`` as float32.

    Raises:
        CodecError: more rows than ``max_rows``, other columns than expected, bytes that do not
            fill the declared shape exactly, a damaged or oversized Zstandard frame, or values that
            are not finite.
    """
    if not 1 <= tensor.rows <= max_rows:
        raise CodecError(f"{tensor.rows} rows of context; 1 to {max_rows} are allowed at once")
    if tensor.columns != columns:
        raise CodecError(f"context has {tensor.columns} columns, the model has {columns}")
    size = encoded_size(tensor.rows, columns, tensor.encoding)
    data = _decompress(tensor.data, size) if tensor.compressed else tensor.data
    if len(data) != size:
        raise CodecError(f"context has {len(data)} bytes, its shape asks for {size}")
    if tensor.encoding is Encoding.FLOAT32:
        values = np.frombuffer(data, dtype="<f4").reshape(tensor.rows, columns)
    elif tensor.encoding is Encoding.FLOAT16:
        values = np.frombuffer(data, dtype="<f2").reshape(tensor.rows, columns)
    else:
        values = _dequantize(data, tensor.rows, columns, tensor.encoding)
    if not np.isfinite(values).all():
        raise CodecError("context has values that are not finite")
    return values.astype(np.float32)


def _decompress(data: bytes, size: int) -> bytes:
    """Unpack one frame that must hold exactly ``size`` bytes; nothing larger is ever allocated."""
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != size:
            raise CodecError(f"a compressed context declares {declared} bytes, not {size}")
        return zstandard.ZstdDecompressor().decompress(
            data, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CodecError(f"a compressed context cannot be unpacked: {error}") from None


def _quantize(values: FloatArray, encoding: Encoding) -> bytes:
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    padded[:, :columns] = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX)
    blocks = _turned(padded.reshape(rows, -1, BLOCK)) / BLOCK
    limit = 127 if encoding is Encoding.INT8 else 7
    scales = (np.abs(blocks).max(axis=2, keepdims=True) / limit).astype("<f2")
    divisor = scales.astype(np.float32)
    divisor[divisor == 0.0] = 1.0
    codes = np.clip(np.rint(blocks / divisor), -limit, limit).astype(np.int8)
    if encoding is Encoding.INT4:
        nibbles = (codes + 8).astype(np.uint8)
        codes = (nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)).view(np.int8)
    packed = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=2)
    return packed.tobytes()


def _dequantize(data: bytes, rows: int, columns: int, encoding: Encoding) -> FloatArray:
    width = 2 + (BLOCK if encoding is Encoding.INT8 else BLOCK // 2)
    packed = np.frombuffer(data, np.uint8).reshape(rows, -1, width)
    scales = np.ascontiguousarray(packed[:, :, :2]).view("<f2").astype(np.float32)
    raw = np.ascontiguousarray(packed[:, :, 2:])
    if encoding is Encoding.INT8:
        codes = raw.view(np.int8).astype(np.float32)
    else:
        codes = np.empty((*raw.shape[:2], BLOCK), np.float32)
        codes[:, :, 0::2] = raw & 0x0F
        codes[:, :, 1::2] = raw >> 4
        codes -= 8.0
    with np.errstate(invalid="ignore"):  # a scale that is not finite; the caller looks
        values: FloatArray = _turned(codes * scales).reshape(rows, -1)[:, :columns]
    return values


def _turned(blocks: FloatArray) -> FloatArray:
    """``[..., BLOCK]`` times the Walsh-Hadamard matrix of +-1, in natural order; twice is times
    ``BLOCK``.  By additions in a fixed order, so that a row's bits do not depend on its neighbours.
    """
    width = 1
    while width < BLOCK:
        pairs = blocks.reshape(*blocks.shape[:-1], -1, 2, width)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        blocks = np.stack([first + second, first - second], axis=-2).reshape(blocks.shape)
        width *= 2
    return blocks
