"""How the token embedding lies in a bundle: a ``.npy`` file with one record per token.

* ``[vocabulary]`` records of 8-bit ``codes`` with one float32 ``scale`` per block of columns, so
  that one token is one contiguous read; a row is ``scale · code``;
* ``[vocabulary, hidden]`` little-endian float32, for models whose embedding is not on that grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EMBEDDING_BLOCK = 32  # columns per scale, as in Q8_0


def quantized_record(hidden_size: int) -> np.dtype[Any]:
    """One token: ``scale`` float32 ``[ceil(hidden / 32)]``, then ``codes`` int8 ``[hidden]``."""
    blocks = -(-hidden_size // EMBEDDING_BLOCK)
    return np.dtype([("scale", "<f4", (blocks,)), ("codes", "i1", (hidden_size,))])
