"""Running a cloud: metrics, logs, tokens that change and quotas, over real gRPC and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud.auth import add_token
from cloud.server import CloudServer
from cloud.watched_file import CHECK_SECONDS
from protos.tandem.v1 import collaboration_pb2 as pb
from shared.clock import ManualClock
from shared.errors import BudgetExceededError, ConfigurationError
from shared.logs import JsonFormatter, TextFormatter
from shared.messages import (
    CloudMessage,
    Context,
    ErrorCode,
    Escalate,
    Opened,
    Truncate,
    cloud_message_from_proto,
    error_of,
)
from tests.cloud_harness import (
    PROMPT,
    Edge,
    bystander,
    edge,
    eventually,
    failing,
    full_model,
    serving,
    settings_for,
    tiny_bundle,
)

BUNDLE = tiny_bundle()
FULL = full_model()
START = len(PROMPT)


# ---- metrics -------------------------------------------------------------------------------------


@dataclass
class CountingEdge(Edge):
    """Counts the bytes of its messages."""

    sent: int = 0
    received: int = 0

    async def send_bytes(self, data: bytes) -> None:
        self.sent += len(data)
        await super().send_bytes(data)

    async def receive(self) -> CloudMessage:
        data = await self.call.read()
        self.received += len(data)
        return cloud_message_from_proto(pb.CloudMessage.FromString(data))


class Scrape:
    """What one request to the metrics' address shows."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    async def of(cls, server: CloudServer) -> Scrape:
        def get() -> str:
            with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
                return str(answer.read().decode())

        return cls(await asyncio.to_thread(get))

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._values.get((f"tandem_cloud_{name}", tuple(sorted(labels.items()))))


async def test_a_scrape_shows_what_sessions_did(tmp_path: Path) -> None:
    wanted = FULL.continuation(PROMPT, 4)
    alice, bob = (add_token(tmp_path / "tokens", name) for name in ("alice", "bob"))
    async with (
        serving(metrics=":0", tokens=tmp_path / "tokens") as server,
        edge(server, BUNDLE, token=bob) as rude,
        edge(server, BUNDLE) as nobody,
    ):
        assert server.metrics_url.startswith("http://127.0.0.1:")
        client = CountingEdge(rude.channel, rude.fingerprint, token=alice)
        await client.open()
        await client.send(Context(0, PROMPT))
        assert await client.decide(START, burst=2) == wanted[:3]
        await client.send(Context(START, tuple(wanted[:3])))
        await client.send(Escalate(START + 3, guess=wanted[3] + 1))
        await client.receive()
        during = await Scrape.of(server)
        await client.send(Truncate(START + 3))
        closed = await client.close()

        await rude.open()
        await rude.send(Context(0, PROMPT))
        await rude.send(Context(99, PROMPT))
        await rude.failure()
        assert await nobody.refusal() is grpc.StatusCode.UNAUTHENTICATED
        await eventually(lambda: server.service.open_streams == 0)
        after = await Scrape.of(server)

    assert (during("streams", tenant="alice"), after("streams", tenant="alice")) == (1, 0)
    assert (during("sessions", tenant="alice"), after("sessions", tenant="alice")) == (1, 0)
    assert during("held_bytes", tenant="alice") > after("held_bytes", tenant="alice") == 0  # type: ignore[operator]
    assert after("streams_opened_total", tenant="alice") == 1
    assert after("escalations_total", tenant="alice") == 2
    assert after("corrections_total", tenant="alice") == 1
    assert after("burst_tokens_total", tenant="alice") == 2
    assert after("received_bytes_total", tenant="alice") == client.sent
    assert after("sent_bytes_total", tenant="alice") == client.received
    seconds = after("compute_seconds_total", tenant="alice")
    assert seconds == pytest.approx(closed.compute_microseconds / 1e6, abs=2e-6)
    assert after("decision_seconds_count") == 4
    assert after("pass_positions_sum") == closed.layer_positions / 6
    assert after("passes_total") == after("pass_seconds_count") == 4
    assert after("queue_seconds_count", work="question") == after("pass_sessions_sum") == 4
    assert (after("sessions", tenant="bob"), after("escalations_total", tenant="bob")) == (1, 0)
    assert after("errors_total", code=ErrorCode.CONTEXT_GAP.name) == 1
    assert after("errors_total", code=ErrorCode.UNAUTHENTICATED.name) == 1
    assert (after("serving"), after("budget_bytes")) == (1, 4 << 30)


