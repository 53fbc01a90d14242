"""Quotas: their file, escalations a second, and what the store refuses or evicts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cloud.context_manager import ContextStore
from cloud.decisions import ENTRY_BYTES
from cloud.eviction import StoreLimits
from cloud.held_session import HeldSession, SessionKey
from cloud.kv_cache import KvCache
from cloud.metrics import CloudMetrics
from cloud.quotas import (
    Quota,
    Quotas,
    TenantQuotas,
    TenantRate,
    TenantRates,
    read_quotas,
)
from prepare.tiny_model import TINY_ARCHITECTURE as ARCH
from shared.clock import ManualClock
from shared.errors import BudgetExceededError, ConfigurationError
from shared.messages import ContextKind
from shared.sampling import GREEDY

IDS_BYTES = 64 * (4 + ENTRY_BYTES)
CACHE_BYTES = 64 * ARCH.layers * 2 * ARCH.kv_size * 4
ONE = (IDS_BYTES + CACHE_BYTES) / 2**20  # MiB of a short session
HALF = 0.5 * ONE

TOML = """
[default]
sessions = 2
escalations_per_second = 5

[tenants.alice]
sessions = 9
budget_mb = 0.5

[tenants."Example Ltd"]
"""
JSON = """{"default": {"sessions": 2, "escalations_per_second": 5},
"tenants": {"alice": {"sessions": 9, "budget_mb": 0.5}, "Example Ltd": {}}}"""


@pytest.mark.parametrize(("name", "text"), [("q.toml", TOML), ("q.json", JSON)])
def test_a_tenant_differs_from_the_defaults_where_it_says_so(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    quotas = read_quotas(tmp_path / name)
    assert quotas.of("alice") == Quota(sessions=9, budget_mb=0.5, escalations_per_second=5)
    assert quotas.of("alice").budget_bytes == 1 << 19
    assert quotas.of("bob") == quotas.of("Example Ltd") == quotas.default
    assert quotas.default.budget_bytes is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.toml", '[default]\nsessions = 2\n[tenants.alice]\nsessions = "unlimited"\n'),
        ("q.json", '{"default": {"sessions": 2}, "tenants": {"alice": {"sessions": null}}}'),
    ],
)
def test_a_tenant_may_be_without_a_limit_that_others_have(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    quotas = read_quotas(tmp_path / name)
    assert (quotas.of("alice").sessions, quotas.of("bob").sessions) == (None, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[default]\nsesions = 1", "default.sesions: there is no such key"),
        ("[tenant.alice]\nsessions = 1", "tenant: there is no such key"),
        ("[tenants.alice]\nsessions = 0", "tenants.alice.sessions: .*greater"),
        ("[tenants.alice]\nbudget_mb = -1", "tenants.alice.budget_mb: .*greater"),
        ("[default]\nescalations_per_second = inf", "escalations_per_second: .*finite"),
        ("[default]\nrows_per_second = 0", "rows_per_second.*: .*greater"),
        ("[default]\nrows_per_second = 'many'", "rows_per_second"),
        ("[default]\nrow_burst = 0", "default.row_burst: .*greater"),
        ("[default]\nsessions = 'many'", "default.sessions: .*integer"),
        ("tenants = 3", "tenants: .*dictionary"),
        ("[default", "cannot be parsed"),
    ],
)
def test_a_bad_quota_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "quotas.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        read_quotas(tmp_path / "quotas.toml")


# ---- escalations a second ------------------------------------------------------------------------


def rates(clock: ManualClock, metrics: CloudMetrics | None = None) -> TenantRates:
    quota = Quota(escalations_per_second=2, escalation_burst=3)
    quotas = Quotas(tenants={"alice": quota, "carol": quota})
    return TenantRates(quotas, metrics or CloudMetrics(), clock=clock)


def asked_until_refused(rate: TenantRate) -> int:
    for count in range(1000):
        try:
            rate.ask()
        except BudgetExceededError:
            return count
    return 1000


def test_a_tenant_asks_so_many_times_at_once_and_so_often_in_the_long_run() -> None:
    clock = ManualClock()
    alice = rates(clock).of("alice")
    assert asked_until_refused(alice) == 3
    clock.advance(0.5)
    assert asked_until_refused(alice) == 1
    clock.advance(3600)
    assert asked_until_refused(alice) == 3
    total = 0
    for _ in range(100):
        clock.advance(0.1)
        total += asked_until_refused(alice)
    assert total in (19, 20, 21)


def test_a_refusal_says_what_to_do_and_is_counted() -> None:
    metrics, clock = CloudMetrics(), ManualClock()
    alice = rates(clock, metrics).of("alice")
    asked_until_refused(alice)
    with pytest.raises(BudgetExceededError, match=r"alice may ask 2 times .* in 0.5 s, ask less"):
        alice.ask()
    labels = {"tenant": "alice", "quota": "escalations"}
    assert metrics.registry.get_sample_value("tandem_cloud_over_quota_total", labels) == 2


def test_tokens_of_a_burst_are_paid_for_afterwards() -> None:
    clock = ManualClock()
    alice = rates(clock).of("alice")
    alice.ask()
    for _ in range(10):
        alice.add_burst_token()
    clock.advance(4.0)  # eight of them
    assert asked_until_refused(alice) == 0
    clock.advance(0.5)
    assert asked_until_refused(alice) == 1


def test_all_sessions_of_a_tenant_share_its_rate_and_no_other_does() -> None:
    both = rates(ManualClock())
    assert both.of("alice") is both.of("alice")
    assert asked_until_refused(both.of("alice")) == 3
    assert asked_until_refused(both.of("carol")) == 3
    assert asked_until_refused(both.of("bob")) == 1000


class Changing:
    """Everybody's quota, and it may be another one later."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota

    def of(self, tenant: str) -> Quota:
        return self.quota


