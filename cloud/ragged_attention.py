"""Attention of a few new rows of each of many sessions over their own caches, in one call.

PyTorch has no such operator on a processor: one call for each session and layer costs more than the
arithmetic in it.  This kernel, compiled by Numba when the cloud starts, reads the sessions' caches
where they are.  What a row gets depends on that row and its cache alone, to the bit: not on what
else is in the pass, nor on whether its session's rows come one by one or a few at a time.

It runs on one core: on machines of two, to wake another thread took longer than it saved.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch import Tensor

from cloud.kv_cache import KvCache
from shared.model_bundle import Architecture

# more rows than this of a session are left to PyTorch, whose matrix products win in the end
FEW_ROWS = 8

_LOG = logging.getLogger("tandem.cloud")

_CHUNK = np.dtype(
    [
        ("first_row", np.int64),
        ("rows", np.int64),
        ("past", np.int64),  # positions held before the first row
        ("address", np.int64),  # of the cache's data
        ("capacity", np.int64),  # in positions
        ("first_layer", np.int64),
    ]
)
# sums may be taken in the order that vectors want; infinities and NaN keep their meaning
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_Array = npt.NDArray[Any]


class RaggedAttention:
    """Not thread-safe: it keeps the memory that scores are written to."""

    def __init__(self, arch: Architecture) -> None:
        group = arch.heads // arch.kv_heads
        self._kernel = _compiled(group, arch.head_size, kept=True)
        self._scores = np.empty((group, arch.max_positions), np.float32)
        # over nothing, so that it is compiled by now and nobody's first token waits for that
        rows = torch.empty((0, arch.heads + 2 * arch.kv_heads, arch.head_size))
        turned = rows[:, : arch.heads + arch.kv_heads].contiguous()
        nothing = self.chunks([]), 0, turned, rows, rows[:, : arch.heads].contiguous()
        try:
            self(*nothing)
        # it could not be kept, or what was kept is no use: a full disk, a file that a power cut
        # left half written; numba lets through whatever reading one raises
        except Exception as error:
            _LOG.warning("attention is compiled anew: what was kept is no use (%r)", error)
            self._kernel = _compiled(group, arch.head_size, kept=False)
            self(*nothing)

    def chunks(self, new: Sequence[tuple[KvCache, int, int]]) -> _Array:
        """The table that :meth:`__call__` takes, for one pass.

        Args:
            new: of each session its cache, with room for the new rows, and where among the packed
                rows the new ones begin and end.
        """
        table = np.zeros(len(new), _CHUNK)
        for entry, (cache, first, stop) in zip(table, new, strict=True):
            assert cache.length + stop - first <= min(cache.capacity, self._scores.shape[1])
            assert cache.data.is_contiguous()
            assert cache.data.dtype is torch.float32
            entry["first_row"], entry["rows"], entry["past"] = first, stop - first, cache.length
            entry["address"], entry["capacity"] = cache.data.data_ptr(), cache.capacity
            entry["first_layer"] = cache.first_layer
        return table

    def __call__(
        self, chunks: _Array, layer: int, turned: Tensor, projected: Tensor, out: Tensor
    ) -> None:
        """Store the new keys and values and attend.

        Args:
            chunks: from :meth:`chunks`; their caches live until this returns.
            layer: counted from the model's first.
            turned: ``[rows, heads + kv_heads, head_size]`` float32, rotated queries and keys.
            projected: ``[rows, heads + 2 * kv_heads, head_size]``, of which the last are values.
            out: ``[rows, heads, head_size]``; the chunks' rows are written.
        """
        for tensor in (turned, projected, out):  # of another kind they would be compiled for anew
            assert tensor.is_contiguous()
            assert tensor.dtype is torch.float32
        self._kernel(turned.numpy(), projected.numpy(), chunks, layer, self._scores, out.numpy())


@lru_cache
def _compiled(group: int, size: int, *, kept: bool) -> Callable[..., None]:
    """The kernel for ``group`` query heads to each of keys and values of ``size`` values; ``kept``
    on disk for the next process, or not."""

    def attend(
        turned: _Array,
        projected: _Array,
        chunks: _Array,
        layer: int,
        scores: _Array,
        out: _Array,
    ) -> None:
        heads = out.shape[1]
        kv_heads = heads // group
        scale = np.float32(1 / math.sqrt(size))
        mixed = np.empty((group, size), np.float32)
        for index in range(len(chunks)):
            chunk = chunks[index]
            past, capacity = chunk.past, chunk.capacity
            # a cache is [layers, 2, kv_heads, capacity, head_size]
            block = 4 * capacity * size
            at_layer = chunk.address + (layer - chunk.first_layer) * 2 * kv_heads * block
            for head in range(kv_heads):
                keys = carray(_pointer(at_layer + head * block), (capacity, size))
                values = carray(_pointer(at_layer + (kv_heads + head) * block), (capacity, size))
                for row in range(chunk.rows):
                    for i in range(size):
                        keys[past + row, i] = turned[chunk.first_row + row, heads + head, i]
                        values[past + row, i] = projected[
                            chunk.first_row + row, heads + kv_heads + head, i
                        ]
                first, stop = head * group, (head + 1) * group
                for row in range(chunk.rows):
                    queries = turned[chunk.first_row + row, first:stop]
                    seen = past + row + 1
                    for position in range(seen):
                        for g in range(group):
                            score = np.float32(0)
                            for i in range(size):
                                score += queries[g, i] * keys[position, i]
                            scores[g, position] = score * scale
                    for g in range(group):
                        _softmax(scores[g, :seen])
                    mixed[:] = 0
                    for position in range(seen):
                        for g in range(group):
                            weight = scores[g, position]
                            for i in range(size):
                                mixed[g, i] += weight * values[position, i]
                    out[chunk.first_row + row, first:stop] = mixed

    return _jit(attend, kept)


def _jit(function: Callable[..., None], kept: bool) -> Callable[..., None]:
    """Compiled when first called, in some seconds."""
    compiled: Callable[..., None]
    try:
        compiled = numba.njit(function, cache=kept, nogil=True, fastmath=_FAST)
    except RuntimeError:  # Numba's word for no place to write to
        compiled = numba.njit(function, nogil=True, fastmath=_FAST)
    return compiled


def _as_pointer(_typing: Any, _address: Any) -> Any:
    """An address (int64) as a pointer to float32."""
    pointer: Any = types.CPointer(types.float32)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), generate


_pointer: Any = intrinsic(_as_pointer)


def _softmax_in_place(scores: _Array) -> None:
    largest = scores[0]
    for i in range(len(scores)):
        largest = max(largest, scores[i])
    total = np.float32(0)
    for i in range(len(scores)):
        weight = _exp(scores[i] - largest)
        scores[i] = weight
        total += weight
    for i in range(len(scores)):
        scores[i] /= total


def _exp_of_negative(x: Any) -> Any:
    """``exp(x)`` for x at most 0, in operations that a vector has: 2^n times a polynomial for what
    is left of x (expf of the Cephes library), right to some 1e-7; no less than e^-87, which adds
    nothing to a sum with 1."""
    x = max(x, np.float32(-87))
    power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    series = series * rest + np.float32(1.3981999507e-3)
    series = series * rest + np.float32(8.3334519073e-3)
    series = series * rest + np.float32(4.1665795894e-2)
    series = series * rest + np.float32(1.6666665459e-1)
    series = series * rest + np.float32(5.0000001201e-1)
    value = series * (rest * rest) + rest + np.float32(1)
    return value * np.int32((np.int32(power) + 127) << 23).view(np.float32)


# ln 2 is taken off in two parts, which must not be put together first
_exp: Any = numba.njit(_exp_of_negative, fastmath={"contract", "nsz"})
_softmax: Any = numba.njit(_softmax_in_place, fastmath=_FAST)
