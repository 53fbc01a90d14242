"""Matrices on their way to the edge: exact blocks where the model came with them, or rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prepare.base_model import FloatArray, QuantizedMatrix

BLOCK = 32  # columns per block of Q4_1 and Q8_0


@dataclass(frozen=True)
class Matrix:
    """``[rows, columns]`` weights and, where the model came with them, their exact blocks."""

    values: FloatArray
    blocks: QuantizedMatrix | None = None

    def rows(self, indices: npt.NDArray[Any] | None) -> Matrix:
        """A selection of rows (all of them for ``None``)."""
        if indices is None:
            return self
        blocks = self.blocks
        if blocks is not None:
            offset = None if blocks.offset is None else blocks.offset[indices]
            blocks = QuantizedMatrix(blocks.codes[indices], blocks.scale[indices], offset)
        return Matrix(self.values[indices], blocks)


def stack(matrices: Sequence[Matrix]) -> Matrix:
    """Several matrices with the same input as one, row under row."""
    values = np.concatenate([m.values for m in matrices])
    blocks = [m.blocks for m in matrices if m.blocks is not None]
    kinds = {(b.codes.dtype.name, b.offset is None) for b in blocks}
    if len(blocks) < len(matrices) or len(kinds) != 1:
        return Matrix(values)
    offsets = [b.offset for b in blocks if b.offset is not None]
    return Matrix(
        values,
        QuantizedMatrix(
            np.concatenate([b.codes for b in blocks]),
            np.concatenate([b.scale for b in blocks]),
            np.concatenate(offsets) if offsets else None,
        ),
    )


def block_size(blocks: QuantizedMatrix) -> int:
    """Columns per block; the last block of a row may be cut short."""
    columns, count = int(blocks.codes.shape[1]), int(blocks.scale.shape[1])
    return 1 << (-(-columns // count) - 1).bit_length()


def round_to_int8(matrix: Matrix, size: int) -> QuantizedMatrix:
    """Codes in [-127, 127] with one scale per ``size`` columns; Q8_0 blocks are kept as they
    are."""
    if size == BLOCK and matrix.blocks is not None and matrix.blocks.offset is None:
        return matrix.blocks
    rows, columns = matrix.values.shape
    count = -(-columns // size)
    padded = np.zeros((rows, count * size), np.float32)
    padded[:, :columns] = matrix.values
    folded = padded.reshape(rows, count, size)
    scale = np.abs(folded).max(axis=2) / np.float32(127)
    codes = np.rint(folded / np.where(scale == 0, 1, scale)[:, :, None]).astype(np.int8)
    return QuantizedMatrix(codes.reshape(rows, -1)[:, :columns], scale, None)


def round_to_q4_1(values: FloatArray) -> QuantizedMatrix:
    """Four-bit codes with a scale and an offset per 32 columns, as llama.cpp's Q4_1 does."""
    rows, columns = values.shape
    folded = values.reshape(rows, columns // BLOCK, BLOCK)
    offset = folded.min(axis=2)
    scale = (folded.max(axis=2) - offset) / np.float32(15)
    steps = (folded - offset[:, :, None]) / np.where(scale == 0, 1, scale)[:, :, None]
    codes = np.clip(np.rint(steps), 0, 15).astype(np.uint8)
    return QuantizedMatrix(codes.reshape(rows, columns), scale, offset)
