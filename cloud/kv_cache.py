"""Keys and values of one session, for the layers that the cloud runs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.model_bundle import Architecture

_SMALLEST = 64


class KvCache:
    """Keys and values of layers ``first_layer`` to the last, for positions 0 .. ``length``-1.

    ``data`` is ``[layers, 2, kv_heads, capacity, head_size]``: a layer's keys and values are views
    that attention reads without a copy.  ``length`` moves on only when a whole pass is done, so a
    pass that failed leaves the cache as it was.
    """

    def __init__(
        self, arch: Architecture, first_layer: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.first_layer = first_layer
        self.length = 0
        self._max_positions = arch.max_positions
        layers = arch.layers - first_layer
        self.data = torch.empty(
            (layers, 2, arch.kv_heads, 0, arch.head_size), dtype=dtype, device=device
        )

    @property
    def capacity(self) -> int:
        """Positions that fit before memory must grow."""
        return self.data.shape[3]

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in all layers."""
        layers, both, heads, _, size = self.data.shape
        return layers * both * heads * size * self.data.element_size()

    def capacity_for(self, positions: int) -> int:
        """The capacity after :meth:`grow`: doubled until ``positions`` fit."""
        capacity = self.capacity or _SMALLEST
        while capacity < positions:
            capacity *= 2
        return max(positions, min(capacity, self._max_positions)) if positions else self.capacity

    def bytes_for(self, positions: int) -> int:
        """Bytes held once ``positions`` fit."""
        return self.capacity_for(positions) * self.position_bytes

    def grow(self, positions: int) -> None:
        """Make room for ``positions``; what is held is kept."""
        if positions <= self.capacity:
            return
        layers, both, heads, _, size = self.data.shape
        grown = self.data.new_empty((layers, both, heads, self.capacity_for(positions), size))
        grown[:, :, :, : self.length] = self.data[:, :, :, : self.length]
        self.data = grown

    def append(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``keys`` and ``values`` (``[n, kv_heads, head_size]``) of ``layer`` (counted from
        the model's first) at ``start``; return all up to there, ``[kv_heads, start + n, head]``."""
        stop = start + keys.shape[0]
        both = self.data[layer - self.first_layer]
        both[0, :, start:stop] = keys.transpose(0, 1)
        both[1, :, start:stop] = values.transpose(0, 1)
        return both[0, :, :stop], both[1, :, :stop]
