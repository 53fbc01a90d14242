"""What is counted, where no real session is needed (scrapes of a served cloud: integration)."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch

from cloud.context_manager import ContextStore
from cloud.decisions import ENTRY_BYTES
from cloud.eviction import StoreLimits
from cloud.held_session import SessionKey
from cloud.kv_cache import KvCache
from cloud.metrics import MAX_TENANT_LABELS, OTHER_TENANTS, CloudMetrics
from cloud.metrics_endpoint import MetricsEndpoint
from prepare.tiny_model import TINY_ARCHITECTURE as ARCH
from shared.clock import ManualClock
from shared.errors import ConfigurationError
from shared.messages import ContextKind
from shared.sampling import GREEDY


def value(metrics: CloudMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tandem_cloud_{name}", labels)


def test_tenants_beyond_a_number_share_a_label() -> None:
    metrics = CloudMetrics()
    for number in range(MAX_TENANT_LABELS + 10):
        metrics.tenant(f"t{number}").escalations.inc()
    metrics.tenant("t0").escalations.inc()
    assert value(metrics, "escalations_total", tenant="t0") == 2
    assert value(metrics, "escalations_total", tenant=OTHER_TENANTS) == 10
    assert value(metrics, "escalations_total", tenant=f"t{MAX_TENANT_LABELS}") is None


def test_clouds_of_one_process_do_not_mix() -> None:
    first, second = CloudMetrics(), CloudMetrics()
    first.passes.inc()
    assert (value(first, "passes_total"), value(second, "passes_total")) == (1, 0)


def test_a_pass_is_counted_with_its_sessions_positions_and_waits() -> None:
    metrics = CloudMetrics()
    metrics.pass_ended([(True, 0.25), (True, 0.5)], rows=7, seconds=0.125)
    metrics.pass_ended([(False, 1.0)], rows=64, seconds=0.25)
    assert value(metrics, "passes_total") == 2
    assert value(metrics, "pass_positions_sum") == 71
    assert value(metrics, "pass_sessions_sum") == 3
    assert value(metrics, "pass_seconds_sum") == 0.375
    assert value(metrics, "queue_seconds_sum", work="question") == 0.75
    assert value(metrics, "queue_seconds_count", work="catch-up") == 1


def test_the_store_tells_what_it_holds_evicts_and_forgets() -> None:
    metrics, clock = CloudMetrics(), ManualClock()
    ids_bytes = 64 * (4 + ENTRY_BYTES)
    cache_bytes = 64 * ARCH.layers * 2 * ARCH.kv_size * 4
    store = ContextStore(
        ARCH,
        2,
        lambda first: KvCache(ARCH, first, torch.device("cpu"), torch.float32),
        StoreLimits(budget_bytes=2 * ids_bytes + cache_bytes, max_sessions=2, idle_seconds=10),
        metrics=metrics,
        clock=clock,
    )

    def idle(tenant: str, name: int) -> None:
        key = SessionKey(tenant, bytes([name]) * 16)
        session = store.open(key, GREEDY, ContextKind.TOKEN_IDS)
        store.append(session, 0, np.arange(6, dtype=np.int32))
        store.cache_for(session, 6)
        store.release(session)
        clock.advance(1.0)

    idle("alice", 1)
    assert value(metrics, "held_bytes", tenant="alice") == ids_bytes + cache_bytes
    idle("bob", 2)  # takes alice's cache
    assert value(metrics, "evictions_total", what="cache") == 1
    assert value(metrics, "held_bytes", tenant="alice") == ids_bytes
    idle("bob", 3)  # takes alice's session, and its sister's cache
    assert value(metrics, "evictions_total", what="session") == 1
    assert value(metrics, "evictions_total", what="cache") == 2
    assert value(metrics, "sessions", tenant="alice") == 0
    assert value(metrics, "sessions", tenant="bob") == 2
    clock.advance(10.0)
    store.expire()
    assert value(metrics, "expirations_total") == 2
    assert value(metrics, "held_bytes", tenant="bob") == 0
    assert value(metrics, "budget_bytes") == 2 * ids_bytes + cache_bytes


async def test_an_address_that_is_taken_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
            async with MetricsEndpoint(CloudMetrics().registry, "127.0.0.1", port):
                pass
