"""Quotas under random operations: no tenant is ever over its own, and who asks for more than that
takes nothing from anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.context_manager import ContextStore
from cloud.eviction import StoreLimits
from cloud.held_session import HeldSession, SessionKey
from cloud.kv_cache import KvCache
from cloud.metrics import CloudMetrics
from cloud.quotas import Quota, Quotas, TenantRates
from shared.clock import ManualClock
from shared.errors import BudgetExceededError
from shared.messages import ContextKind
from shared.sampling import GREEDY
from tests.property.test_context_store_properties import ARCH, CUT

KIB = 2**-10  # of a MiB
TENANTS = ("alice", "bob", "carol", "dave")
LIMITS = StoreLimits(budget_bytes=28_000, max_sessions=6)
QUOTAS = st.builds(
    Quota,
    sessions=st.none() | st.integers(1, 4),
    budget_mb=st.none() | st.integers(1, 12).map(lambda count: count * KIB),
)


@dataclass(frozen=True)
class Step:
    """What one stream does next."""

    tenant: str
    name: int
    rows: int
    compute: bool
    leave: bool


def steps(*tenants: str) -> st.SearchStrategy[list[Step]]:
    """What streams of ``tenants`` do."""
    return st.lists(
        st.builds(
            Step,
            tenant=st.sampled_from(tenants),
            name=st.integers(0, 4),
            rows=st.sampled_from([0, 1, 30, 70, 130]),
            compute=st.booleans(),
            leave=st.booleans(),
        ),
        max_size=40,
    )


class Streams:
    """A store with quotas, and the sessions that have a stream."""

    def __init__(self, quotas: Quotas) -> None:
        self.clock = ManualClock()
        self.quotas = quotas
        self.store = ContextStore(
            ARCH,
            CUT,
            lambda first: KvCache(ARCH, first, torch.device("cpu"), torch.float32),
            LIMITS,
            quotas=quotas,
            clock=self.clock,
            debug=True,  # which is what holds everybody to their quotas
        )
        self.open: dict[SessionKey, HeldSession] = {}
        self.refusals: list[str] = []

    def do(self, step: Step) -> None:
        """Open or go on, send context, compute, leave; a refusal ends the stream."""
        key = SessionKey(step.tenant, bytes([step.name]) * 16)
        self.clock.advance(1.0)
        try:
            for ask in (self._connect, self._send, self._compute):
                with self.watched(step.tenant):
                    ask(key, step)
        except BudgetExceededError as error:
            self.refusals.append(str(error))
            step = replace(step, leave=True)
        if step.leave and key in self.open:
            self.store.release(self.open.pop(key))

    def _connect(self, key: SessionKey, _step: Step) -> None:
        if key not in self.open:
            self.open[key] = self.store.open(key, GREEDY, ContextKind.TOKEN_IDS)

    def _send(self, key: SessionKey, step: Step) -> None:
        session = self.open[key]
        rows = min(step.rows, ARCH.max_positions - session.held)
        self.store.append(session, session.held, np.zeros(rows, np.int32))

    def _compute(self, key: SessionKey, step: Step) -> None:
        session = self.open[key]
        if step.compute:
            cache = self.store.cache_for(session, session.held)
            cache.grow(session.held)
            cache.length = session.held

    @contextmanager
    def watched(self, tenant: str) -> Iterator[None]:
        """Whatever ``tenant`` does in the block: who loses what, and why."""
        own, others = self.held(by=tenant), self.held(beside=tenant)
        try:
            yield
        except BudgetExceededError:
            assert (self.held(by=tenant), self.held(beside=tenant)) == (own, others)
            raise
        now, quota = self.held(by=tenant), self.quotas.of(tenant)
        assert quota.sessions is None or len(now) <= quota.sessions
        assert quota.budget_bytes is None or sum(now.values()) <= quota.budget_bytes
        if self.held(beside=tenant) != others:  # only the cloud's own limits take from others
            most = {key: max(own.get(key, 0), now.get(key, 0)) for key in own | now}
            total = sum(most.values()) + sum(others.values())
            assert total > LIMITS.budget_bytes or len(now) + len(others) > LIMITS.max_sessions

    def held(self, *, by: str | None = None, beside: str | None = None) -> dict[SessionKey, int]:
        """Bytes of each session, of one tenant or of all but one."""
        return {
            key: session.nbytes
            for key, session in self.store._sessions.items()
            if by in (None, key.tenant) and key.tenant != beside
        }


@settings(max_examples=150)
@given(
    quotas=st.dictionaries(st.sampled_from(TENANTS), QUOTAS),
    default=QUOTAS,
    doings=steps(*TENANTS),
)
def test_no_tenant_is_over_its_quota_and_a_refusal_touches_nobody(
    quotas: dict[str, Quota], default: Quota, doings: list[Step]
) -> None:
    streams = Streams(Quotas(default, quotas))
    for step in doings:
        streams.do(step)
        for key, session in streams.open.items():
            assert streams.store._sessions[key] is session


@given(sessions=st.integers(1, 3), doings=steps("alice"))
def test_whatever_a_tenant_does_within_its_quota_leaves_the_others_whole(
    sessions: int, doings: list[Step]
) -> None:
    """Bob's idle sessions, the longest idle of all, fit beside all that alice may hold."""
    quota = Quota(sessions=sessions, budget_mb=8 * KIB)
    streams = Streams(Quotas(tenants={"alice": quota}))
    for name in range(LIMITS.max_sessions - sessions):
        streams.do(Step("bob", name, 30, compute=name == 0, leave=True))
    bobs = streams.held(by="bob")
    assert sum(bobs.values()) + (8 << 10) <= LIMITS.budget_bytes
    for step in doings:
        streams.do(step)
        assert streams.held(by="bob") == bobs
    assert all("tenant alice" in refusal for refusal in streams.refusals)


@given(
    per_second=st.floats(0.1, 100),
    at_once=st.integers(1, 64),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_no_tenant_asks_more_often_than_its_quota(
    per_second: float, at_once: int, pauses: list[float]
) -> None:
    clock = ManualClock()
    quota = Quota(escalations_per_second=per_second, escalation_burst=at_once)
    rate = TenantRates(Quotas(quota), CloudMetrics(), clock=clock).of("alice")
    times: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        for _ in range(3):
            try:
                rate.ask()
            except BudgetExceededError:
                break
            times.append(clock())
    for first, begin in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= at_once + (times[last] - begin) * per_second + 1e-6