async def test_no_metrics_are_served_unless_told() -> None:
    async with serving() as server:
        assert server.metrics_url == ""
    with pytest.raises(ConfigurationError, match="--metrics"):
        settings_for(BUNDLE, metrics="nowhere")


async def test_metrics_are_served_until_the_drain_is_over() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(metrics=":0"))
        async with edge(server, BUNDLE) as client:
            await client.open()
            leaving = asyncio.create_task(stack.aclose())
            await eventually(lambda: server.metrics.registry.get_sample_value(
                "tandem_cloud_serving") == 0)  # fmt: skip
            assert (await Scrape.of(server))("serving") == 0
            await client.close()
            await leaving
    with pytest.raises(OSError, match="refused"):
        await Scrape.of(server)


# ---- logs ----------------------------------------------------------------------------------------


async def test_logs_name_sessions_and_hold_no_prompt_and_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tandem")
    secret = (261, 263, 262)
    token = add_token(tmp_path / "tokens", "alice")
    async with (
        serving(tokens=tmp_path / "tokens") as server,
        edge(server, BUNDLE, token=token, session_id=b"\xab" * 16) as client,
        edge(server, BUNDLE, token="wrong-token") as stranger,
    ):
        await stranger.refusal()
        await client.open()
        with failing(server.batcher.model, RuntimeError("broken"), rows=3):
            await client.send(Context(0, secret))
            await client.send(Escalate(3))
            await client.failure()
        await client.open()
        await client.send(Context(0, (*secret, 999_777)))
        await client.failure()
        await client.open()
        await client.send(Context(0, secret))
        answer = await client.decide(3)
        await client.close()
    ours = [record for record in caplog.records if record.name.startswith("tandem")]
    lines = [json.loads(JsonFormatter().format(record)) for record in ours]
    events = [(line["event"], line.get("code")) for line in lines if "session" in line]
    assert events == [
        ("session opened", None),
        ("session failed", "INTERNAL"),
        ("session opened", None),
        ("session failed", "INVALID_MESSAGE"),
        ("session opened", None),
        ("session closed", None),
    ]
    for line in lines:
        assert {"time", "level", "event"} <= line.keys()
        assert line.get("session", "abababab") == "abababab"
        assert line.get("tenant", "alice") == "alice"
    failed = next(line for line in lines if line.get("code") == "INTERNAL")
    assert "RuntimeError: broken" in failed.pop("exception")  # its line numbers look like ids
    texts = [json.dumps(lines)]
    texts += [TextFormatter().format(record) for record in ours if not record.exc_info]
    for text in texts:
        for private in (*secret, 999_777, *answer, token, "wrong-token", "ab" * 5):
            assert f" {private}" not in text
            assert f"[{private}" not in text
            assert f'"{private}' not in text


# ---- tokens that change --------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@contextlib.asynccontextmanager
async def serving_tokens(path: Path, clock: ManualClock) -> AsyncIterator[CloudServer]:
    async with CloudServer(settings_for(BUNDLE, tokens=path), clock=clock) as server:
        yield server


async def is_let_in(server: CloudServer, token: str) -> bool:
    refused = server.metrics.errors.labels(ErrorCode.UNAUTHENTICATED.name)._value
    before = refused.get()
    async with edge(server, BUNDLE, token=token) as caller:
        await caller.connect().begin()
        try:
            await caller.expect(Opened)
        except grpc.aio.AioRpcError:  # of either side (Edge.refusal)
            assert refused.get() == before + 1
            return False
        assert refused.get() == before
        return True


async def test_tokens_change_while_the_cloud_runs(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "tokens"
    alice = add_token(path, "alice")
    async with (
        serving_tokens(path, clock) as server,
        bystander(server, BUNDLE, FULL, token=alice),  # its stream goes on to the end
    ):
        new = tmp_path / "new"
        bob = add_token(new, "bob")
        assert not await is_let_in(server, bob)
        os.replace(new, path)
        clock.advance(CHECK_SECONDS)
        assert await is_let_in(server, bob)
        assert not await is_let_in(server, alice)
        path.write_text("broken\n")
        clock.advance(CHECK_SECONDS)
        assert await is_let_in(server, bob)


async def test_quotas_change_without_a_restart(tmp_path: Path) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text("[default]\nsessions = 1\n")
    async with (
        serving(quotas=quotas) as server,
        edge(server, BUNDLE) as first,
        edge(server, BUNDLE) as second,
        edge(server, BUNDLE) as third,
    ):
        await first.open()
        await second.connect().begin()
        assert "all 1 sessions" in await refusal(second)
        quotas.write_text("[default]\nsessions = 2\n")
        server._core.reload()  # what SIGHUP does
        await second.open()
        await third.connect().begin()
        assert "all 2 sessions" in await refusal(third)


async def test_sigusr1_checks_the_store(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tandem.cloud")
    async with serving() as server, edge(server, BUNDLE) as client:
        waiting = asyncio.create_task(server.wait())
        await client.open()
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: "store checked" in caplog.text)
        (session,) = server.store._sessions.values()
        session.counted_bytes += 1
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: "store broken" in caplog.text)
        session.counted_bytes -= 1
        server.stop()
        await waiting


