"""Who gives way in the context store: places for new sessions, and room for those that grow.

Over the cloud's budget idle sessions lose first their caches, which are rebuilt from the context,
then everything, and their edges replay; the longest idle go first.  Then sessions in use lose their
caches, but for those that work: that compute or have a question unanswered.  A tenant over its
quota loses its own sessions' in the same order, and nobody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from cloud.held_session import HeldSession, SessionKey
from cloud.metrics import CloudMetrics
from cloud.quotas import TenantQuotas
from cloud.store_ledger import Ledger
from cloud.waiting_room import QuotaInUseError
from shared.errors import BudgetExceededError, NoRoomError
from shared.logs import about

_LOG = logging.getLogger("tandem.cloud")


@dataclass(frozen=True)
class StoreLimits:
    """What the store may hold.

    Attributes:
        budget_bytes: context, decisions and KV caches of all sessions together.
        idle_seconds: how long a session without a stream is kept.
        hidden_dtype: how hidden states are kept; float16 halves them and rounds those that did not
            arrive as float16.  They are rounded before they are used, so a rebuilt cache is the
            same to the bit.
    """

    budget_bytes: int = 4 << 30
    max_sessions: int = 64
    idle_seconds: float = 600.0
    hidden_dtype: type[np.float32] | type[np.float16] = np.float32


class Evictor:
    """Works on the store's own ``sessions`` and their ``ledger``."""

    def __init__(
        self,
        sessions: dict[SessionKey, HeldSession],
        ledger: Ledger,
        limits: StoreLimits,
        quotas: TenantQuotas,
        metrics: CloudMetrics,
    ) -> None:
        self._sessions, self._ledger = sessions, ledger
        self._limits, self._quotas, self._metrics = limits, quotas, metrics

    def forget(self, session: HeldSession) -> None:
        """Take a session out, and off the ledger."""
        del self._sessions[session.key]
        self._ledger.remove(session)
        session.clear()

    def idle(self, tenant: str | None = None) -> list[HeldSession]:
        """Sessions (of one tenant) without a stream, the longest idle first."""
        idle = (session for session in self._of(tenant) if not session.in_use)
        return sorted(idle, key=lambda session: session.last_used)

    def make_place(self, tenant: str) -> None:
        """Let idle sessions give way to a new one of ``tenant`` where there are too many.

        Raises:
            NoRoomError: all are in use; nobody has lost any then.
        """
        limit, quota = self._limits.max_sessions, self._quotas.of(tenant).sessions
        if quota is not None and self._in_use(tenant) >= quota:
            self._metrics.tenant(tenant).over_quota("sessions")
            raise _in_use(f"all {quota} sessions that tenant {tenant} may hold")
        if self._in_use() >= limit:
            raise NoRoomError(
                f"all {limit} sessions of this cloud are in use: try again later, or raise "
                "--max-sessions on the cloud"
            )
        if quota is not None:
            self._evict_while(lambda: self._ledger.of(tenant).sessions >= quota, tenant)
        self._evict_while(lambda: len(self._sessions) >= limit)

    def make_room(
        self, session: HeldSession, growth: int, *, later: int = 0, from_idle_only: bool = False
    ) -> None:
        """Let others give way until ``session`` can grow by so many bytes.

        Args:
            later: bytes that it will need beside these for what it is given to be of use.
            from_idle_only: leave the caches of sessions in use alone.

        Raises:
            NoRoomError: what others use does not leave so much; nobody has lost any then.
            BudgetExceededError: it would be too much also if nobody else used any.
        """
        tenant, budget = session.key.tenant, self._limits.budget_bytes
        allowed = self._quotas.of(tenant)
        quota, needed = allowed.budget_bytes, session.nbytes + growth + later

        def firm(of: str | None = None) -> int:
            used = (held for held in self._of(of) if held.in_use and held is not session)
            return sum(held.nbytes if from_idle_only else held.firm_bytes for held in used)

        if quota is not None and firm(tenant) + needed > quota:
            if session.waiting_since is None:  # it is counted once
                self._metrics.tenant(tenant).over_quota("bytes")
            limit = f"the {_size(quota)} that tenant {tenant} may hold"
            if needed > quota:
                raise BudgetExceededError(
                    f"a session of {_size(needed)} is beyond {limit}: shorten its context, or ask "
                    "the cloud's operator for a larger quota"
                )
            raise _in_use(limit)
        if firm() + needed > budget:
            if needed > budget:
                raise BudgetExceededError(
                    f"a session of {_size(needed)} is beyond the cloud's memory budget of "
                    f"{_size(budget)}: shorten its context, or raise --budget-mb on the cloud"
                )
            raise NoRoomError(
                f"the cloud's memory budget of {_size(budget)} is used up by sessions in use: "
                "try again later, or raise --budget-mb on the cloud"
            )
        keep = None if from_idle_only else session
        if quota is not None:
            self._shrink_while(lambda: self._ledger.of(tenant).bytes + growth > quota, tenant, keep)
        self._shrink_while(lambda: self._ledger.bytes + growth > budget, None, keep)

    def keep_quota(self, tenant: str) -> None:
        """Take from the idle sessions of a tenant that is over its quota, which may have shrunk."""
        quota = self._quotas.of(tenant)
        most, budget = quota.sessions, quota.budget_bytes
        if most is not None:
            self._evict_while(lambda: self._ledger.of(tenant).sessions > most, tenant)
        if budget is not None:
            self._shrink_while(lambda: self._ledger.of(tenant).bytes > budget, tenant)

    def check(self) -> None:
        """Assert that nothing is over the cloud's limits, and nobody over a quota who has anything
        idle to give."""
        assert self._ledger.bytes <= self._limits.budget_bytes, "the budget is exceeded"
        assert len(self._sessions) <= self._limits.max_sessions
        for tenant in {key.tenant for key in self._sessions}:
            quota, held = self._quotas.of(tenant), self._ledger.of(tenant)
            over = quota.sessions is not None and held.sessions > quota.sessions
            over |= quota.budget_bytes is not None and held.bytes > quota.budget_bytes
            assert not over or not self.idle(tenant), tenant

    def _of(self, tenant: str | None) -> Iterable[HeldSession]:
        sessions = self._sessions.values()
        return (held for held in sessions if tenant is None or held.key.tenant == tenant)

    def _in_use(self, tenant: str | None = None) -> int:
        return sum(session.in_use for session in self._of(tenant))

    def _shrink_while(
        self,
        too_much: Callable[[], bool],
        tenant: str | None = None,
        growing: HeldSession | None = None,
    ) -> None:
        """Take from idle sessions, all their caches first, then all the rest; for one that is
        ``growing`` also the caches of those in use that do not work, the longest at rest first."""
        self._drop_caches_while(too_much, self.idle(tenant), "cache")
        self._evict_while(too_much, tenant)
        if growing is not None:
            resting = (
                held
                for held in self._of(tenant)
                if held.in_use and not held.working and held is not growing
            )
            by_rest = sorted(resting, key=lambda held: held.last_used)
            self._drop_caches_while(too_much, by_rest, "cache_in_use")

    def _drop_caches_while(
        self, too_much: Callable[[], bool], sessions: Iterable[HeldSession], what: str
    ) -> None:
        for session in sessions:
            if not too_much():
                return
            if session.cache is not None:
                session.drop_cache()
                self._ledger.update(session)
                self._metrics.evictions.labels(what).inc()
                _LOG.debug("cache evicted", extra=about(session.key))

    def _evict_while(self, too_much: Callable[[], bool], tenant: str | None = None) -> None:
        for session in self.idle(tenant):
            if not too_much():
                return
            self._metrics.evictions.labels("session").inc()
            _LOG.debug("session evicted", extra=about(session.key))
            self.forget(session)


def _in_use(limit: str) -> QuotaInUseError:
    return QuotaInUseError(
        f"{limit} are in use: end a session, or ask the cloud's operator for a larger quota"
    )


def _size(size: int) -> str:
    """In the largest unit of which there is one."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return "1 byte" if size == 1 else f"{size} bytes"
