"""Buffers of one generation, allocated once: keys and values, hidden states, rotary tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.model_bundle import Architecture

FloatArray = npt.NDArray[np.float32]


class KvCache:
    """Keys and values of one graph's layers, written in place by ONNX Runtime.

    ``length`` positions are filled.  Forgetting positions needs no work on the buffers: attention
    reads ``length`` positions and the next run overwrites what lies behind them.
    """

    def __init__(self, layers: int, arch: Architecture, max_positions: int) -> None:
        shape = (layers, 1, arch.kv_heads, max_positions, arch.head_size)
        # zeros come from the system as untouched pages: memory is used as positions are
        self.keys: FloatArray = np.zeros(shape, np.float32)
        self.values: FloatArray = np.zeros(shape, np.float32)
        self.length = 0

    def truncate(self, positions: int) -> None:
        """Forget every position from ``positions`` on."""
        self.length = min(self.length, positions)

    def take_over(self, other: KvCache) -> None:
        """The positions of a smaller cache of the same graph."""
        length = self.length = other.length
        self.keys[..., :length, :] = other.keys[..., :length, :]
        self.values[..., :length, :] = other.values[..., :length, :]

    @property
    def bytes_per_position(self) -> int:
        """Memory that one filled position holds."""
        positions: int = self.keys.shape[3]
        return (self.keys.nbytes + self.values.nbytes) // positions


class RotaryTables:
    """Cosines and sines of every position's angles, ``[positions, head_size / 2]`` each."""

    def __init__(self, arch: Architecture, positions: int) -> None:
        # float32 at each step, as the cloud's tables are made, so that both agree to the bit
        steps = np.arange(0, arch.head_size, 2, dtype=np.float32) / np.float32(arch.head_size)
        inverse = (np.float32(1) / np.float32(arch.rope_theta) ** steps).astype(np.float32)
        angles = np.outer(np.arange(positions, dtype=np.float32), inverse)
        self.cos: FloatArray = np.cos(angles)
        self.sin: FloatArray = np.sin(angles)
