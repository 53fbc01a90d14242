"""One session as the context store holds it: its name, context, KV cache and decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud.decisions import ENTRY_BYTES, Decisions
from cloud.kv_cache import KvCache
from shared.messages import ContextKind
from shared.sampling import Sampling

_SMALLEST = 64


@dataclass(frozen=True)
class SessionKey:
    """Names a session; ids of different tenants never meet."""

    tenant: str
    session_id: bytes

    @property
    def short_id(self) -> str:
        """Enough to tell sessions apart in a log, too little to take one over."""
        return self.session_id.hex()[:8]

    @property
    def log_fields(self) -> dict[str, object]:
        """What names the session in a log."""
        return {"session": self.short_id, "tenant": self.tenant}

    def __str__(self) -> str:
        return f"{self.tenant}/{self.short_id}"


class Rows:
    """Rows that are appended and cut off; memory grows by doubling.

    ``length`` may be lowered from outside.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: npt.DTypeLike, limit: int) -> None:
        self._data: npt.NDArray[Any] = np.empty((0, *row_shape), dtype)
        self._row_bytes = self._data.itemsize * int(np.prod(row_shape, dtype=np.int64))
        self._limit = limit
        self.length = 0

    @property
    def capacity(self) -> int:
        """Rows that there is memory for."""
        return len(self._data)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._row_bytes

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._data.nbytes

    def capacity_for(self, length: int) -> int:
        """Rows that there is memory for once ``length`` are held."""
        capacity = len(self._data) or _SMALLEST
        while capacity < length:
            capacity *= 2
        return min(capacity, max(length, self._limit))

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add ``rows`` at the end."""
        stop = self.length + len(rows)
        if stop > len(self._data):
            grown = np.empty((self.capacity_for(stop), *self._data.shape[1:]), self._data.dtype)
            grown[: self.length] = self._data[: self.length]
            self._data = grown
        self._data[self.length : stop] = rows
        self.length = stop

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        self._data, self.length = np.empty((0, *self._data.shape[1:]), self._data.dtype), 0

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return self._data[: self.length][rows]


@dataclass
class HeldSession:
    """One session's entry.  The store owns it; whoever opened it may read it and add decisions.

    Attributes:
        context: hidden states ``[n, hidden]`` or int32 token ids ``[n]``.
        decisions: tokens for positions up to the context's end; room for them grows with it.
        working: its cache is in the batcher, or a question of it is unanswered.
        waiting_since: when (seconds) it first found no room, until it finds some.
        own: how many positions at its end are the cloud's own words, decoded ahead of the edge's.
        cache: the KV cache, ``None`` until first needed and after an eviction.
        final_state: the newest computed position and its final hidden state ``[hidden]``.
        counted_bytes: what the store's ledger has on its account for this session.
        layer_positions: positions computed so far, summed over layers.
    """

    key: SessionKey
    sampling: Sampling
    kind: ContextKind
    context: Rows
    last_used: float
    own: int = 0
    in_use: bool = True
    working: bool = False
    waiting_since: float | None = None
    cache: KvCache | None = None
    cache_bytes: int = 0
    counted_bytes: int = 0
    final_state: tuple[int, Tensor] | None = None
    decisions: Decisions = field(default_factory=Decisions)
    layer_positions: int = 0
    compute_seconds: float = 0.0

    @property
    def held(self) -> int:
        """Positions of context held."""
        return self.context.length

    @property
    def confirmed(self) -> int:
        """Positions of context that came from the edge (or that it knows of, from a burst)."""
        return self.held - self.own

    @property
    def computed(self) -> int:
        """Positions whose keys and values are in the cache."""
        return 0 if self.cache is None else self.cache.length

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget."""
        return self.kept_bytes + self.cache_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of context and decisions, which are not rebuilt from anything."""
        return self.context.nbytes + self.decisions.nbytes

    def kept_bytes_for(self, positions: int) -> int:
        """Bytes of them once so many positions of context are held."""
        return self.context.capacity_for(positions) * (self.context.row_bytes + ENTRY_BYTES)

    @property
    def firm_bytes(self) -> int:
        """Bytes that it keeps whoever else needs room, while it is in use."""
        return self.nbytes if self.working else self.kept_bytes

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add context, and room for what is decided from it."""
        self.context.append(rows)
        self.decisions.grow(self.context.capacity)

    def drop_cache(self) -> None:
        """Forget keys and values; they are rebuilt from the context."""
        self.cache, self.cache_bytes, self.final_state = None, 0, None

    def clear(self) -> None:
        """Give its memory back at once: what is left of a stream that was cancelled refers to it,
        and is found by the garbage collector alone, which may be long in coming."""
        self.drop_cache()
        self.context.clear()
        self.decisions.clear()
        self.own = 0

    def check(self) -> None:
        """Assert what always holds of a session."""
        cache = self.cache
        assert cache is not None or not self.cache_bytes
        if cache is not None:
            allocated = cache.capacity * cache.position_bytes
            assert allocated <= self.cache_bytes, "memory that is not counted"
            assert (cache.first_layer == 0) == (self.kind is ContextKind.TOKEN_IDS)
        assert 0 <= self.own <= self.held
        assert self.decisions.capacity == self.context.capacity
        assert self.computed <= self.held, "keys and values of context that is not held"
        assert self.counted_bytes == self.nbytes, "bytes that the ledger does not know"
        assert self.final_state is None or self.final_state[0] < self.held
        assert max(self.decisions, default=0) <= self.held, "a decision without its context"
