"""The context store's accounts: sessions and bytes held, in all and of each tenant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cloud.held_session import HeldSession
from cloud.metrics import CloudMetrics


@dataclass
class Account:
    """What a tenant holds at the moment."""

    sessions: int = 0
    bytes: int = 0


class Ledger:
    """Kept up to date by differences, so that no question needs a look at every session."""

    def __init__(self, metrics: CloudMetrics) -> None:
        self.bytes = 0
        self._metrics = metrics
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str) -> Account:
        """The account of ``tenant``."""
        return self._accounts.get(tenant) or Account()

    def add(self, session: HeldSession) -> None:
        """A session is new."""
        self._accounts.setdefault(session.key.tenant, Account()).sessions += 1
        self._metrics.tenant(session.key.tenant).sessions.inc()
        self.update(session)

    def update(self, session: HeldSession) -> None:
        """A session's bytes have changed."""
        self._count(session, session.nbytes - session.counted_bytes)

    def remove(self, session: HeldSession) -> None:
        """A session is gone."""
        self._count(session, -session.counted_bytes)
        account = self._accounts[session.key.tenant]
        account.sessions -= 1
        self._metrics.tenant(session.key.tenant).sessions.dec()
        if not account.sessions:
            del self._accounts[session.key.tenant]

    def check(self, sessions: Collection[HeldSession]) -> None:
        """Assert that the accounts are those of ``sessions``."""
        assert self.bytes == sum(session.nbytes for session in sessions)
        recounted: dict[str, Account] = {}
        for session in sessions:
            account = recounted.setdefault(session.key.tenant, Account())
            account.sessions += 1
            account.bytes += session.nbytes
        assert self._accounts == recounted

    def _count(self, session: HeldSession, change: int) -> None:
        session.counted_bytes += change
        self.bytes += change
        self._accounts[session.key.tenant].bytes += change
        self._metrics.tenant(session.key.tenant).held_bytes.inc(change)
