"""The context store: what the cloud keeps of every session between two escalations.

This is the "cloud context manager" of CE-CoLLM (arXiv 2411.02829), not Python's ``with``.  For each
session it owns the context received so far (hidden states at the cut, or token ids), the KV cache
built from it and the decisions made.  One byte budget covers the context and the caches of all
sessions; they are counted as allocated.  (Decisions and one hidden row a session are not: some
kilobytes.)  Over budget, idle sessions lose first their caches, which are rebuilt from the
context, then everything, and their edges replay; the longest idle go first.  A session in use is
never touched.

All methods run on the event loop and only compute; none of them waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cloud.kv_cache import KvCache
from shared.clock import Clock, monotonic
from shared.errors import BudgetExceededError, ContextGapError, InvalidMessageError
from shared.messages import ContextKind
from shared.model_bundle import Architecture
from shared.sampling import Choice, Sampling

_SMALLEST = 64


@dataclass(frozen=True)
class SessionKey:
    """Names a session; ids of different tenants never meet."""

    tenant: str
    session_id: bytes

    def __str__(self) -> str:
        # enough to tell sessions apart in a log, too little to take one over
        return f"{self.tenant}/{self.session_id.hex()[:8]}"


@dataclass(frozen=True)
class StoreLimits:
    """What the store may hold.

    Attributes:
        budget_bytes: context and KV caches of all sessions together.
        idle_seconds: how long a session without a stream is kept.
        hidden_dtype: how hidden states are kept; float16 halves them and rounds those that did not
            arrive as float16.  They are rounded before they are used, so a rebuilt cache is the
            same to the bit.
    """

    budget_bytes: int = 4 << 30
    max_sessions: int = 64
    idle_seconds: float = 600.0
    hidden_dtype: type[np.float32] | type[np.float16] = np.float32


class _Rows:
    """Rows that are appended and cut off; memory grows by doubling."""

    def __init__(self, row_shape: tuple[int, ...], dtype: npt.DTypeLike, limit: int) -> None:
        self._data: npt.NDArray[Any] = np.empty((0, *row_shape), dtype)
        self._row_bytes = self._data.itemsize * int(np.prod(row_shape, dtype=np.int64))
        self._limit = limit
        self.length = 0

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def bytes_for(self, length: int) -> int:
        return self._capacity_for(length) * self._row_bytes

    def append(self, rows: npt.NDArray[Any]) -> None:
        stop = self.length + len(rows)
        if stop > len(self._data):
            grown = np.empty((self._capacity_for(stop), *self._data.shape[1:]), self._data.dtype)
            grown[: self.length] = self._data[: self.length]
            self._data = grown
        self._data[self.length : stop] = rows
        self.length = stop

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return self._data[: self.length][rows]

    def _capacity_for(self, length: int) -> int:
        capacity = len(self._data) or _SMALLEST
        while capacity < length:
            capacity *= 2
        return min(capacity, max(length, self._limit))


@dataclass
class HeldSession:
    """One session's entry.  The store owns it; whoever opened it may read it and add decisions.

    Attributes:
        context: hidden states ``[n, hidden]`` or int32 token ids ``[n]``.
        cache: the KV cache, ``None`` until first needed and after an eviction.
        final_state: the newest computed position and its final hidden state ``[hidden]``.
        layer_positions: positions computed so far, summed over layers.
    """

    key: SessionKey
    sampling: Sampling
    kind: ContextKind
    context: _Rows
    last_used: float
    in_use: bool = True
    cache: KvCache | None = None
    cache_bytes: int = 0
    final_state: tuple[int, Tensor] | None = None
    decisions: dict[int, Choice] = field(default_factory=dict)
    layer_positions: int = 0
    compute_seconds: float = 0.0

    @property
    def held(self) -> int:
        """Positions of context held."""
        return self.context.length

    @property
    def computed(self) -> int:
        """Positions whose keys and values are in the cache."""
        return 0 if self.cache is None else self.cache.length

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget."""
        return self.context.nbytes + self.cache_bytes