async def test_sighup_reads_the_token_file_at_once(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "tokens"
    alice = add_token(path, "alice")
    async with serving_tokens(path, clock) as server:
        waiting = asyncio.create_task(server.wait())
        assert await is_let_in(server, alice)
        bob = add_token(path, "bob")
        assert not await is_let_in(server, bob)
        assert server._core.tokens is not None
        tokens = server._core.tokens
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: len(tokens.current()) == 2)
        assert await is_let_in(server, bob)
        server.stop()
        await waiting


# ---- quotas --------------------------------------------------------------------------------------


async def refusal(greedy: Edge) -> str:
    reply, status = await greedy.failure()
    assert isinstance(error_of(reply), BudgetExceededError)
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    return reply.message


@contextlib.asynccontextmanager
async def with_quota(tmp_path: Path, text: str) -> AsyncIterator[tuple[CloudServer, str]]:
    """A cloud where alice has a quota, her token, and bob in the middle of his text."""
    tokens, quotas = tmp_path / "tokens", tmp_path / "quotas.toml"
    alice, bob = (add_token(tokens, name) for name in ("alice", "bob"))
    quotas.write_text(f"[tenants.alice]\n{text}\n")
    async with (
        serving(tokens=tokens, quotas=quotas) as server,
        bystander(server, BUNDLE, FULL, token=bob),
    ):
        yield server, alice


async def test_sessions_over_a_quota_are_refused(tmp_path: Path) -> None:
    async with (
        with_quota(tmp_path, "sessions = 1") as (server, alice),
        edge(server, BUNDLE, token=alice) as first,
        edge(server, BUNDLE, token=alice) as second,
    ):
        await first.open()
        await second.connect().begin()
        assert "all 1 sessions that tenant alice" in await refusal(second)
        await first.send(Context(0, PROMPT))
        assert await first.decide(START) == FULL.continuation(PROMPT, 1)
        first.call.cancel()
        await eventually(lambda: server.service.open_streams == 1)
        await second.open()  # the idle one gives way


async def test_bytes_over_a_quota_are_refused(tmp_path: Path) -> None:
    async with (
        with_quota(tmp_path, "budget_mb = 0.001") as (server, alice),
        edge(server, BUNDLE, token=alice) as greedy,
    ):
        await greedy.open()
        await greedy.send(Context(0, PROMPT))
        await greedy.send(Escalate(START))
        assert "1.023 KiB that tenant alice" in await refusal(greedy)


async def test_escalations_over_a_quota_are_refused(tmp_path: Path) -> None:
    quota = "escalations_per_second = 0.001\nescalation_burst = 2"
    async with (
        with_quota(tmp_path, quota) as (server, alice),
        edge(server, BUNDLE, token=alice) as greedy,
    ):
        await greedy.open()
        await greedy.send(Context(0, PROMPT))
        assert await greedy.decide(START) == FULL.continuation(PROMPT, 1)
        assert await greedy.decide(START) == FULL.continuation(PROMPT, 1)
        await greedy.send(Escalate(START))
        assert "may ask 0.001 times a second" in await refusal(greedy)
        assert (await greedy.open()).held_positions == START  # what was held still is


async def test_a_quota_of_a_tenant_without_a_token_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_quota(tmp_path, "sessions = 1\n[tenants.alcie]\nsessions = 1"):
        pass
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.fields == {"tenant": "alcie"}  # type: ignore[attr-defined]


# ---- invariants ----------------------------------------------------------------------------------


async def test_with_debug_invariants_a_broken_account_shows_at_the_next_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(debug_invariants=True) as server, edge(server, BUNDLE) as client:
        await client.open()
        server.store._ledger.bytes += 1
        await client.send(Context(0, PROMPT))
        reply, _ = await client.failure()
        assert reply.code is ErrorCode.INTERNAL
        server.store._ledger.bytes -= 1
    assert "AssertionError" in caplog.text
