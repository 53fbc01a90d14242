"""A clock that jumps: what waits on it is late or early by the jump at most; no text changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.auth import add_token
from cloud.eviction import StoreLimits
from cloud.server import CloudServer
from cloud.watched_file import CHECK_SECONDS
from shared.clock import monotonic
from shared.errors import BudgetExceededError
from shared.messages import Context, Decision, Escalate, error_of
from tests.cloud_harness import (
    PROMPT,
    Edge,
    bystander,
    closed_gate,
    edge,
    eventually,
    full_model,
    settings_for,
    tiny_bundle,
)
from tests.edge_harness import PROMPTS, edge_engine, full_answer, ids_of, options_for

BUNDLE = tiny_bundle()
FULL = full_model()
START = len(PROMPT)
IDLE_SECONDS = 100.0
FAR = 1e6
JUMPS = [pytest.param(FAR, id="forwards"), pytest.param(-FAR, id="backwards")]


class JumpingClock:
    """The real clock, and where it was told to jump."""

    def __init__(self) -> None:
        self._shift = 0.0

    def __call__(self) -> float:
        return monotonic() + self._shift

    def jump(self, seconds: float) -> None:
        self._shift += seconds


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@contextlib.asynccontextmanager
async def serving_at(clock: JumpingClock, **changes: Any) -> AsyncIterator[CloudServer]:
    limits = StoreLimits(idle_seconds=IDLE_SECONDS)
    settings = settings_for(BUNDLE, limits=limits, **changes)
    async with CloudServer(settings, clock=clock) as server:
        yield server


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_jump_in_the_middle_changes_no_text(clock: JumpingClock, seconds: float) -> None:
    async with serving_at(clock) as server:
        async with bystander(server, BUNDLE, FULL), edge(server, BUNDLE) as waiting:
            await waiting.open()
            await waiting.send(Context(0, PROMPT))
            with closed_gate(server.batcher.model) as gate:
                await waiting.send(Escalate(START))
                await gate.entered.wait()
                clock.jump(seconds)
            decision = await waiting.expect(Decision)
            assert [decision.token_id] == FULL.continuation(PROMPT, 1)
            assert decision.cloud_microseconds <= 2**32 - 1
            await waiting.close()
        async with edge_engine(server.address) as engine:
            options = options_for(use_exits=False)
            found = []
            async for token in engine.generation(PROMPTS[0], options).run():
                found.append(token.token_id)
                clock.jump(-seconds if len(found) % 2 else seconds)
                server.store.expire()
            assert found == full_answer(PROMPTS[0], 24)
            result = await engine.generate(PROMPTS[1], options)
            assert ids_of(result) == full_answer(PROMPTS[1], 24)


async def leave_idle(server: CloudServer, client: Edge) -> None:
    await client.open()
    await client.send(Context(0, PROMPT))
    await client.decide(START)
    client.call.cancel()
    await eventually(lambda: server.service.open_streams == 0)


async def test_a_jump_forwards_expires_idle_sessions_and_they_replay(clock: JumpingClock) -> None:
    async with serving_at(clock) as server, edge(server, BUNDLE) as client:
        await leave_idle(server, client)
        clock.jump(FAR)
        assert (await client.open()).held_positions == 0
        await client.send(Context(0, PROMPT))
        assert await client.decide(START) == FULL.continuation(PROMPT, 1)


async def test_after_a_jump_backwards_idle_sessions_expire_in_their_time(
    clock: JumpingClock,
) -> None:
    async with serving_at(clock) as server, edge(server, BUNDLE) as client:
        await leave_idle(server, client)
        clock.jump(-FAR)
        assert (await client.open()).held_positions == START
        client.call.cancel()
        await eventually(lambda: server.service.open_streams == 0)
        clock.jump(-FAR)
        server.store.expire()
        assert len(server.store) == 1
        clock.jump(IDLE_SECONDS)
        server.store.expire()
        assert len(server.store) == 0


@pytest.mark.parametrize("seconds", JUMPS)
async def test_after_a_jump_a_rate_is_what_it_was(
    clock: JumpingClock, tmp_path: Path, seconds: float
) -> None:
    quotas = tmp_path / "quotas.toml"
    quotas.write_text("[default]\nescalations_per_second = 0.001\nescalation_burst = 4\n")
    async with serving_at(clock, quotas=quotas) as server, edge(server, BUNDLE) as client:
        await client.open()
        await client.send(Context(0, PROMPT))
        left = 4
        for _ in range(2):
            assert await client.decide(START) == FULL.continuation(PROMPT, 1)
            left -= 1
        clock.jump(seconds)
        if seconds > 0:
            left = 4  # a full bucket, however far the jump
        for _ in range(left):
            assert await client.decide(START) == FULL.continuation(PROMPT, 1)
        await client.send(Escalate(START))
        reply, _ = await client.failure()
        assert isinstance(error_of(reply), BudgetExceededError)
        clock.jump(1001.0)  # and it fills as it did
        await client.open()
        await client.send(Context(0, PROMPT))
        assert await client.decide(START) == FULL.continuation(PROMPT, 1)


@pytest.mark.parametrize("seconds", JUMPS)
async def test_after_a_jump_new_tokens_are_seen(
    clock: JumpingClock, tmp_path: Path, seconds: float
) -> None:
    path, new = tmp_path / "tokens", tmp_path / "new"
    alice, bob = add_token(path, "alice"), add_token(new, "bob")
    async with (
        serving_at(clock, tokens=path) as server,
        edge(server, BUNDLE, token=alice) as old,
        edge(server, BUNDLE, token=bob) as client,
    ):
        await old.open()
        clock.jump(seconds)
        os.replace(new, path)
        clock.jump(CHECK_SECONDS)
        await client.open()
        assert await old.refusal() is grpc.StatusCode.UNAUTHENTICATED