class ContextStore:
    """All sessions of one cloud under one budget."""

    def __init__(
        self,
        arch: Architecture,
        cut: int,
        new_cache: Callable[[int], KvCache],
        limits: StoreLimits,
        *,
        clock: Clock = monotonic,
    ) -> None:
        self._arch, self._cut, self._new_cache = arch, cut, new_cache
        self._limits, self._clock = limits, clock
        self._sessions: dict[SessionKey, HeldSession] = {}

    @property
    def idle_seconds(self) -> float:
        """How long a session without a stream is kept, and a stream without a message."""
        return self._limits.idle_seconds

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, key: SessionKey) -> bool:
        return key in self._sessions

    @property
    def held_bytes(self) -> int:
        """Bytes of context and caches of all sessions, as allocated."""
        return sum(session.nbytes for session in self._sessions.values())

    def open(self, key: SessionKey, sampling: Sampling, kind: ContextKind) -> HeldSession:
        """Create a session or take an idle one up again; it is in use until :meth:`release`.

        Raises:
            InvalidMessageError: it was opened before with other fields.
            BudgetExceededError: all ``max_sessions`` are in use.
        """
        self.expire()
        session = self._sessions.get(key)
        if session is not None:
            assert not session.in_use
            if (session.sampling, session.kind) != (sampling, kind):
                raise InvalidMessageError("a session is reopened with the fields it began with")
            session.in_use = True
            return session
        if len(self._sessions) >= self._limits.max_sessions:
            idle = self._idle()
            if not idle:
                raise BudgetExceededError(
                    f"all {self._limits.max_sessions} sessions of this cloud are in use"
                )
            self.drop(idle[0])
        limit = self._arch.max_positions
        if kind is ContextKind.HIDDEN_STATES:
            context = _Rows((self._arch.hidden_size,), self._limits.hidden_dtype, limit)
        else:
            context = _Rows((), np.int32, limit)
        session = HeldSession(key, sampling, kind, context, self._clock())
        self._sessions[key] = session
        return session

    def release(self, session: HeldSession) -> None:
        """The session's stream is gone; it stays resumable until it expires or room is needed."""
        session.in_use = False
        session.last_used = self._clock()

    def drop(self, session: HeldSession) -> None:
        """Forget a session."""
        self._sessions.pop(session.key, None)

    def check_joins(self, session: HeldSession, position: int) -> None:
        """Raise :class:`ContextGapError` where context from ``position`` on leaves a gap."""
        if position > session.held:
            raise ContextGapError(
                f"context starts at {position}, the cloud holds 0 to {session.held}"
            )

    def append(self, session: HeldSession, position: int, rows: npt.NDArray[Any]) -> None:
        """Add context from ``position`` on; what is held already is skipped.

        Args:
            rows: ``[n, hidden]`` float32 or ``[n]`` token ids, checked by the caller.

        Raises:
            ContextGapError: ``position`` lies beyond what is held.
            BudgetExceededError: the model's context is full, or the budget is.
        """
        self.check_joins(session, position)
        held, stop = session.held, position + len(rows)
        if stop > self._arch.max_positions:
            raise BudgetExceededError(
                f"a session holds {self._arch.max_positions} positions at most, not {stop}"
            )
        if stop <= held:
            return
        self._make_room(session.context.bytes_for(stop) - session.context.nbytes)
        session.context.append(rows[held - position :])

    def cache_for(self, session: HeldSession, positions: int) -> KvCache:
        """The session's cache, with memory for ``positions`` counted (the model allocates it).

        Raises:
            BudgetExceededError: it does not fit beside the other sessions in use.
        """
        cache = session.cache
        if cache is None:
            hidden = session.kind is ContextKind.HIDDEN_STATES
            cache = self._new_cache(self._cut if hidden else 0)
        needed = cache.bytes_for(positions)
        if needed > session.cache_bytes:
            self._make_room(needed - session.cache_bytes)
            session.cache_bytes = needed
        session.cache = cache
        return cache

    def truncate(self, session: HeldSession, position: int) -> None:
        """Forget context, keys, values and decisions from ``position`` on."""
        session.context.length = min(session.context.length, position)
        if session.cache is not None:
            session.cache.length = min(session.cache.length, position)
        if session.final_state is not None and session.final_state[0] >= position:
            session.final_state = None
        for decided in [p for p in session.decisions if p >= position]:
            del session.decisions[decided]

    def expire(self) -> None:
        """Forget sessions that have been idle for too long."""
        deadline = self._clock() - self._limits.idle_seconds
        for session in self._idle():
            if session.last_used <= deadline:
                self.drop(session)

    def _idle(self) -> list[HeldSession]:
        """Sessions without a stream, the longest idle first."""
        idle = (session for session in self._sessions.values() if not session.in_use)
        return sorted(idle, key=lambda session: session.last_used)

    def _make_room(self, growth: int) -> None:
        budget = self._limits.budget_bytes
        in_use = sum(session.nbytes for session in self._sessions.values() if session.in_use)
        if in_use + growth > budget:  # then nobody loses anything for it
            raise BudgetExceededError(
                f"the cloud's memory budget of {budget >> 20} MiB is used up by sessions in use"
            )
        for session in self._victims():
            if self.held_bytes + growth <= budget:
                break
            if session.cache is not None:
                _drop_cache(session)
            else:
                self.drop(session)

    def _victims(self) -> Iterable[HeldSession]:
        """Idle sessions in the order they give: all their caches first, then all the rest."""
        idle = self._idle()
        yield from (session for session in idle if session.cache is not None)
        yield from idle


def _drop_cache(session: HeldSession) -> None:
    session.cache, session.cache_bytes, session.final_state = None, 0, None