def test_a_rate_that_changes_counts_from_then_on() -> None:
    clock, quotas = ManualClock(), Changing(Quota())
    rate = TenantRates(quotas, CloudMetrics(), clock=clock).of("alice")
    assert asked_until_refused(rate) == 1000
    quotas.quota = Quota(escalations_per_second=2, escalation_burst=3)
    assert asked_until_refused(rate) == 3
    quotas.quota = Quota(escalations_per_second=10, escalation_burst=5)
    clock.advance(0.2)
    assert asked_until_refused(rate) == 2
    quotas.quota = Quota()
    assert asked_until_refused(rate) == 1000


# ---- rows a second -------------------------------------------------------------------------------


def rows_of(clock: ManualClock, **quota: Any) -> TenantRate:
    quotas = Quotas(tenants={"alice": Quota(**quota)})
    return TenantRates(quotas, CloudMetrics(), clock=clock).of("alice")


def test_rows_beyond_the_rate_wait_for_it() -> None:
    clock = ManualClock()
    alice = rows_of(clock, rows_per_second=10, row_burst=20)
    assert alice.seconds_to_rows() == 0.0
    alice.add_rows(50)  # a message is taken whole, and paid for afterwards
    assert alice.seconds_to_rows() == pytest.approx(3.1)
    clock.advance(3.0)
    assert alice.seconds_to_rows() == pytest.approx(0.1)
    clock.advance(0.1)
    assert alice.seconds_to_rows() == 0.0
    clock.advance(3600)
    alice.add_rows(20)  # no more than so many were saved up
    assert alice.seconds_to_rows() == pytest.approx(0.1)


def test_questions_are_not_held_up_by_rows_nor_rows_by_questions() -> None:
    alice = rows_of(
        ManualClock(),
        escalations_per_second=1,
        escalation_burst=2,
        rows_per_second=1,
        row_burst=4,
    )
    alice.add_rows(100)
    assert asked_until_refused(alice) == 2
    assert alice.seconds_to_rows() == 97.0


@pytest.mark.parametrize(
    ("quota", "rate"),
    [
        ({}, None),
        ({"rows_per_second": "unlimited", "escalations_per_second": 2}, None),
        ({"escalations_per_second": 2}, 512.0),
        ({"rows_per_second": 7, "escalations_per_second": 2}, 7.0),
    ],
    ids=["no quota", "unlimited", "from the questions", "its own"],
)
def test_the_rate_of_rows_follows_that_of_questions_unless_it_is_told(
    quota: dict[str, Any], rate: float | None
) -> None:
    assert Quota(**quota).row_rate == rate
    alice = rows_of(ManualClock(), **quota)
    alice.add_rows(1 << 20)
    assert (alice.seconds_to_rows() > 0) is (rate is not None)


# ---- sessions and bytes in the store -------------------------------------------------------------


