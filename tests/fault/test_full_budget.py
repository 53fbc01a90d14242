"""More sessions than the budget holds: they lose what is kept for them, replay it, and every text
is right."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import grpc.aio
import pytest

from shared.messages import Context
from tests.cloud_harness import Edge, full_model, tiny_bundle
from tests.cloud_process import MIB, CloudProcess

ARCH = tiny_bundle().manifest.architecture
# ids, and keys and values, of a session of 64 positions at most
SESSION_BYTES = 64 * 4 + 64 * ARCH.layers * 2 * ARCH.kv_size * 4
TOKENS_A_TURN, TURNS = 3, 5


@dataclass
class Talker:
    """A session that asks for a few tokens, leaves, and comes back later."""

    edge: Edge
    ids: list[int]
    replays: int = field(default=0)

    async def take_turn(self) -> None:
        """Resume with what the cloud lacks, and ask."""
        held = (await self.edge.open()).held_positions
        self.replays += bool(self.edge.step > 1 and held == 0)
        for _ in range(TOKENS_A_TURN):
            if held < len(self.ids):
                await self.edge.send(Context(held, tuple(self.ids[held:])))
                held = len(self.ids)
            self.ids += await self.edge.decide(len(self.ids))
        self.edge.call.cancel()


@pytest.mark.parametrize(
    ("sessions", "room"),
    [
        pytest.param(40, 10, id="40 on 10"),
        pytest.param(200, 50, id="200 on 50", marks=pytest.mark.slow),
    ],
)
async def test_sessions_on_a_budget_for_a_quarter_of_them(sessions: int, room: int) -> None:
    prompts = [tuple((n * 37 + i * i * 11 + 3) % 256 + 2 for i in range(9)) for n in range(10)]
    model, count = full_model(), TOKENS_A_TURN * TURNS
    wanted = [model.continuation(prompt, count) for prompt in prompts]
    budget_mb = room * SESSION_BYTES / MIB
    order = random.Random(sessions)
    # streams at once: what is in use is never taken away, so there must be room for it
    streams = asyncio.Semaphore(room * 4 // 5)
    async with CloudProcess(budget_mb=budget_mb, max_sessions=sessions * 3 // 4) as cloud:
        descriptors = cloud.descriptors
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(cloud.address, options=options) as channel:
            fingerprint = tiny_bundle().manifest.fingerprint
            talkers = [
                Talker(Edge(channel, fingerprint), list(prompts[n % len(prompts)]))
                for n in range(sessions)
            ]

            async def turn(talker: Talker) -> None:
                async with streams:
                    await talker.take_turn()

            for _ in range(TURNS):
                order.shuffle(talkers)
                await asyncio.gather(*map(turn, talkers))
            for talker in talkers:
                prompt, text = tuple(talker.ids[:9]), talker.ids[9:]
                assert text == wanted[prompts.index(prompt)]
            assert any(talker.replays for talker in talkers)
            assert await cloud.metric("evictions_total", what="cache") > 0
            assert await cloud.metric("evictions_total", what="session") > 0
            assert await cloud.metric("held_bytes") <= budget_mb * MIB
            talkers.clear()
        del channel, turn, talker
        await cloud.has("streams", 0)
        await cloud.comes_to(lambda: cloud.descriptors == descriptors)
        assert "ERROR" not in cloud.log


@pytest.mark.slow
async def test_memory_is_flat_over_sessions_that_come_and_go() -> None:
    """After a warm-up: oneDNN compiles a kernel for each number of rows that it meets."""
    prompts = [tuple((n * 37 + i * i * 11 + 3) % 256 + 2 for i in range(9)) for n in range(10)]
    resident = []
    async with CloudProcess(budget_mb=10 * SESSION_BYTES / MIB, max_sessions=30) as cloud:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(cloud.address, options=options) as channel:
            streams = asyncio.Semaphore(8)

            async def turn(talker: Talker) -> None:
                async with streams:
                    await talker.take_turn()

            for number in range(40):
                if number % 10 == 0:  # others come, and the old ones are left to be evicted
                    fingerprint = tiny_bundle().manifest.fingerprint
                    talkers = [Talker(Edge(channel, fingerprint), list(p)) for p in prompts * 4]
                await asyncio.gather(*map(turn, talkers))
                resident.append(cloud.resident_bytes)
    assert max(resident[-10:]) - max(resident[10:20]) < 16 * MIB
