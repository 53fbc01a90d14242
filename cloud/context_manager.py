"""The context store: what the cloud keeps of every session between two escalations.

This is the "cloud context manager" of CE-CoLLM (arXiv 2411.02829), not Python's ``with``.  For each
session it owns the context received so far (hidden states at the cut, or token ids), the KV cache
built from it and the decisions made.  One byte budget covers all three of all sessions; they are
counted as allocated.  (One hidden row a session is not: some kilobytes.)  Who gives way where it
does not suffice is :mod:`cloud.eviction`'s to say.

All methods run on the event loop and only compute; none of them waits.  Who finds no room may wait
for it in ``room``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud.eviction import Evictor, StoreLimits
from cloud.held_session import HeldSession, Rows, SessionKey
from cloud.kv_cache import KvCache
from cloud.metrics import CloudMetrics
from cloud.quotas import Quotas, TenantQuotas
from cloud.store_ledger import Ledger
from cloud.waiting_room import WaitingRoom
from shared.clock import Clock, monotonic
from shared.errors import BudgetExceededError, ContextGapError, InvalidMessageError, NoRoomError
from shared.logs import about
from shared.messages import STORE_ID_BYTES, ContextKind
from shared.model_bundle import Architecture
from shared.sampling import Sampling

_LOG = logging.getLogger("tandem.cloud")
_NO_QUOTAS = Quotas()


class ContextStore:
    """All sessions of one cloud under one budget.

    ``debug`` runs :meth:`check` after every change.  ``store_id`` (16 random bytes) tells edges one
    store from another.
    """

    def __init__(
        self,
        arch: Architecture,
        cut: int,
        new_cache: Callable[[int], KvCache],
        limits: StoreLimits,
        *,
        quotas: TenantQuotas = _NO_QUOTAS,
        metrics: CloudMetrics | None = None,
        clock: Clock = monotonic,
        debug: bool = False,
    ) -> None:
        self.store_id = secrets.token_bytes(STORE_ID_BYTES)
        self._arch, self._cut, self._new_cache = arch, cut, new_cache
        self._limits, self._clock = limits, clock
        self._metrics = metrics or CloudMetrics()
        self._metrics.budget_bytes.set(limits.budget_bytes)
        self._ledger = Ledger(self._metrics)
        self._changed = self.check if debug else _nothing
        self._sessions: dict[SessionKey, HeldSession] = {}
        self.room = WaitingRoom(clock)
        self._evictor = Evictor(self._sessions, self._ledger, limits, quotas, self._metrics)

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
        """Bytes of context, decisions and caches of all sessions, as allocated."""
        return self._ledger.bytes

    def open(self, key: SessionKey, sampling: Sampling, kind: ContextKind) -> HeldSession:
        """Create a session or take an idle one up again; it is in use until :meth:`release`.

        With another ``sampling`` than before, what was decided is forgotten, and only that.

        Raises:
            InvalidMessageError: it was opened before with the other kind of context.
            NoRoomError: all that the tenant, or the cloud, may hold are in use.
        """
        self.expire()
        session = self._sessions.get(key)
        if session is not None:
            assert not session.in_use
            if session.kind is not kind:
                raise InvalidMessageError("a session keeps the kind of context it began with")
            if session.sampling != sampling:  # the next answer of a conversation
                session.sampling = sampling
                session.decisions.cut(0)
            session.in_use = True
            self._changed()
            return session
        self._evictor.make_place(key.tenant)
        limit = self._arch.max_positions
        if kind is ContextKind.HIDDEN_STATES:
            context = Rows((self._arch.hidden_size,), self._limits.hidden_dtype, limit)
        else:
            context = Rows((), np.int32, limit)
        session = HeldSession(key, sampling, kind, context, self._clock())
        self._sessions[key] = session
        self._ledger.add(session)
        self._changed()
        return session

    def release(self, session: HeldSession) -> None:
        """The session's stream is gone; it stays resumable until it expires or room is needed.

        What the cloud said ahead of the edge is forgotten.
        """
        self.truncate(session, session.confirmed)
        session.in_use = False
        self._evictor.keep_quota(session.key.tenant)
        self.rest(session)

    def rest(self, session: HeldSession) -> None:
        """Nothing of the session is computed, and nothing asked: who needs room may take its
        cache."""
        session.working = False
        session.last_used = self._clock()
        self._changed()
        self.room.serve()

    def drop(self, session: HeldSession) -> None:
        """Forget a session."""
        if self._sessions.get(session.key) is session:
            self._evictor.forget(session)
            self._changed()
            self.room.serve()

    def check_joins(self, session: HeldSession, position: int) -> None:
        """Raise :class:`ContextGapError` where context from ``position`` on leaves a gap."""
        if position > session.confirmed:
            raise ContextGapError(
                f"context starts at {position}, the cloud holds 0 to {session.confirmed}"
            )

    def append(
        self,
        session: HeldSession,
        position: int,
        rows: npt.NDArray[Any],
        *,
        asked: bool = True,
    ) -> None:
        """Add the edge's context from ``position`` on; what is held already is skipped, and the
        cloud's own words give way to others.

        Args:
            rows: ``[n, hidden]`` float32 or ``[n]`` token ids, checked by the caller.
            asked: as for :meth:`cache_for`.

        Raises:
            ContextGapError: ``position`` lies beyond what is held.
            NoRoomError: others use the room for it, or for the keys and values to come of it.
            BudgetExceededError: it is beyond the model's context, the budget or the quota.
        """
        self.check_joins(session, position)
        stop = position + len(rows)
        if stop > self._arch.max_positions:
            raise BudgetExceededError(
                f"a session holds {self._arch.max_positions} positions at most, not {stop}"
            )
        if stop <= session.confirmed:
            return
        if stop > session.held:  # before anything is changed: there may be no room
            growth = session.kept_bytes_for(stop) - session.kept_bytes
            if growth:  # caches come of context, so it is not to take their room
                cache = self._cache_of(session).bytes_for(stop)
                self._make_room(session, growth, asked, max(0, cache - session.cache_bytes))
        if session.own:
            self._confirm(session, rows[session.confirmed - position :])
        if stop > session.held:
            session.append(rows[session.held - position :])
            self._ledger.update(session)
        self._changed()

    def append_own(self, session: HeldSession, token_id: int) -> None:
        """Go on with a token that the edge has not sent; raises as :meth:`append` does."""
        own = session.own
        session.own = 0
        try:
            self.append(session, session.held, np.array([token_id], np.int32), asked=False)
            own += 1
        finally:
            session.own = own

    def _confirm(self, session: HeldSession, rows: npt.NDArray[Any]) -> None:
        """Hold the cloud's own words against the edge's."""
        own = session.context[session.confirmed :]
        both = min(len(own), len(rows))
        different = np.flatnonzero(own[:both] != rows[:both])
        session.own -= int(different[0]) if len(different) else both
        if len(different):
            self.truncate(session, session.confirmed)

    def cache_for(self, session: HeldSession, positions: int, *, asked: bool = True) -> KvCache:
        """The session's cache, with memory for ``positions`` counted (the model allocates it).

        Args:
            asked: the edge waits for it; if not, it takes nothing from sessions in use, and nobody
                may wait for room.

        Raises:
            NoRoomError: it does not fit beside what others use.
            BudgetExceededError: it is beyond the budget or the quota by itself.
        """
        cache = self._cache_of(session)
        needed = cache.bytes_for(positions)
        if needed > session.cache_bytes:
            self._make_room(session, needed - session.cache_bytes, asked)
            session.cache_bytes = needed
        session.cache = cache
        self._ledger.update(session)
        self._changed()
        return cache

    def _cache_of(self, session: HeldSession) -> KvCache:
        if session.cache is not None:
            return session.cache
        return self._new_cache(self._cut if session.kind is ContextKind.HIDDEN_STATES else 0)

    def _make_room(self, session: HeldSession, growth: int, asked: bool, later: int = 0) -> None:
        if not asked and self.room.crowded:
            raise NoRoomError("others wait for the cloud's memory")
        self.room.check_turn(session)
        self._evictor.make_room(session, growth, later=later, from_idle_only=not asked)

    def truncate(self, session: HeldSession, position: int) -> None:
        """Forget context, keys and values from ``position`` on, and what was decided from them."""
        session.own = max(0, min(session.own, position - session.confirmed))
        session.context.length = min(session.context.length, position)
        if session.cache is not None:
            session.cache.length = min(session.cache.length, position)
        if session.final_state is not None and session.final_state[0] >= position:
            session.final_state = None
        session.decisions.cut(position)
        self._changed()

    def quotas_changed(self) -> None:
        """Let idle sessions go that a smaller quota has no room for; those in use stay until they
        are idle."""
        for tenant in {key.tenant for key in self._sessions}:
            self._evictor.keep_quota(tenant)
        self._changed()
        self.room.serve()

    def expire(self) -> None:
        """Forget sessions that have been idle for too long."""
        now = self._clock()
        for session in self._evictor.idle():
            session.last_used = min(session.last_used, now)  # a clock may be set back
            if session.last_used <= now - self._limits.idle_seconds:
                self._metrics.expirations.inc()
                _LOG.debug("session expired", extra=about(session.key))
                self.drop(session)

    def check(self) -> None:
        """Assert what always holds: bytes and counts are as the ledger has them, within budget and
        quotas, and every session is its own and the store's."""
        sessions = self._sessions.values()
        for key, session in self._sessions.items():
            assert session.key == key
            session.check()
        self._ledger.check(sessions)
        self._evictor.check()


def _nothing() -> None:
    """What follows a change that is not checked."""