class Fixture:
    """A store of up to four sessions where alice has a quota."""

    def __init__(self, quota: Quota, quotas: TenantQuotas | None = None) -> None:
        self.clock, self.metrics = ManualClock(), CloudMetrics()
        self.store = ContextStore(
            ARCH,
            2,
            lambda first: KvCache(ARCH, first, torch.device("cpu"), torch.float32),
            StoreLimits(max_sessions=4),
            quotas=quotas or Quotas(tenants={"alice": quota}),
            metrics=self.metrics,
            clock=self.clock,
            debug=True,
        )

    def open(self, tenant: str, name: int) -> HeldSession:
        self.clock.advance(1.0)
        key = SessionKey(tenant, bytes([name]) * 16)
        return self.store.open(key, GREEDY, ContextKind.TOKEN_IDS)

    def fill(self, session: HeldSession) -> HeldSession:
        self.store.append(session, 0, np.arange(6, dtype=np.int32))
        cache = self.store.cache_for(session, 6)
        cache.grow(6)
        cache.length = 6
        return session

    def idle(self, tenant: str, name: int) -> HeldSession:
        session = self.fill(self.open(tenant, name))
        self.store.release(session)
        return session


def test_a_tenants_own_idle_session_gives_way_to_its_new_one() -> None:
    box = Fixture(Quota(sessions=2))
    others = box.idle("bob", 0)  # idle for longest
    first, second = box.idle("alice", 1), box.open("alice", 2)
    box.open("alice", 3)
    assert first.key not in box.store
    assert others.key in box.store
    with pytest.raises(BudgetExceededError, match=r"all 2 sessions that tenant alice .* end a"):
        box.open("alice", 4)
    assert second.key in box.store
    box.open("bob", 5)


def test_a_tenants_own_idle_caches_give_way_to_its_bytes() -> None:
    box = Fixture(Quota(budget_mb=2 * ONE))
    others = box.idle("bob", 0)
    first, second = box.idle("alice", 1), box.idle("alice", 2)
    third = box.fill(box.open("alice", 3))
    assert first.key in box.store
    assert second.key in box.store
    assert (first.computed, second.computed) == (0, 0)
    assert (third.computed, others.computed) == (6, 6)


def test_bytes_beyond_a_quota_are_refused_and_nobody_loses_any() -> None:
    box = Fixture(Quota(budget_mb=ONE + HALF))
    others, own = box.idle("bob", 0), box.idle("alice", 1)
    in_use = [box.open("alice", 2), box.open("alice", 3)]
    box.store.append(in_use[1], 0, np.arange(6, dtype=np.int32))
    box.fill(in_use[0])
    in_use[0].working = True
    held = box.store.held_bytes
    with pytest.raises(BudgetExceededError, match="KiB that tenant alice may hold are in use"):
        box.store.cache_for(in_use[1], 6)
    assert box.store.held_bytes == held
    assert others.computed == 6
    assert own.key in box.store
    labels = {"tenant": "alice", "quota": "bytes"}
    assert box.metrics.registry.get_sample_value("tandem_cloud_over_quota_total", labels) == 1


def test_a_quota_that_shrinks_takes_what_is_idle_and_waits_for_the_rest() -> None:
    quotas = Changing(Quota())
    box = Fixture(Quota(), quotas)
    oldest, newer = box.idle("alice", 1), box.idle("alice", 2)
    used, other = box.fill(box.open("alice", 3)), box.fill(box.open("alice", 4))
    quotas.quota = Quota(sessions=3)
    box.store.quotas_changed()
    assert oldest.key not in box.store
    assert newer.key in box.store
    quotas.quota = Quota(sessions=1)
    box.store.quotas_changed()
    assert newer.key not in box.store
    assert {used.key in box.store, other.key in box.store} == {True}
    with pytest.raises(BudgetExceededError, match="all 1 sessions"):
        box.open("alice", 5)
    box.store.release(used)  # and now it can go
    assert used.key not in box.store
    assert other.key in box.store


def test_a_byte_quota_that_shrinks_takes_idle_caches_first() -> None:
    quotas = Changing(Quota())
    box = Fixture(Quota(), quotas)
    first, second = box.idle("alice", 1), box.idle("alice", 2)
    quotas.quota = Quota(budget_mb=1.5 * ONE)
    box.store.quotas_changed()
    assert first.cache is None
    assert second.cache is not None
    assert first.key in box.store
